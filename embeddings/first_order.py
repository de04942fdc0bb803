"""One weight for every row: the sparse part of a linear model.

Dimensions: B examples, F features, R rows of all features together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlrmctl.embeddings.ids import IdCheck, RowIds, SparseBatch, SparseIds
from dlrmctl.embeddings.tables import FeatureTable


class FirstOrder(nn.Module):
    """Sums the weights of the ids of each feature; an id counts as often as it occurs, or by its weights in the batch.

    Args:
        features: with one table each ("full" or "hash"), in the order of the output.

    Attributes:
        weight_R: the rows of all features, one feature after another.

    Raises:
        ValueError: if a feature has more than one table.

    Shapes:
        sparse ids -> [B, F, 1].
    """

    first_F: Tensor

    def __init__(self, features: Sequence[FeatureTable]) -> None:
        super().__init__()
        self.features = tuple(features)
        several = [feature.name for feature in features if len(feature.keys) > 1]
        if several:
            raise ValueError(f"feature {several[0]} has more than one table, and a linear model sums single rows")
        self.sizes = [sum(feature.partition.table_rows) for feature in features]
        self._check_ids, self._row_ids = IdCheck(features), RowIds([lookup for f in features for lookup in f.lookups])
        self.weight_R = nn.Parameter(torch.zeros(sum(self.sizes)))
        sizes_F = torch.tensor(self.sizes, dtype=torch.int64)
        self.register_buffer("first_F", sizes_F.cumsum(0) - sizes_F, persistent=False)

    def rows(self, sparse: SparseIds | SparseBatch) -> SparseIds:
        """Returns the places in `weight_R` of the ids of a batch, int64.

        Raises:
            ValueError: if a feature is missing; on CPU also if an id is outside [0, rows).
        """
        ids = SparseIds.of(sparse)
        self._check_ids(ids)
        rows = self._row_ids(ids)
        counts_F = torch.tensor(rows.values_per_key(), dtype=torch.int64, device=rows.values.device)
        first_N = self.first_F.repeat_interleave(counts_F)
        return SparseIds(rows.keys, rows.values + first_N, rows.lengths_KB, rows.batch_size, rows.weights)

    def forward(self, sparse: SparseIds | SparseBatch) -> Tensor:
        rows = self.rows(sparse)
        weights_N = self.weight_R[rows.values]
        if rows.weights is not None:
            weights_N = weights_N * rows.weights
        if rows.lengths_KB is None:
            return weights_N.view(-1, rows.batch_size).T.unsqueeze(2)
        bags_N = torch.arange(rows.lengths_KB.numel(), device=weights_N.device)
        bags_N = bags_N.repeat_interleave(rows.lengths_KB.reshape(-1))
        sums = weights_N.new_zeros(rows.lengths_KB.numel()).index_add_(0, bags_N, weights_N)
        return sums.view(rows.lengths_KB.shape).T.unsqueeze(2)

    def tables(self) -> dict[str, Tensor]:
        """Returns copies of the weights of every table, [rows, 1], by its name."""
        keys = [key for feature in self.features for key in feature.keys]
        parts = self.weight_R.detach().split(self.sizes)
        return {key: part.unsqueeze(1).clone() for key, part in zip(keys, parts, strict=True)}
