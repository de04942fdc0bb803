"""First-order weights: one for every id, and one for every bucket of a dense feature. The logit has their sum added.

A feature's weights have the partition of its embedding, but tables of their own where features share those of their
vectors. Ids that share rows share weights, and the weight of an id with rows in several tables is the sum of theirs.

Kernels need four columns, so a weight is the first of `WIDTH` columns, and the others stay 0. Row-wise AdaGrad takes
the mean of g^2 over all of them, s = (sum of g^2) / WIDTH, which `column_settings` makes up for: the step is that of
tables with one column.

Dimensions: B examples, I dense features, E edges of each, F features.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dlrmctl.embeddings.combine import Columns
from dlrmctl.embeddings.ids import SparseBatch, SparseIds
from dlrmctl.embeddings.tables import FeatureTable

WIDTH = 4
BUCKETS = 32  # of a dense feature, besides that of missing values


def wide_features(features: Sequence[FeatureTable], bucketed: Sequence[str]) -> list[FeatureTable]:
    """Returns the tables of the first-order weights, in the order of the features.

    Args:
        features: the sparse features as they are embedded.
        bucketed: names of the dense features with buckets.
    """
    own = [replace(feature, table=None, most_ids=1) for feature in features]
    summed = [feature if feature.combination is None else replace(feature, operation="add") for feature in own]
    return [*summed, *(FeatureTable(name, 1 + BUCKETS) for name in bucketed)]


def column_settings(lr: float, eps: float) -> tuple[float, float]:
    """Returns the learning rate and epsilon for `WIDTH` columns that step like these for one column.

    lr g / (sqrt(sum of g^2) + eps) = (lr / sqrt(WIDTH)) g / (sqrt(mean of g^2) + eps / sqrt(WIDTH))
    """
    return lr / math.sqrt(WIDTH), eps / math.sqrt(WIDTH)


def summed_weights(columns: Sequence[Columns]) -> Tensor:
    """Returns the sum of each example's weights, float32 [B]: of the first columns of all tables, equally wide ones.

    In float64, whose rounding vanishes in float32: so the order of the tables, another on every number of ranks, does
    not show in the sum.
    """
    sums = (found.values[:, :: found.widths[0]].sum(1, dtype=torch.float64) for found in columns)
    return sum(sums, start=torch.zeros((), dtype=torch.float64)).float()


def padded_edges(edges: Sequence[Sequence[float]]) -> Tensor:
    """Returns the edges of each dense feature as float32 [I, E], padded with infinity."""
    rows = [[*row, *[math.inf] * (BUCKETS - 1 - len(row))] for row in edges]
    return torch.tensor(rows, dtype=torch.float32).view(len(rows), BUCKETS - 1)


def bucket_ids(dense_BI: Tensor, edges_IE: Tensor) -> Tensor:
    """Returns the bucket of each value, int64 [I, B]: 0 if it is missing, else 1 + the number of edges up to it."""
    dense_IB = dense_BI.T.contiguous()
    ids_IB = torch.searchsorted(edges_IE, dense_IB, right=True) + 1
    return ids_IB.masked_fill_(dense_IB.isnan(), 0)


class Wide(nn.Module):
    """The first-order part of a logit.

    Args:
        weights: sums the weights of `wide_features` for each example, [B].
        bucketed: names of the dense features with buckets: all or none.
        edges_IE: lower edges of their buckets but the first, ascending.

    Shapes:
        dense_BI [B, I] and sparse ids -> [B].

    Source: Cheng et al., arXiv:1606.07792, without crossed features.
    """

    edges_IE: Tensor

    def __init__(self, weights: nn.Module, bucketed: Sequence[str], edges_IE: Tensor) -> None:
        super().__init__()
        self.weights, self.bucketed = weights, tuple(bucketed)
        self.register_buffer("edges_IE", edges_IE)

    def forward(self, dense_BI: Tensor, sparse: SparseIds | SparseBatch) -> Tensor:
        sum_B: Tensor = self.weights(self.ids_of(dense_BI, sparse))
        return sum_B

    def ids_of(self, dense_BI: Tensor, sparse: SparseIds | SparseBatch) -> SparseIds:
        """Returns the ids whose weights are summed: those of the batch, and the buckets of its dense features."""
        sparse = SparseIds.of(sparse)
        if not self.bucketed:
            return sparse
        ids_IB, lengths_KB, weights = bucket_ids(dense_BI, self.edges_IE), sparse.lengths_KB, sparse.weights
        counts = None
        if lengths_KB is not None:
            counts = [*sparse.values_per_key(), *[sparse.batch_size] * len(self.bucketed)]
            lengths_KB = torch.cat([lengths_KB, lengths_KB.new_ones(ids_IB.shape)])
        if weights is not None:
            weights = torch.cat([weights, weights.new_ones(ids_IB.numel())])
        ids = torch.cat([sparse.values, ids_IB.flatten().to(sparse.values.dtype)])
        return SparseIds((*sparse.keys, *self.bucketed), ids, lengths_KB, sparse.batch_size, weights, counts)
