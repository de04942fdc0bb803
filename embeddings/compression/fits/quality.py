"""Measures the error of a compressed table."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.compression.rules.rows import Compressed

_SECANTS = 20_000


@dataclass(frozen=True)
class Quality:
    """Differences between a table E and its approximation E'.

    Attributes:
        weighted_error: sum_i w_i |E'_i - E_i|^2; times the importance's scale it is proportional to the increase of the
            model's loss, with nearly the same constant for all tables and methods.
        weighted_relative_error: square root of the same over sum_i w_i |E_i|^2.
        relative_error: the same with equal weights.
        distortion_median, distortion_p99, distortion_max: statistics of | |E'_i - E'_j|^2 / |E_i - E_j|^2 - 1 | over
            pairs of rows drawn by their weights; 0 for a table with one row.
    """

    weighted_error: float
    weighted_relative_error: float
    relative_error: float
    distortion_median: float
    distortion_p99: float
    distortion_max: float

    @classmethod
    def exact(cls) -> "Quality":
        """Returns the quality of the table itself."""
        return cls(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def measure(table: TableRows, compressed: Compressed) -> Quality:
    """Compares all rows, in pieces, and `_SECANTS` random pairs."""
    sums = torch.zeros(4, dtype=torch.float64)
    for part, values, weights in table.chunks("measure"):
        error = (compressed.expand(part.start, part.stop) - values).square_().sum(1, dtype=torch.float64)
        norm = values.square().sum(1, dtype=torch.float64)
        sums += torch.stack([(error * weights).sum(), (norm * weights).sum(), error.sum(), norm.sum()])
    weighted_error, weighted_norm, error, norm = sums.tolist()
    distortion = secant_distortion(table, compressed)
    return Quality(
        weighted_error=weighted_error,
        weighted_relative_error=_root_ratio(weighted_error, weighted_norm),
        relative_error=_root_ratio(error, norm),
        distortion_median=_quantile(distortion, 0.5),
        distortion_p99=_quantile(distortion, 0.99),
        distortion_max=_quantile(distortion, 1.0),
    )


@torch.no_grad()
def secant_distortion(table: TableRows, compressed: Compressed) -> Tensor:
    """Returns relative changes of squared distances of random pairs of distinct rows, float32 [at most `_SECANTS`]."""
    generator = torch.Generator().manual_seed(0)
    weights = table.weights if table.index is None else table.weights[table.index]
    reached = weights.cumsum(0, dtype=torch.float64)
    draws = torch.rand(2, _SECANTS, generator=generator, dtype=torch.float64) * reached[-1]
    first, second = torch.searchsorted(reached, draws).clamp_(max=table.num_rows - 1)
    original = (table.take(first)[0] - table.take(second)[0]).square().sum(1)
    now = (compressed(first) - compressed(second)).square().sum(1)
    apart = original > 0
    return (now[apart] / original[apart] - 1).abs()


def _quantile(values: Tensor, share: float) -> float:
    if values.numel() == 0:
        return 0.0
    ordered = values.sort().values
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])


def _root_ratio(error: float, norm: float) -> float:
    if norm == 0:
        return 0.0 if error == 0 else float("inf")
    return (error / norm) ** 0.5
