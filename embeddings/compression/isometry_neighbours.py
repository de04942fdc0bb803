"""Which rows are nearest to which, and how many of them a linear map leaves nearest.

Dimensions: K rows, D their columns, R of a map's image.
"""

import torch
from torch import Tensor

NEIGHBOURS = 10
_BLOCK_PAIRS = 2**20


class Neighbours:
    """The nearest rows of every row, itself not counted.

    Args:
        rows_KD: float64, at least two.
        count: of neighbours; all other rows if there are fewer.
    """

    def __init__(self, rows_KD: Tensor, count: int = NEIGHBOURS) -> None:
        self._rows = rows_KD - rows_KD.mean(0)
        self.count = min(count, len(rows_KD) - 1)
        nearest = _nearest(self._rows, self.count)
        # One number per (row, neighbour), sorted, so that a recall is a search and not K x 10 x 10 comparisons.
        self._numbers = self._number(nearest).flatten().sort().values

    def recall(self, projection_RD: Tensor) -> float:
        """The share of the neighbours that are among as many nearest rows after the map."""
        after = self._number(_nearest(self._rows @ projection_RD.T, self.count)).flatten()
        places = torch.searchsorted(self._numbers, after).clamp_(max=len(self._numbers) - 1)
        return float((self._numbers[places] == after).double().mean())

    def _number(self, nearest: Tensor) -> Tensor:
        return nearest + torch.arange(len(nearest))[:, None] * len(nearest)


def _nearest(rows: Tensor, count: int) -> Tensor:
    squares = rows.square().sum(1)
    found = []
    for start in range(0, len(rows), step := max(1, _BLOCK_PAIRS // len(rows))):
        block = rows[start : start + step]
        distances = torch.addmm(squares.expand(len(block), -1), block, rows.T, alpha=-2)
        distances[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        found.append(distances.topk(count, largest=False).indices)
    return torch.cat(found)
