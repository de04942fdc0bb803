"""The embedding module: sparse features in, their vectors out.

Dimensions: B examples, F vectors (one per feature, unless its rows are features of their own), D columns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.embedding_modules import EmbeddingCollection as UnpooledCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrmctl.embeddings.combine import Columns, Combiner, UnpooledFeatures, feature_parts
from dlrmctl.embeddings.ids import IdCheck, OneHotTest, RowIds
from dlrmctl.embeddings.init import fill_rows, table_distributions
from dlrmctl.embeddings.tables import FeatureTable, Lookup, Table


class CompositionalEmbeddings(nn.Module):
    """Embeds each feature as its `FeatureTable` says and sums over the ids of a bag.

    Wherever summing and combining commute, tables live in one EmbeddingBagCollection, `bags`, and rows are combined
    after pooling. A product of sums is not the sum of products, so multi-hot features with operation "mult" or "path"
    look their rows up one by one in `rows` (and those of another width in `wide_rows`), combine, and then sum.

    Args:
        features: in the order of the output.
        dim: columns D of every embedding, a multiple of 4 (of 4 times the tables of a feature with "concat").
        device: "meta" for `sharding.shard`, which gives the tables memory and values; "cpu" for a module in one piece,
            whose tables start with the values that `shard` would give them.
        seed: of the initial values on "cpu".

    Raises:
        ValueError: if there are no features, names repeat, or D does not fit.
    """

    def __init__(self, features: Sequence[FeatureTable], dim: int, *, device: str = "meta", seed: int = 0) -> None:
        super().__init__()
        self.features = tuple(features)
        self.dim = dim
        self.num_vectors = sum(feature.vectors for feature in self.features)
        names = [f.name for f in self.features]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"features must have different names, at least one: {names}")
        pooled, unpooled = _lookups(self.features)
        self.is_one_hot = OneHotTest()
        self._check_ids = IdCheck(self.features, self.is_one_hot)
        self._pool_bags: Callable[[KeyedJaggedTensor], list[Columns]] | None = None
        self.bag_ids, self.row_ids = RowIds(pooled, self.is_one_hot), RowIds(unpooled, self.is_one_hot)
        self._combiner = Combiner(feature_parts(self.features, dim), self.num_vectors, dim)
        self._unpooled = UnpooledFeatures([f for f in self.features if not f.pools_before_combining], dim)
        target = torch.device(device)
        tables = {table.name: table for table in self.tables}
        self.bags = _bags([tables[key] for key in self.bag_ids.keys], target) if pooled else None
        rows = [tables[key] for key in self.row_ids.keys]
        self.rows = _collection([table for table in rows if table.dim == dim], target)
        self.wide_rows = _collection([table for table in rows if table.dim != dim], target)
        if target.type != "meta":
            self._initialize(seed)

    def forward(self, kjt: KeyedJaggedTensor) -> Tensor:
        """
        Args:
            kjt: ids in [0, rows) of at least these features.

        Returns:
            float32 [B, F, D], F vectors in the order of the features, those of a feature with operation "features" in
            the order of its tables; the vector of an empty bag is 0.

        Raises:
            ValueError: if a feature is missing; on CPU also if an id is outside [0, rows) or a bag too large.
        """
        if torch.is_inference_mode_enabled():
            # FBGEMM has no kernels for that mode, and tensors kept from it could not be used in training.
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(kjt)
        self._check_ids(kjt)
        columns: list[Columns] = []
        if self.bags is not None:
            columns += self._pool(self.bag_ids(kjt))
        if self.rows is not None:
            row_kjt = self.row_ids(kjt)
            rows = _wait(self.rows(row_kjt))
            if self.wide_rows is not None:
                rows = {**rows, **_wait(self.wide_rows(row_kjt))}
            columns.append(self._unpooled(rows))
        return self._combiner(columns)

    def pool_with(self, lookup: Callable[[KeyedJaggedTensor], list[Columns]]) -> None:
        """Uses `lookup` in place of `bags` from now on; it pools the rows of every key of `bag_ids`."""
        self._pool_bags = lookup

    def _pool(self, kjt: KeyedJaggedTensor) -> list[Columns]:
        if self._pool_bags is not None:
            return self._pool_bags(kjt)
        assert self.bags is not None
        pooled = _wait(self.bags(kjt))
        return [Columns(pooled.values(), pooled.keys(), pooled.length_per_key())]

    @property
    def tables(self) -> tuple[Table, ...]:
        """Every table, feature by feature."""
        return tuple(table for feature in self.features for table in feature.tables(self.dim))

    @torch.no_grad()
    def _initialize(self, seed: int) -> None:
        distributions = table_distributions(self.features, self.dim)
        for name, weight in self.named_parameters():
            table = name.split(".")[-2]
            fill_rows(weight, distributions[table], table=table, seed=seed)


def _lookups(features: Sequence[FeatureTable]) -> tuple[list[Lookup], list[Lookup]]:
    """Those whose rows are summed over a bag first, and those whose rows are combined first."""
    pooled: list[Lookup] = []
    unpooled: list[Lookup] = []
    for feature in features:
        *heads, last = feature.lookups
        pooled += heads
        (pooled if feature.pools_before_combining else unpooled).append(last)
    return pooled, unpooled


def _wait(value: Any) -> Any:
    """The result itself, where a sharded module returned a promise of it."""
    return value.wait() if hasattr(value, "wait") else value


def _bags(tables: Sequence[Table], device: torch.device) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        device=device,
        tables=[
            EmbeddingBagConfig(
                name=t.name,
                num_embeddings=t.rows,
                embedding_dim=t.dim,
                feature_names=[t.name],
                pooling=PoolingType.SUM,
            )
            for t in tables
        ],
    )


def _collection(tables: Sequence[Table], device: torch.device) -> UnpooledCollection | None:
    if not tables:
        return None
    return UnpooledCollection(
        device=device,
        tables=[
            EmbeddingConfig(name=t.name, num_embeddings=t.rows, embedding_dim=t.dim, feature_names=[t.name])
            for t in tables
        ],
    )
