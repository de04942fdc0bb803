"""Fits quotient and remainder tables, and hashed tables, to a trained table.

Dimensions: N rows, D columns; the grid of a quotient-remainder fit is L x S: rows of the large and the small table.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.compression.rules.quantize import CHUNK_VALUES
from dlrmctl.embeddings.partitions.basic import QuotientRemainder

# Up to this height the small table starts at eigenvectors of S x S matrices, one per column.
_MOST_EIGEN_ROWS = 64
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Pair:
    """Fitted tables.

    Attributes:
        quotient, remainder: float32, as `Paired` reads them.
        losses: weighted squared error after each sweep; it never increases.
    """

    quotient: Tensor
    remainder: Tensor
    losses: list[float]


def fit_pair(table: TableRows, divisor: int, operation: str, *, most_sweeps: int = 30, tolerance: float = 1e-4) -> Pair:
    """Minimizes sum_i w_i |E_i - (Q[i // divisor] op R[i % divisor])|^2 by exact steps for one table at a time.

    "concat" needs one step. "mult" is, for each column, a weighted rank-1 fit of the table laid out as a grid; the
    small table is then scaled to a mean absolute value of 1 in every column, with a positive sign on average.

    Args:
        operation: "mult", "add" or "concat".
        most_sweeps, tolerance: stop after this many sweeps, or when one lowers the loss by less than this share.

    Raises:
        ValueError: for another operation, or "concat" of an odd number of columns.

    Source: block coordinate descent, Shi et al., A Primer on Coordinate Descent Algorithms, arXiv:1610.00040.
    """
    if operation not in _STEPS:
        raise ValueError(f"{operation=} must be one of {', '.join(_STEPS)}")
    grid = _Grid.of(table, divisor)
    if operation == "concat":
        return _fit_concat(grid)
    small, large, losses = _descend(grid, operation, most_sweeps, tolerance)
    if operation == "mult":
        gauge = small.abs().mean(0)
        gauge = torch.where(gauge > 0, gauge, 1) * torch.where(small.sum(0) < 0, -1, 1)
        small, large = small / gauge, large * gauge
    return Pair(large, small, losses) if grid.quotient_is_large else Pair(small, large, losses)


def fit_buckets(table: TableRows, buckets: int) -> Tensor:
    """Returns the weighted mean of the rows in each bucket of `id mod buckets`, float32 [buckets, D]."""
    sums, totals = torch.zeros(buckets, table.dim), torch.zeros(buckets)
    for part, values, weights in table.chunks("buckets"):
        bucket = torch.arange(part.start, part.stop) % buckets
        sums.index_add_(0, bucket, values * weights[:, None])
        totals.index_add_(0, bucket, weights)
    return sums / totals[:, None]


@dataclass(frozen=True)
class _Grid:
    """The table's rows, laid out by their rows in the large and the small table."""

    table: TableRows
    divisor: int
    quotient_is_large: bool
    large: int
    small: int

    @classmethod
    def of(cls, table: TableRows, divisor: int) -> "_Grid":
        quotients, remainders = QuotientRemainder(table.num_rows, divisor).table_rows
        is_large = quotients >= remainders
        return cls(table, divisor, is_large, max(quotients, remainders), min(quotients, remainders))

    def blocks(self, phase: str) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yields rows of the large table with their values [l, S, D] and weights [l, S, 1], 0 past the table's end."""
        step = max(1, CHUNK_VALUES // (self.small * self.table.dim))
        along_small = torch.arange(self.small)
        for start in range(0, self.large, step):
            part = slice(start, min(start + step, self.large))
            along_large = torch.arange(part.start, part.stop)[:, None]
            if self.quotient_is_large:
                rows = along_large * self.divisor + along_small
            else:
                rows = along_small * self.divisor + along_large
            values, weights = self.table.take(rows.flatten())
            yield part, values.view(-1, self.small, self.table.dim), weights.view(-1, self.small, 1)
            self.table.progress(phase, part.stop * self.small, self.large * self.small)


def _descend(grid: _Grid, operation: str, most_sweeps: int, tolerance: float) -> tuple[Tensor, Tensor, list[float]]:
    """Each sweep reads the table once: it solves for the large table and sums up the next small one."""
    starts = _starts(grid) if operation == "mult" else [torch.zeros(grid.small, grid.table.dim)]
    sweeps = [(small, *_sweep(grid, small, operation)) for small in starts]
    small, large, loss, following = min(sweeps, key=lambda sweep: sweep[2])
    losses = [loss]
    while len(losses) < most_sweeps:
        tried, loss, after = _sweep(grid, following, operation)
        if loss > losses[-1]:  # only rounding is left
            break
        small, large, following = following, tried, after
        losses.append(loss)
        if losses[-2] - loss <= tolerance * losses[-2]:
            break
    return small, large, losses


def _sweep(grid: _Grid, small: Tensor, operation: str) -> tuple[Tensor, float, Tensor]:
    """Returns the best large table for this small one, their loss, and the best small table for that large one."""
    step = _STEPS[operation]
    large = torch.empty(grid.large, grid.table.dim)
    loss = torch.zeros((), dtype=torch.float64)
    tops, bottoms = (torch.zeros(grid.small, grid.table.dim, dtype=torch.float64) for _ in range(2))
    for part, values, weights in grid.blocks("sweep"):
        top, bottom = step(values, weights, small)
        best = top.sum(1) / bottom.sum(1).clamp(min=_TINY)
        large[part] = best
        top, bottom = step(values, weights, best[:, None])
        tops += top.sum(0, dtype=torch.float64)
        bottoms += bottom.sum(0, dtype=torch.float64)
        combined = best[:, None] * small if operation == "mult" else best[:, None] + small
        loss += (values - combined).square_().mul_(weights).sum(dtype=torch.float64)
    return large, float(loss), (tops / bottoms.clamp(min=_TINY)).float()


def _mult(values: Tensor, weights: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the summands of numerator and denominator of the best factor beside `other`."""
    weighted = weights * other
    return weighted * values, weighted * other


def _add(values: Tensor, weights: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return weights * (values - other), weights.expand_as(values)


_STEPS = {"mult": _mult, "add": _add, "concat": _add}


def _starts(grid: _Grid) -> list[Tensor]:
    """Returns small tables to start from: all ones, and the exact solution for weights that are a product of two."""
    ones = torch.ones(grid.small, grid.table.dim)
    if grid.small > _MOST_EIGEN_ROWS:
        return [ones]
    gram = torch.zeros(grid.table.dim, grid.small, grid.small, dtype=torch.float64)
    totals = torch.zeros(grid.small, dtype=torch.float64)
    for _, values, weights in grid.blocks("start"):
        scaled = (values * weights.sqrt()).permute(2, 1, 0)
        gram += torch.bmm(scaled, scaled.transpose(1, 2))
        totals += weights.sum((0, 2), dtype=torch.float64)
    vectors = torch.linalg.eigh(gram).eigenvectors[:, :, -1].T
    return [ones, (vectors / totals.clamp(min=_TINY).sqrt()[:, None]).float()]


def _fit_concat(grid: _Grid) -> Pair:
    dim = grid.table.dim
    if dim % 2:
        raise ValueError(f"operation='concat' halves the columns; table {grid.table.name} has {dim}, an odd number")
    half = slice(0, dim // 2), slice(dim // 2, dim)
    of_large, of_small = half if grid.quotient_is_large else half[::-1]
    large = torch.empty(grid.large, dim // 2)
    sums = torch.zeros(grid.small, dim // 2, dtype=torch.float64)
    totals = torch.zeros(grid.small, 1, dtype=torch.float64)
    squares = torch.zeros((), dtype=torch.float64)
    for part, values, weights in grid.blocks("means"):
        weighted = values * weights
        large[part] = weighted[..., of_large].sum(1) / weights.sum(1)
        squares += (values[..., of_large] - large[part][:, None]).square_().mul_(weights).sum(dtype=torch.float64)
        squares += (weighted * values)[..., of_small].sum(dtype=torch.float64)
        sums += weighted[..., of_small].sum(0, dtype=torch.float64)
        totals += weights.sum(0, dtype=torch.float64)
    small = sums / totals
    losses = [float(squares - (small.square() * totals).sum())]
    small = small.float()
    return Pair(large, small, losses) if grid.quotient_is_large else Pair(small, large, losses)
