"""Tables as training leaves them, for the tests of compression."""

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.fits.trained import TableRows, importance


def clustered(rows: int, dim: int = 16, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows near 100 centers in 6 dimensions, and Zipf counts in random order; rare ids have small rows."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(100, 6, generator=generator)
    latent = centers[torch.randint(100, (rows,), generator=generator)]
    latent = latent + 0.5 * torch.randn(rows, 6, generator=generator)
    counts = (1e3 / torch.arange(1, rows + 1) ** 1.05)[torch.randperm(rows, generator=generator)].floor()
    weight = latent @ torch.randn(6, dim, generator=generator) * (counts / (counts + 1)).sqrt()[:, None]
    return 0.1 * weight, counts


def table_rows(rows: int, dim: int = 16, *, kind: str = "counts", seed: int = 0) -> TableRows:
    weight, counts = clustered(rows, dim, seed=seed)
    source = None if kind == "uniform" else counts
    return TableRows(weight, importance(kind, rows, source).weights)


def weighted_error(table: TableRows, reconstructed: Tensor) -> float:
    """sum_i w_i |E'_i - E_i|^2 in float64, all at once."""
    difference = reconstructed.double() - table.weight.double()
    return float((difference.square().sum(1) * table.weights.double()).sum())
