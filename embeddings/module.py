"""The base class of embedding modules: from sparse features to vectors.

Dimensions: B examples, F vectors (one per feature, unless its rows are features of their own), D columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dlrmctl.embeddings.combine import Columns, Combiner
from dlrmctl.embeddings.ids import IdCheck, RowIds, SparseBatch, SparseIds
from dlrmctl.embeddings.parts import Bags, UnpooledFeatures, feature_parts
from dlrmctl.embeddings.tables import FeatureTable, Lookup, Table, distinct_tables

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True)
class BatchRows:
    """The rows of a batch in all tables, whatever the tables hold.

    Attributes:
        pooled, single: rows of tables that are pooled, and of those that are looked up one by one; None if there are no
            such tables.
    """

    pooled: SparseIds | None
    single: SparseIds | None


class FeatureEmbeddings(nn.Module, ABC):
    """Embeds each feature as its `FeatureTable` says and sums over the ids of a bag.

    Where summing and combining commute, rows are pooled first and combined afterwards. A product of sums is not the sum
    of products, so multi-hot features with operation "mult" or "path" look up single rows, combine them, and then sum.
    Subclasses implement the lookups: `pool` and `look_up`.

    Args:
        features: the features, in the order of the output.
        dim: columns D of every embedding, a multiple of 4 (of 4 times the tables of a feature with "concat").

    Attributes:
        bag_ids, row_ids: map ids to rows of the tables that are pooled, and of those that are looked up one by one;
            their `keys` are those of the columns, their `tables` the names of the tables.

    Raises:
        ValueError: if there are no features, names repeat, or D does not fit.
    """

    def __init__(self, features: Sequence[FeatureTable], dim: int) -> None:
        super().__init__()
        self.features = tuple(features)
        self.dim = dim
        self.num_vectors = sum(feature.vectors for feature in self.features)
        names = [f.name for f in self.features]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"feature names must be unique, with at least one: {names}")
        pooled, unpooled = _lookups(self.features)
        self._check_ids = IdCheck(self.features)
        self.bag_ids, self.row_ids = RowIds(pooled), RowIds(unpooled)
        self._combiner = Combiner(feature_parts(self.features, dim), self.num_vectors, dim)
        self._unpooled = UnpooledFeatures([f for f in self.features if not f.pools_before_combining], dim)

    def forward(self, sparse: "SparseIds | SparseBatch | KeyedJaggedTensor") -> Tensor:
        """Embeds a batch.

        Args:
            sparse: ids in [0, rows) of at least these features.

        Returns:
            float32 [B, F, D], in the order of the features; a feature with operation "features" gives one vector per
            table, in their order. The vector of an empty bag is 0.

        Raises:
            ValueError: if a feature is missing; on CPU also if an id is outside [0, rows) or a bag too large.
        """
        return self.embed(self.rows_of(sparse))

    def rows_of(self, sparse: "SparseIds | SparseBatch | KeyedJaggedTensor") -> BatchRows:
        """Returns the rows of a batch's ids: the part of `forward` that needs no table; see there."""
        ids = SparseIds.of(sparse)
        self._check_ids(ids)
        pooled = self.bag_ids(ids) if self.bag_ids.keys else None
        return BatchRows(pooled, self.row_ids(ids) if self.row_ids.keys else None)

    def embed(self, rows: BatchRows) -> Tensor:
        """Returns the vectors of a batch: the part of `forward` that needs the tables; see there."""
        columns: list[Columns] = []
        if rows.pooled is not None:
            columns += self.pool(rows.pooled)
        if rows.single is not None:
            columns.append(self._unpooled(self.look_up(rows.single)))
        return self.combine(columns)

    def combine(self, columns: Sequence[Columns]) -> Tensor:
        """Returns the output for the columns of all tables, and those of features that were summed row by row."""
        return self._combiner(columns)

    @abstractmethod
    def pool(self, rows: SparseIds) -> list[Columns]:
        """Returns the sums of the rows of every bag, for all keys of `bag_ids`."""

    @abstractmethod
    def look_up(self, rows: SparseIds) -> Mapping[str, Bags]:
        """Returns the row of every id, by the keys of `row_ids`."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """Every table once, feature by feature."""
        return distinct_tables(self.features, self.dim)

    @property
    def combined_tables(self) -> set[str]:
        """Names of the tables whose rows are combined with those of another; they have their own learning rate."""
        return {name for feature in self.features for name in feature.combined_tables}


def _lookups(features: Sequence[FeatureTable]) -> tuple[list[Lookup], list[Lookup]]:
    """Splits features into those whose rows are summed first, and those whose rows are combined first."""
    pooled: list[Lookup] = []
    unpooled: list[Lookup] = []
    for feature in features:
        *heads, last = feature.lookups
        pooled += heads
        (pooled if feature.pools_before_combining else unpooled).append(last)
    return pooled, unpooled
