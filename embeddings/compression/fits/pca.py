"""Fits the low-rank rule by weighted principal components.

Dimensions: N rows, D columns, R of the subspace.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.compression.rules.pack import pack_chunks
from dlrmctl.embeddings.compression.rules.quantize import INTEGER_BITS
from dlrmctl.embeddings.compression.rules.sharing import LowRank


@dataclass(frozen=True)
class Subspace:
    """Weighted principal components.

    Attributes:
        mean: float64 [D].
        directions: float64 [D, D], one orthonormal direction per row, the one with the most variance first.
        variances: float64 [D], along the directions.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor


def principal_subspace(table: TableRows) -> Subspace:
    """Computes the weighted mean and the eigenvectors of the covariance, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    first = torch.zeros(table.dim, dtype=torch.float64)
    second = torch.zeros(table.dim, table.dim, dtype=torch.float64)
    for _, values, weights in table.chunks("components"):
        weighted = (values * weights[:, None]).double()
        total += weights.sum(dtype=torch.float64)
        first += weighted.sum(0)
        second += weighted.T @ values.double()
    mean = first / total
    variances, vectors = torch.linalg.eigh(second / total - torch.outer(mean, mean))
    return Subspace(mean, vectors.T.flip(0), variances.flip(0).clamp(min=0))


def fit_pca(table: TableRows, rank: int, bits: int, *, search: bool = False) -> LowRank:
    """Returns the best weighted approximation in `rank` dimensions, its coordinates stored at `bits` bits.

    A row is quantized over one range, which the first components would dominate. So coordinates of few bits are divided
    by the square root of their spread, which balances the precision of large and small ones, and then rotated at
    random, which narrows the ranges. The basis undoes both. With all D directions and 4 bits this halves the error of
    quantizing the table itself.

    Raises:
        ValueError: unless 1 <= rank <= D.
    """
    if not 1 <= rank <= table.dim:
        raise ValueError(f"{rank=} must be from 1 to {table.dim}, the columns of table {table.name}")
    found = principal_subspace(table)
    directions, spread = found.directions[:rank], found.variances[:rank].sqrt()
    rotation = torch.eye(rank, dtype=torch.float64)
    units = torch.ones_like(spread)
    if bits in INTEGER_BITS:
        units = spread.clamp(min=max(1e-6 * float(spread[0]), 1e-30)).sqrt()
        noise = torch.randn(rank, rank, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
        rotation = torch.linalg.qr(noise).Q
    into, mean = (rotation @ (directions / units[:, None])).float(), found.mean.float()

    def coordinates(phase: str) -> Iterator[tuple[slice, Tensor]]:
        for part, values, _ in table.chunks(phase):
            yield part, (values - mean) @ into.T

    largest = max(float(values.abs().max()) for _, values in coordinates("range"))
    rows = pack_chunks(coordinates("rows"), (table.num_rows, rank), bits, largest, search=search)
    return LowRank(rows, (rotation @ (directions * units[:, None])).float(), mean)
