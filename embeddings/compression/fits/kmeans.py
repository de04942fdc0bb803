"""Weighted k-means.

Dimensions: N rows, D columns, K centers.
"""

import numpy as np
import torch
from torch import Tensor

from dlrmctl.embeddings.compression.fits.cores import map_in_order

# Scores of rows against centers that are held at once: 512 KB of float32, to stay in the cache of one core.
_SCORES = 2**17
_START_ROWS = 16  # for each center, from which a start is drawn
# The algorithm ends when rows with less than this share of the weight change their center.
_SETTLED = 1e-3


def nearest(rows_ND: Tensor, centers_KD: Tensor) -> Tensor:
    """Returns the index of the nearest center of each row, int64 [N]; the first of equals."""
    half_norms_K = centers_KD.square().sum(1) / 2
    block = max(1, _SCORES // len(centers_KD))

    def find(rows_ND: Tensor) -> Tensor:
        scores = torch.empty(min(block, len(rows_ND)), len(centers_KD))
        found = np.empty(len(rows_ND), dtype=np.int64)
        for start in range(0, len(rows_ND), block):
            some = rows_ND[start : start + block]
            torch.addmm(half_norms_K, some, centers_KD.T, alpha=-1, out=scores[: len(some)])
            # numpy's argmin is several times faster than torch's on a CPU.
            scores[: len(some)].numpy().argmin(1, out=found[start : start + len(some)])
        return torch.from_numpy(found)

    if len(rows_ND) <= block:
        return find(rows_ND)
    blocks = -(-len(rows_ND) // (block * torch.get_num_threads()))
    return torch.cat(list(map_in_order(find, rows_ND.split(blocks * block))))


def fit_centers(
    rows_ND: Tensor,
    weights: Tensor,
    size: int,
    generator: torch.Generator,
    *,
    steps: int,
    start: Tensor | None = None,
) -> Tensor:
    """Returns centers that minimize the weighted squared distance, by Lloyd's algorithm from k-means++.

    Args:
        rows_ND: float32.
        weights: [N], >= 0.
        size: K, at most N.
        generator: source of the start.
        steps: most steps of Lloyd's algorithm.
        start: centers to start from instead, float32 [K, D].

    Returns:
        float32 [K, D]. A center that is nearest to no row moves to the row with the largest error.
    """
    centers = _spread_out(rows_ND, weights, size, generator) if start is None else start
    before, settled = None, _SETTLED * float(weights.sum())
    for _ in range(steps):
        codes = nearest(rows_ND, centers)
        moved, totals = means(rows_ND, weights, codes, centers)
        empty = (totals == 0).nonzero().squeeze(1)
        if empty.numel():
            error = (rows_ND - centers[codes]).square().sum(1) * weights
            worst = torch.topk(error, empty.numel())
            gains = worst.values > 0
            moved[empty[gains]] = rows_ND[worst.indices[gains]]
        done = before is not None and float(weights[codes != before].sum()) <= settled and not empty.numel()
        done |= torch.equal(moved, centers)
        centers, before = moved, codes
        if done:
            break
    return centers


def means(rows_ND: Tensor, weights: Tensor, codes: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weighted means of the rows of each code, or its center where it has none, and the sums of weights."""
    sums = torch.zeros_like(centers).index_add_(0, codes, rows_ND * weights[:, None])
    totals = weights.new_zeros(len(centers)).index_add_(0, codes, weights)
    return torch.where(totals[:, None] > 0, sums / totals.clamp(min=1e-30)[:, None], centers), totals


def _spread_out(rows_ND: Tensor, weights: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next center is a row drawn by its weighted distance to those before.

    Source: Arthur and Vassilvitskii, SODA 2007.
    """
    if len(rows_ND) > _START_ROWS * size:
        some = torch.multinomial(weights.double(), _START_ROWS * size, generator=generator)
        rows_ND, weights = rows_ND[some], torch.ones(len(some))
    draws = torch.rand(size, generator=generator, dtype=torch.float64)
    norms = rows_ND.square().sum(1)
    centers = torch.empty(size, rows_ND.shape[1])
    distance = torch.full_like(weights, torch.inf)
    chances = weights.double()
    for index in range(size):
        reached = chances.cumsum(0)
        chosen = int(torch.searchsorted(reached, draws[index] * reached[-1]).clamp(max=len(rows_ND) - 1))
        centers[index] = rows_ND[chosen]
        to_new = (norms + norms[chosen]).sub_(rows_ND @ centers[index], alpha=2).clamp_(min=0)
        distance = torch.minimum(distance, to_new)
        chances = (distance * weights).double()
        if float(chances.sum()) == 0:  # fewer distinct rows than centers
            chances = weights.double()
    return centers
