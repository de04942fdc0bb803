"""Fits the near-isometric rule: few coordinates per row that nearly keep the distances of rows, with measured bounds.

Dimensions: N rows, D columns, R coordinates; K rows of the sample.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.fits.pca import principal_subspace
from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.compression.isometry.compare import NearIsometryReport, near_isometric
from dlrmctl.embeddings.compression.rules.pack import pack_chunks
from dlrmctl.embeddings.compression.rules.sharing import Isometric

_BLOCK_PAIRS = 2**20
_EXACT = "donot_use_mm_for_euclid_dist"


def fit_isometric(
    table: TableRows, rank: int, objective: str, bits: int, *, search: bool = False, seed: int = 0
) -> Isometric:
    """Fits a near-isometric map to the heaviest rows, applies it to all, and stores the coordinates at `bits` bits.

    The certificate holds relative errors of squared distances: "delta", the bound over all pairs of the sample;
    "stored_delta", the same for the stored coordinates; "sample_rows", "pairs" and "copies" of the sample; and "maps",
    the figures of this map, PCA and random projections (see `isometry.compare.MapFigures`).

    Raises:
        ValueError: if the rank does not fit, or too few rows are distinct.
    """
    weights = table.weights if table.index is None else table.weights[table.index]
    rows = table.weight if table.index is None else table.take(torch.arange(table.num_rows))[0]
    uniform = bool((weights == weights[0]).all())
    report = near_isometric(rows, None if uniform else weights, rank, objective, seed=seed, progress=table.progress)
    # A rotation changes no distance, and narrows the range over which a row is rounded.
    noise = torch.randn(rank, rank, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    projection = (torch.linalg.qr(noise).Q @ report.embedding.projection.double()).float()
    left, _, right = torch.linalg.svd(projection.double(), full_matrices=False)
    mean = principal_subspace(table).mean.float()

    def coordinates(phase: str) -> Iterator[tuple[slice, Tensor]]:
        for part, values, _ in table.chunks(phase):
            yield part, (values - mean) @ projection.T

    largest = max(float(values.abs().max()) for _, values in coordinates("range"))
    stored = pack_chunks(coordinates("rows"), (table.num_rows, rank), bits, largest, search=search)
    certificate = _certificate(report, rows[report.sample].double(), stored(report.sample).double())
    return Isometric(stored, (left @ right).float(), mean, projection, certificate)


def _certificate(report: NearIsometryReport, rows_KD: Tensor, stored_KR: Tensor) -> dict[str, Any]:
    found = report.embedding
    return {
        "objective": found.objective,
        "delta": found.delta,
        "stored_delta": stored_distortion(rows_KD, stored_KR),
        "sample_rows": found.num_rows,
        "pairs": found.num_pairs,
        "copies": found.num_copies,
        "maps": [asdict(figures) for figures in report.figures],
    }


def stored_distortion(rows_KD: Tensor, images_KR: Tensor) -> float:
    """Returns the largest | |a' - b'|^2 / |a - b|^2 - 1 | over all pairs of distinct rows a, b with images a', b'."""
    worst = 0.0
    step = max(1, _BLOCK_PAIRS // len(rows_KD))
    for start in range(0, len(rows_KD), step):
        # Differences, not inner products, which would lose digits of near pairs.
        before = torch.cdist(rows_KD[start : start + step], rows_KD, compute_mode=_EXACT).square()
        after = torch.cdist(images_KR[start : start + step], images_KR, compute_mode=_EXACT).square()
        sizes = rows_KD.square().sum(1)
        apart = before > 1e-12 * (sizes[start : start + step, None] + sizes)  # as `isometry.secants` counts pairs
        if bool(apart.any()):
            worst = max(worst, float((after[apart] / before[apart] - 1).abs().max()))
    return worst
