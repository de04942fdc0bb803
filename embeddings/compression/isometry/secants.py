"""Distances of all pairs of rows and nearest neighbours, before and after a linear map.

All pairs never are in memory: they are computed in blocks, every time again. All arithmetic is in float64. Dimensions:
K rows, D their columns, N <= D of the subspace they span, R of a map's image.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrmctl.embeddings.errors import NonFiniteValueError

_BLOCK_PAIRS = 2**18
# Rows this near, relative to their lengths, are copies within the precision of float32.
_COPY = 1e-6
# Below this share of the squared lengths, |x|^2 + |y|^2 - 2 x.y loses more than 10 of 16 digits.
_CANCELS = 1e-6
# Directions with a smaller share of the largest spread are rounding errors.
_FLAT = 1e-13
NEIGHBOURS = 10
_NEIGHBOUR_PAIRS = 2**20
# The phase of a fit, the rows done, and all rows.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Extremes:
    """The smallest and the largest factor by which a map multiplies a squared distance."""

    low: float
    high: float

    @property
    def delta(self) -> float:
        """Worst relative error of a squared distance after the best scaling of the map: 0 isometric, 1 collapsed."""
        total = self.high + self.low
        return (self.high - self.low) / total if total > 0 else 1.0

    @property
    def scale(self) -> float:
        """The scaling of the map that brings all ratios into [1 - delta, 1 + delta]."""
        total = self.high + self.low
        return (2 / total) ** 0.5 if total > 0 else 1.0


def extremes(ratios: Tensor) -> Extremes:
    """Returns the extremes of ratios of squared distances, [M] with M > 0."""
    low, high = torch.aminmax(ratios)
    return Extremes(float(low), float(high))


class Secants:
    """All pairs of distinct rows.

    Maps are given as matrices [R, N] in the coordinates of the rows' span; `reduce` and `restore` convert. The first
    coordinate is the direction of the largest spread, so the first R coordinates are the rows' principal components.

    Args:
        rows: [K, D], floating.

    Attributes:
        coordinates: [K, N], the rows around their mean.
        basis: [N, D], orthonormal.
        num_pairs, num_copies: pairs of distinct rows, and pairs of equal rows, which do not constrain a map.

    Raises:
        ValueError: if there are no two distinct rows, or values are not finite.
    """

    def __init__(self, rows: Tensor) -> None:
        if rows.dim() != 2 or rows.shape[0] < 2 or rows.shape[1] < 1:
            raise ValueError(f"rows of shape {tuple(rows.shape)} have no distances; need at least two rows")
        if not bool(torch.isfinite(rows).all()):
            row = int((~torch.isfinite(rows)).any(1).nonzero()[0])
            raise NonFiniteValueError(f"row {row:,} holds a value that is not finite; was the training diverging?")
        centered = rows.double() - rows.double().mean(0)
        size = float(centered.abs().max())
        _, spread, directions = torch.linalg.svd(centered / (size or 1.0), full_matrices=False)
        self.basis = directions[spread > _FLAT * spread[0]]
        self.coordinates = centered @ self.basis.T
        self.squares = self.coordinates.square().sum(1)
        self._sizes = rows.double().square().sum(1)  # lengths before centering: that is what float32 rounded
        self.num_rows, self.dim = self.coordinates.shape
        total = self.num_rows * (self.num_rows - 1) // 2
        self.num_pairs = sum(int((lengths > 0).sum()) for *_, lengths in self._blocks())
        self.num_copies = total - self.num_pairs
        if self.num_pairs == 0:
            raise ValueError(f"all {self.num_rows:,} rows are equal; there are no distances to keep")

    def reduce(self, projection_RD: Tensor) -> Tensor:
        """Returns a map of rows as a map of coordinates, float64 [R, N]."""
        return projection_RD.double() @ self.basis.T

    def restore(self, factor_RN: Tensor) -> Tensor:
        """Returns a map of coordinates as a map of rows, [R, D]."""
        return factor_RN @ self.basis

    def extremes(self, factor_RN: Tensor) -> Extremes:
        """Returns the extremes over all pairs."""
        return self.examine(factor_RN, 0)[0]

    def examine(self, factor_RN: Tensor, count: int) -> tuple[Extremes, Tensor]:
        """Returns the extremes over all pairs, and the `count` most stretched and `count` most shrunk pairs.

        Returns:
            The extremes, and int64 [at most 2 count], where a pair of rows i < j is i K + j; no pair is repeated.
        """
        image = self.coordinates @ factor_RN.T
        squares = image.square().sum(1)
        lows = highs = torch.empty(0, dtype=torch.float64)
        low_pairs = high_pairs = torch.empty(0, dtype=torch.int64)
        for start, stop, near, lengths in self._blocks():
            changed = _squared_distances(image[start:stop], image[start:], squares[start:stop], squares[start:])
            first, second = near
            changed[first, second] = (image[start + first] - image[start + second]).square().sum(1)
            ratios = (changed / lengths).flatten()
            usable = (lengths > 0).flatten()
            most = max(1, count)
            lows, low_pairs = self._extend(lows, low_pairs, ratios, usable, start, most, largest=False)
            highs, high_pairs = self._extend(highs, high_pairs, ratios, usable, start, most, largest=True)
        pairs = torch.cat([low_pairs, high_pairs]).unique() if count else low_pairs[:0]
        return Extremes(float(lows.min()), float(highs.max())), pairs

    def _extend(
        self, values: Tensor, pairs: Tensor, ratios: Tensor, usable: Tensor, start: int, count: int, *, largest: bool
    ) -> tuple[Tensor, Tensor]:
        """Returns the `count` most extreme values so far, and their pairs, after one more block."""
        none = -torch.inf if largest else torch.inf
        ratios = torch.where(usable, ratios, none)
        found, places = ratios.topk(min(count, ratios.numel()), largest=largest)
        real = found != none
        found, places = found[real], places[real]
        width = self.num_rows - start
        rows = (start + places // width) * self.num_rows + start + places % width
        values, pairs = torch.cat([values, found]), torch.cat([pairs, rows])
        kept = values.topk(min(count, values.numel()), largest=largest).indices
        return values[kept], pairs[kept]

    def directions(self, pairs: Tensor) -> Tensor:
        """Returns the differences of these pairs (see `examine`), divided by their lengths, [M, N]."""
        first, second = pairs // self.num_rows, pairs % self.num_rows
        difference = self.coordinates[first] - self.coordinates[second]
        return difference / difference.norm(dim=1, keepdim=True)

    def random_pairs(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws at most `count` pairs of distinct rows, each once."""
        first = torch.randint(self.num_rows, (count,), generator=generator)
        second = (first + torch.randint(1, self.num_rows, (count,), generator=generator)) % self.num_rows
        pairs = (torch.minimum(first, second) * self.num_rows + torch.maximum(first, second)).unique()
        first, second = pairs // self.num_rows, pairs % self.num_rows
        lengths = (self.coordinates[first] - self.coordinates[second]).square().sum(1)
        return pairs[lengths > _COPY**2 * (self._sizes[first] + self._sizes[second])]

    def _blocks(self) -> Iterator[tuple[int, int, tuple[Tensor, Tensor], Tensor]]:
        """Returns near pairs and squared distances of rows [start, stop) and rows [start, K).

        A distance is 0 where the pair does not count: it is of copies, or another block has it in the other order.
        """
        step = max(1, _BLOCK_PAIRS // self.num_rows)
        for start in range(0, self.num_rows, step):
            stop = min(start + step, self.num_rows)
            left, right = self.squares[start:stop], self.squares[start:]
            lengths = _squared_distances(self.coordinates[start:stop], self.coordinates[start:], left, right)
            lengths.triu_(1)
            sizes, other_sizes = self._sizes[start:stop], self._sizes[start:]
            doubtful = torch.maximum(left, sizes)[:, None] + torch.maximum(right, other_sizes)
            close = (lengths < _CANCELS * doubtful).triu_(1)
            first, second = close.nonzero(as_tuple=True)
            exact = (self.coordinates[start + first] - self.coordinates[start + second]).square().sum(1)
            apart = exact > _COPY**2 * (sizes[first] + other_sizes[second])
            lengths[first, second] = torch.where(apart, exact, 0.0)
            yield start, stop, (first, second), lengths


def _squared_distances(left: Tensor, right: Tensor, left_squares: Tensor, right_squares: Tensor) -> Tensor:
    return torch.addmm(left_squares[:, None] + right_squares, left, right.T, alpha=-2).clamp_(min=0)


class Neighbours:
    """The nearest rows of every row, excluding itself.

    Args:
        rows_KD: float64, at least two; each has `NEIGHBOURS` neighbours, or all other rows if there are fewer.
    """

    def __init__(self, rows_KD: Tensor) -> None:
        self._rows = rows_KD - rows_KD.mean(0)
        self.count = min(NEIGHBOURS, len(rows_KD) - 1)
        nearest = _nearest(self._rows, self.count)
        # One number per (row, neighbour), sorted: a search is faster than K x 10 x 10 comparisons.
        self._numbers = self._number(nearest).flatten().sort().values

    def recall(self, projection_RD: Tensor) -> float:
        """Returns the share of the neighbours that stay among the nearest rows after the map."""
        after = self._number(_nearest(self._rows @ projection_RD.T, self.count)).flatten()
        places = torch.searchsorted(self._numbers, after).clamp_(max=len(self._numbers) - 1)
        return float((self._numbers[places] == after).double().mean())

    def _number(self, nearest: Tensor) -> Tensor:
        return nearest + torch.arange(len(nearest))[:, None] * len(nearest)


def _nearest(rows: Tensor, count: int) -> Tensor:
    squares = rows.square().sum(1)
    found = []
    for start in range(0, len(rows), step := max(1, _NEIGHBOUR_PAIRS // len(rows))):
        block = rows[start : start + step]
        distances = torch.addmm(squares.expand(len(block), -1), block, rows.T, alpha=-2)
        distances[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        found.append(distances.topk(count, largest=False).indices)
    return torch.cat(found)
