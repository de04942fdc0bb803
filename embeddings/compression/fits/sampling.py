"""Draws samples of a table's rows whose weighted sums are those of the table, up to chance."""

import numpy as np
import torch
from torch import Tensor

from dlrmctl.embeddings.compression.fits.trained import TableRows


def weighted_sample(table: TableRows, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws rows by `sample_ids`.

    Returns:
        float32 [n, D] and [n].
    """
    ids, weights = sample_ids(table, size, generator)
    return table.take(ids)[0], weights


def sample_ids(table: TableRows, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws at most `size` rows, with weights that keep sums unbiased.

    All heavy rows are drawn, with their own weight. The others are drawn with a probability proportional to their
    weight, and get the threshold's weight; no other scheme of that size has less variance for sums of weights. Rows are
    drawn systematically, so that every range of ids is represented.

    Returns:
        Positions, int64 [n] in increasing order, and weights, float32 [n].
    """
    weights = table.weights if table.index is None else table.weights[table.index]
    if table.num_rows <= size:
        return torch.arange(table.num_rows), weights
    threshold = _threshold(weights, size)
    chances = weights.double().div_(threshold).clamp_(max=1.0).cumsum_(0)
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    points = torch.arange(int(chances[-1] - offset) + 1, dtype=torch.float64) + offset
    chosen = torch.searchsorted(chances, points).clamp_(max=table.num_rows - 1).unique()
    return chosen, weights[chosen].clamp(min=threshold)


def _threshold(weights: Tensor, size: int) -> float:
    """Returns t with sum_i min(1, w_i / t) = size, given more than `size` weights above 0."""
    # numpy's partition needs a quarter of the memory of torch's topk.
    heaviest = np.partition(weights.numpy(), len(weights) - size)[len(weights) - size :]
    ordered = torch.from_numpy(np.sort(heaviest)[::-1].astype(np.float64))
    rest = weights.sum(dtype=torch.float64) - ordered.cumsum(0) + ordered  # of all but the first k, for every k
    # If the first k rows are certain, the others share the remaining size - k places.
    tried = rest / (size - torch.arange(size))
    return float(tried[int((ordered <= tried).nonzero()[0])])
