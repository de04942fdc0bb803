"""The parts of each feature's vectors: rows that are pooled or looked up one by one, and then combined.

Dimensions: B examples, D columns, N ids of multi-hot bags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrmctl.embeddings.combine import Columns, VectorPart, combined
from dlrmctl.embeddings.tables import FeatureTable


def feature_parts(features: Sequence[FeatureTable], dim: int) -> list[VectorPart]:
    """Returns the parts of all vectors, by the keys of tables; those of `UnpooledFeatures` by the feature's name."""
    parts: list[VectorPart] = []
    vector = 0
    for feature in features:
        *heads, last = feature.lookups
        # An id has rows in the head or in the tail, never in both, so the sum is either of them.
        parts += [VectorPart(vector, 0, dim, "copy", head.keys) for head in heads]
        accumulate = bool(heads)
        operation = feature.combination
        if operation is None:
            parts.append(VectorPart(vector, 0, dim, "copy", last.keys))
        elif not feature.pools_before_combining:
            parts.append(VectorPart(vector, 0, dim, "copy", (feature.name,), accumulate))
        elif operation == "features":
            parts += [VectorPart(vector + index, 0, dim, "copy", (key,)) for index, key in enumerate(last.keys)]
        elif operation == "concat":
            width = dim // len(last.keys)
            parts += [
                VectorPart(vector, i * width, width, "copy", (key,), accumulate) for i, key in enumerate(last.keys)
            ]
        else:
            parts.append(VectorPart(vector, 0, dim, operation, operand_keys(feature), accumulate))
        vector += feature.vectors
    return parts


def operand_keys(feature: FeatureTable) -> tuple[str, ...]:
    """Returns the keys of the combined tables, in the order of the operation: a path starts at the large table."""
    keys = feature.combined_keys
    return keys[::-1] if feature.combination == "path" and feature.value_part == 1 else keys


@dataclass(frozen=True)
class Bags:
    """The rows of one table, float32 [N, D], bag by bag, and the number of rows of each bag, [B].

    `weights_N` multiply what the rows are combined to; None if all are 1.
    """

    rows_ND: Tensor
    lengths_B: Tensor
    weights_N: Tensor | None = None


class UnpooledFeatures:
    """Combines the rows of each id of multi-hot features, and sums over the ids of each bag.

    Args:
        features: with operation "mult" or "path".
        dim: D.
    """

    def __init__(self, features: Sequence[FeatureTable], dim: int) -> None:
        self.dim = dim
        # Features of the same kind are combined together.
        self._groups: dict[tuple[str, int], list[FeatureTable]] = {}
        for feature in features:
            assert feature.combination is not None
            self._groups.setdefault((feature.combination, len(feature.combined_keys)), []).append(feature)
        self.names = [feature.name for group in self._groups.values() for feature in group]

    def __call__(self, rows: Mapping[str, Bags]) -> Columns:
        """Combines and sums the rows of a batch.

        Args:
            rows: the rows of every id, by the keys of the tables.

        Returns:
            A vector per example and feature, by the features' names.
        """
        summed_B = []
        for (operation, parts), group in self._groups.items():
            operands = [operand_keys(feature) for feature in group]
            values = [torch.cat([rows[keys[part]].rows_ND for keys in operands]) for part in range(parts)]
            combined_ND = combined(operation, values)
            weights = [rows[keys[0]].weights_N for keys in operands]
            if any(weights_N is not None for weights_N in weights):
                ones = [
                    rows[keys[0]].rows_ND.new_ones(len(rows[keys[0]].rows_ND)) if weights_N is None else weights_N
                    for keys, weights_N in zip(operands, weights, strict=True)
                ]
                combined_ND = combined_ND * torch.cat(ones)[:, None]
            lengths = torch.cat([rows[keys[0]].lengths_B for keys in operands])
            summed_FBD = segment_sum(combined_ND, lengths).view(len(group), -1, self.dim)
            summed_B.append(summed_FBD.transpose(0, 1).flatten(1))
        return Columns(torch.cat(summed_B, dim=1), self.names, [self.dim] * len(self.names))


@torch.fx.wrap
def segment_sum(values_ND: Tensor, lengths: Tensor) -> Tensor:
    """Sums consecutive rows: row i of the result is the sum of the next `lengths[i]` rows, or 0 if there are none."""
    # Its check of the lengths would make a GPU wait.
    unsafe = values_ND.is_cuda
    return torch.segment_reduce(values_ND, "sum", lengths=lengths.long(), axis=0, initial=0.0, unsafe=unsafe)
