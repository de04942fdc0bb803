"""Weighted k-means on rows that fit in memory, and the nearest center of any number of rows.

Dimensions: N rows, D columns, K centers.
"""

import numpy as np
import torch
from torch import Tensor

# Rows whose scores against all centers are held at once: 4 MB of float32 for 256 centers, which stays in the cache.
_SCORES = 2**20
_SEED_ROWS = 16_384


def nearest(rows_ND: Tensor, centers_KD: Tensor) -> Tensor:
    """The index of the nearest center of each row, int64 [N]; the first of several."""
    half_norms = centers_KD.square().sum(1) / 2
    step = max(1, _SCORES // len(centers_KD))
    found = np.empty(len(rows_ND), dtype=np.int64)
    for start in range(0, len(rows_ND), step):
        scores = torch.addmm(half_norms, rows_ND[start : start + step], centers_KD.T, alpha=-1)
        # numpy's argmin is several times faster than torch's on a CPU.
        found[start : start + step] = scores.numpy().argmin(1)
    return torch.from_numpy(found)


def fit_centers(
    rows_ND: Tensor, weights: Tensor, size: int, generator: torch.Generator, *, iterations: int = 25
) -> Tensor:
    """Centers that minimize the weighted squared distance, by Lloyd's algorithm from k-means++.

    Args:
        rows_ND: float32.
        weights: [N], >= 0.
        size: K, at most N.
        generator: decides the start.

    Returns:
        float32 [K, D]. A center nobody is nearest to moves to the row that is worst off.
    """
    centers = _spread_out(rows_ND, weights, size, generator)
    for _ in range(iterations):
        codes = nearest(rows_ND, centers)
        sums, totals = weighted_sums(rows_ND, weights, codes, size)
        moved = torch.where(totals[:, None] > 0, sums / totals.clamp(min=1e-30)[:, None], centers)
        empty = (totals == 0).nonzero().squeeze(1)
        if empty.numel():
            error = (rows_ND - centers[codes]).square().sum(1) * weights
            worst = torch.topk(error, empty.numel())
            gains = worst.values > 0
            moved[empty[gains]] = rows_ND[worst.indices[gains]]
        done = torch.equal(moved, centers)
        centers = moved
        if done:
            break
    return centers


def weighted_sums(rows_ND: Tensor, weights: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The sum of weighted rows and of weights of each code: [K, D] and [K]."""
    sums = rows_ND.new_zeros(size, rows_ND.shape[1]).index_add_(0, codes, rows_ND * weights[:, None])
    return sums, weights.new_zeros(size).index_add_(0, codes, weights)


def _spread_out(rows_ND: Tensor, weights: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next center is a row drawn by its weighted distance to those before.

    Source: Arthur and Vassilvitskii, SODA 2007.
    """
    if len(rows_ND) > max(_SEED_ROWS, 4 * size):
        some = torch.multinomial(weights.double(), max(_SEED_ROWS, 4 * size), generator=generator)
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
        if float(chances.sum()) == 0:  # fewer different rows than centers
            chances = weights.double()
    return centers
