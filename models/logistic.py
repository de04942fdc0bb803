"""Logistic regression as a model: the sum of one weight per active feature.

B examples, I dense features, F sparse features, C columns: weights of dense features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlrmctl.models.inputs import StandardInputs


class Buckets(nn.Module):
    """Maps each dense feature to one active column: that of its bucket, or its first one where it is missing.

    Args:
        edges: the edges between the buckets of each feature, ascending; their number may differ. A value that equals
            an edge is above it.

    Attributes:
        num_columns: C, one more than buckets for each feature.

    Shapes:
        dense_BI [B, I] -> int64 [B, I], each in [0, C).
    """

    edges_IE: Tensor
    first_I: Tensor

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        super().__init__()
        most = max([1, *(len(edges_of) for edges_of in edges)])
        padded = [[*edges_of, *[float("inf")] * (most - len(edges_of))] for edges_of in edges]
        counts = torch.tensor([2 + len(edges_of) for edges_of in edges], dtype=torch.int64)
        self.num_columns = int(counts.sum())
        self.register_buffer("edges_IE", torch.tensor(padded, dtype=torch.float32).view(len(edges), most))
        self.register_buffer("first_I", counts.cumsum(0) - counts)

    def forward(self, dense_BI: Tensor) -> Tensor:
        above_IB = torch.searchsorted(self.edges_IE, dense_BI.T.contiguous(), right=True)
        bucket_BI = torch.minimum(above_IB.T, self._last_I()) + 1
        return torch.where(dense_BI.isnan(), 0, bucket_BI) + self.first_I

    def _last_I(self) -> Tensor:
        """Infinity is not above the padding."""
        return self.edges_IE.isfinite().sum(1)


class BucketLogits(nn.Module):
    """Sums the weights of the buckets of the dense features.

    Shapes:
        dense_BI [B, I] -> [B].
    """

    def __init__(self, buckets: Buckets) -> None:
        super().__init__()
        self.buckets = buckets
        self.weight_C = nn.Parameter(torch.zeros(buckets.num_columns))

    def forward(self, dense_BI: Tensor) -> Tensor:
        return self.weight_C[self.buckets(dense_BI)].sum(1)


class LinearLogits(nn.Module):
    """Multiplies normalized dense features, and indicators of missing ones, by weights.

    Shapes:
        dense_BI [B, I] -> [B].
    """

    def __init__(self, inputs: StandardInputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.weight_C = nn.Parameter(torch.zeros(inputs.out_features))

    def forward(self, dense_BI: Tensor) -> Tensor:
        return self.inputs(dense_BI) @ self.weight_C


class LogisticNetwork(nn.Module):
    """The dense part of a logistic regression: its intercept, and the logits of the dense features.

    Args:
        dense: maps dense features to a part of the logit.

    Shapes:
        dense_BI [B, I], NaN where missing, and weights_BF1 [B, F, 1], of the sparse features -> logits [B].
    """

    def __init__(self, dense: BucketLogits | LinearLogits) -> None:
        super().__init__()
        self.dense = dense
        self.intercept = nn.Parameter(torch.zeros(()))

    def forward(self, dense_BI: Tensor, weights_BF1: Tensor) -> Tensor:
        return self.intercept + self.dense(dense_BI) + weights_BF1.sum((1, 2))
