"""A sample of a table's rows that stands for all of them."""

import numpy as np
import torch
from torch import Tensor

from embeddings.compression.source import TableRows


def weighted_sample(table: TableRows, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most `size` rows with weights under which sums are right on average.

    Heavy rows are all in, with their own weight. The others are in with a chance proportional to their weight, and then
    with the threshold's weight: no other scheme of that size has less variance for sums of weights. Rows are drawn
    systematically, so that every stretch of ids is represented.

    Returns:
        float32 [n, D] and [n].
    """
    if table.num_rows <= size:
        return table.take(torch.arange(table.num_rows))
    weights = table.weights if table.index is None else table.weights[table.index]
    threshold = _threshold(weights, size)
    chances = weights.double().div_(threshold).clamp_(max=1.0).cumsum_(0)
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    points = torch.arange(int(chances[-1] - offset) + 1, dtype=torch.float64) + offset
    chosen = torch.searchsorted(chances, points).clamp_(max=table.num_rows - 1).unique()
    values, own = table.take(chosen)
    return values, own.clamp(min=threshold)


def _threshold(weights: Tensor, size: int) -> float:
    """t with sum_i min(1, w_i / t) = size, given more than `size` weights above 0."""
    # numpy's partition needs a quarter of the memory of torch's topk.
    heaviest = np.partition(weights.numpy(), len(weights) - size)[len(weights) - size :]
    ordered = torch.from_numpy(np.sort(heaviest)[::-1].astype(np.float64))
    rest = weights.sum(dtype=torch.float64) - ordered.cumsum(0) + ordered  # of all but the first k, for every k
    # With the first k rows certain, the others share the size - k places that are left.
    tried = rest / (size - torch.arange(size))
    return float(tried[int((ordered <= tried).nonzero()[0])])
