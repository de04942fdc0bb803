"""The embedding module over stored tables, plain or compressed; features keep their partitions and operations.

Plain torch, for scoring and for further training without TorchRec.

Dimensions: B examples, D columns of a table, N ids of multi-hot bags.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlrmctl.embeddings.combine import Columns
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.embeddings.ids import SparseIds
from dlrmctl.embeddings.module import FeatureEmbeddings
from dlrmctl.embeddings.parts import Bags, segment_sum
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.embeddings.wide import WIDTH, summed_weights


class StoredEmbeddings(FeatureEmbeddings):
    """`FeatureEmbeddings` over stored tables.

    Args:
        features, dim: see `FeatureEmbeddings`.
        tables: one for each table of the features, by name.

    Raises:
        ValueError: if a table is missing or has other rows or columns.
    """

    def __init__(self, features: Sequence[FeatureTable], dim: int, tables: Mapping[str, Compressed]) -> None:
        super().__init__(features, dim)
        for wanted in self.tables:
            table = tables.get(wanted.name)
            if table is None:
                raise ValueError(f"table {wanted.name} is missing")
            if (table.num_rows, table.dim) != (wanted.rows, wanted.dim):
                raise ValueError(
                    f"table {wanted.name} has {table.num_rows:,} rows of {table.dim}, its feature needs "
                    f"{wanted.rows:,} of {wanted.dim}"
                )
        # Lists, because names of tables may hold characters that names of modules may not.
        self.bags = nn.ModuleList(tables[name] for name in self.bag_ids.tables)
        self.rows = nn.ModuleList(tables[name] for name in self.row_ids.tables)
        self._widths = [tables[name].dim for name in self.bag_ids.tables]

    def alone(self, name: str) -> "StoredEmbeddings":
        """Returns the module of one feature, over the same tables."""
        names = (*self.bag_ids.tables, *self.row_ids.tables)
        tables: dict[str, Any] = dict(zip(names, (*self.bags, *self.rows), strict=True))
        return StoredEmbeddings([feature for feature in self.features if feature.name == name], self.dim, tables)

    def pool(self, rows: SparseIds) -> list[Columns]:
        found = zip(self.bags, _pieces(rows), _weights(rows), strict=True)
        vectors = [
            pooled(
                table(ids) if weights is None else table(ids) * weights[:, None],
                None if rows.lengths_KB is None else lengths,
            )
            for table, (ids, lengths), weights in found
        ]
        return [Columns(torch.cat(vectors, dim=1), self.bag_ids.keys, self._widths)]

    def look_up(self, rows: SparseIds) -> dict[str, Bags]:
        found = zip(self.row_ids.keys, self.rows, _pieces(rows), _weights(rows), strict=True)
        return {key: Bags(table(ids), lengths, weights) for key, table, (ids, lengths), weights in found}


class StoredWeights(StoredEmbeddings):
    """First-order weights over stored tables; their sum for each example is float32 [B].

    Args:
        features: see `wide.wide_features`.
        tables: one for each table of the features, by name.
    """

    def __init__(self, features: Sequence[FeatureTable], tables: Mapping[str, Compressed]) -> None:
        super().__init__(features, WIDTH, tables)

    def combine(self, columns: Sequence[Columns]) -> Tensor:
        return summed_weights(columns)


def _pieces(rows: SparseIds) -> list[tuple[Tensor, Tensor]]:
    """The values (int64) and lengths of each key."""
    pieces = rows.values.long().split(rows.values_per_key())
    return [(ids, rows.lengths_of(key)) for key, ids in enumerate(pieces)]


def _weights(rows: SparseIds) -> Sequence[Tensor | None]:
    """The weights of the values of each key."""
    return [None] * len(rows.keys) if rows.weights is None else rows.weights.split(rows.values_per_key())


def compose(
    features: Sequence[FeatureTable], dim: int, tables: Mapping[str, Compressed], *, trainable: bool = False
) -> StoredEmbeddings:
    """Returns the embedding module of these features, over stored tables.

    Args:
        features: in the order of the output.
        dim: D of the embeddings.
        tables: one for each table of the features, by name.
        trainable: turn the stored numbers (rows, coordinates, codebooks) into float32 parameters; codes, bitmaps and
            formulas stay fixed.

    Raises:
        ValueError: if a table is missing or has other rows or columns.
    """
    return StoredEmbeddings(
        features, dim, {name: table.trainable() for name, table in tables.items()} if trainable else tables
    )


def pooled(rows_ND: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Returns [B, D]: the sum of each example's next `lengths` rows, 0 if there are none; None means one row each."""
    return rows_ND if lengths_B is None else segment_sum(rows_ND, lengths_B)
