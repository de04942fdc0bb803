"""Compares a near-isometric map of a trained table with PCA and random projections.

The bound holds for the most important rows; its effect on the others is only measured.
Dimensions: n rows of the table, K of a sample, D columns, R of a map's image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.isometry.search import NearIsometry, fromax, nile_pro, silent
from dlrmctl.embeddings.compression.isometry.secants import NEIGHBOURS, Neighbours, Progress, Secants

OBJECTIVES = ("nile-pro", "fromax")
RANDOM_PROJECTIONS = 20


@dataclass(frozen=True)
class MapFigures:
    """The effect of one map on distances.

    Attributes:
        name: "nile-pro", "fromax", "pca", "pca weighted" or "random" (the best of 20 by `delta`).
        delta: the worst relative error of a squared distance between two rows of the sample, best scaling.
        recall: the share of a row's 10 nearest rows in the sample that stay among its 10 nearest; mean over rows.
        held_out_delta, held_out_recall: the same for rows outside the sample; None if there are too few.
    """

    name: str
    delta: float
    recall: float
    held_out_delta: float | None
    held_out_recall: float | None


@dataclass(frozen=True)
class NearIsometryReport:
    """A map and its comparison.

    Attributes:
        embedding: the map.
        figures: of the map, then of the others; all were made from the same rows.
        sample, held_out: int64, the rows that the map was made from, and the other rows it was measured on.
    """

    embedding: NearIsometry
    figures: tuple[MapFigures, ...]
    sample: Tensor
    held_out: Tensor


@torch.no_grad()
def near_isometric(
    table: Tensor,
    weights: Tensor | None,
    rank: int | None,
    objective: str = "nile-pro",
    rows: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    delta: float | None = None,
) -> NearIsometryReport:
    """Makes a map from the most important rows, and compares it with others.

    Args:
        table: [n, D], floating; only the rows that are used are copied.
        weights: [n], the importance of each row; None samples rows at random.
        rank: R; None if `delta` is given.
        objective: "nile-pro" or "fromax".
        rows: rows of the sample; time grows with its square.
        seed: seed of the samples and random projections.
        progress: called with the phase, the rounds done, and the maximum of rounds.
        delta: for "fromax", instead of `rank`: the bound to keep with the smallest rank.

    Raises:
        ValueError: if arguments do not fit each other, or `search.nile_pro` rejects the rows.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"{objective=} must be one of {', '.join(OBJECTIVES)}")
    if delta is not None and objective != "fromax":
        raise ValueError(f"{delta=} is for the objective fromax; {objective} takes a rank")
    if table.dim() != 2 or rows < 2:
        raise ValueError(f"a table of shape {tuple(table.shape)} and {rows=}: need two dimensions and two rows")
    if weights is not None and weights.shape != table.shape[:1]:
        raise ValueError(f"{weights.numel():,} weights for {table.shape[0]:,} rows")
    told, generator = progress or silent, torch.Generator().manual_seed(seed)
    sample, held_out = _samples(table.shape[0], weights, rows, generator)
    values = table[sample].double()
    if objective == "nile-pro":
        if rank is None:
            raise ValueError("the objective nile-pro needs a rank")
        found = nile_pro(values, rank, seed=seed, progress=told)
    else:
        found = fromax(values, rank=rank, delta=delta, seed=seed, progress=told)
    maps = {objective: found.projection.double(), "pca": _principal_directions(values, len(found.projection), None)}
    if weights is not None:
        maps["pca weighted"] = _principal_directions(values, len(found.projection), weights[sample])
    inside = Secants(values)
    maps["random"] = best_random_projection(inside, len(found.projection), table.shape[1], generator)
    figures = _compare(maps, inside, values, table[held_out].double())
    return NearIsometryReport(found, figures, sample, held_out)


def best_random_projection(secants: Secants, rank: int, dim: int, generator: torch.Generator) -> Tensor:
    """Returns the one of `RANDOM_PROJECTIONS` Gaussian matrices [R, D] that distorts least."""
    drawn = [torch.randn(rank, dim, generator=generator, dtype=torch.float64) for _ in range(RANDOM_PROJECTIONS)]
    return min(drawn, key=lambda projection: secants.extremes(secants.reduce(projection)).delta)


def _samples(total: int, weights: Tensor | None, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns the heaviest rows, or random ones; and as many random ones of the others."""
    if weights is None:
        sample = torch.randperm(total, generator=generator)[:rows].sort().values
    else:
        sample = torch.argsort(weights, descending=True, stable=True)[:rows].sort().values
    others = torch.ones(total, dtype=torch.bool)
    others[sample] = False
    rest = others.nonzero().squeeze(1)
    return sample, rest[torch.randperm(len(rest), generator=generator)[:rows]].sort().values


def _principal_directions(rows_KD: Tensor, rank: int, weights: Tensor | None) -> Tensor:
    shares = torch.ones(len(rows_KD)) if weights is None else weights
    shares = shares.double().clamp(min=0) / shares.double().clamp(min=0).sum().clamp(min=1e-300)
    centered = rows_KD - shares @ rows_KD
    _, vectors = torch.linalg.eigh((centered * shares[:, None]).T @ centered)
    return vectors.T.flip(0)[:rank]


def _compare(maps: dict[str, Tensor], inside: Secants, rows: Tensor, others: Tensor) -> tuple[MapFigures, ...]:
    near, outside, near_outside = Neighbours(rows), None, None
    if len(others) > NEIGHBOURS and bool((others != others[0]).any()):
        outside, near_outside = Secants(others), Neighbours(others)
    return tuple(
        MapFigures(
            name=name,
            delta=inside.extremes(inside.reduce(projection)).delta,
            recall=near.recall(projection),
            held_out_delta=outside.extremes(outside.reduce(projection)).delta if outside else None,
            held_out_recall=near_outside.recall(projection) if near_outside else None,
        )
        for name, projection in maps.items()
    )
