"""The embedding module: sparse features in, one vector per feature out.

Dimensions: B examples, F features, D columns, N ids of multi-hot bags.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.types import LazyAwaitable
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.embedding_modules import EmbeddingCollection as UnpooledCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from embeddings.ids import RowIds
from embeddings.init import fill_rows, table_distributions
from embeddings.tables import FeatureTable, Table


class CompositionalEmbeddings(nn.Module):
    """Embeds each feature as its `FeatureTable` says and sums over the ids of a bag.

    Wherever summing and combining commute, all tables live in one EmbeddingBagCollection, `bags`, and rows are combined
    after pooling. A product of sums is not the sum of products, so multi-hot features with operation "mult" look their
    rows up one by one in `rows`, multiply, and then sum.

    Args:
        features: in the order of the output.
        dim: columns D of every embedding, a multiple of 4 (of 8 where a feature has operation "concat").
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
        self.num_features = len(self.features)
        names = [f.name for f in self.features]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"features must have different names, at least one: {names}")
        pooled = [f for f in self.features if f.pools_before_combining]
        unpooled = [f for f in self.features if not f.pools_before_combining]
        self.bag_ids, self.row_ids = RowIds(pooled), RowIds(unpooled)
        self.combine = _Combine(self.features, dim)
        target = torch.device(device)
        self.bags = _bags(_in_order(pooled, dim, self.bag_ids.keys), target) if pooled else None
        self.rows = _unpooled(_in_order(unpooled, dim, self.row_ids.keys), target) if unpooled else None
        if target.type != "meta":
            self._initialize(seed)

    def forward(self, kjt: KeyedJaggedTensor) -> Tensor:
        """
        Args:
            kjt: ids in [0, rows) of at least these features.

        Returns:
            float32 [B, F, D]; the vector of an empty bag is 0.
        """
        pooled = None if self.bags is None else self.bags(self.bag_ids(kjt))
        rows = None if self.rows is None else self.rows(self.row_ids(kjt))
        return self.combine(pooled, rows)

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


class _Combine(nn.Module):
    """Puts the vectors of all features together, in order."""

    def __init__(self, features: Sequence[FeatureTable], dim: int) -> None:
        super().__init__()
        self.dim = dim
        pairs = {
            operation: [f.name for f in features if f.kind == "qr" and f.operation == operation and _pools(f)]
            for operation in ("mult", "add")
        }
        self.mult, self.add = pairs["mult"], pairs["add"]
        self.unpooled = [f.name for f in features if not _pools(f)]
        # The halves of a concatenation simply stand side by side.
        self.keys = [
            key
            for f in features
            for key in ((f"{f.name}@q", f"{f.name}@r") if f.kind == "qr" and f.operation == "concat" else (f.name,))
        ]
        paired = {*self.mult, *self.add, *self.unpooled}
        self.single = [key for key in self.keys if key not in paired]

    def forward(self, pooled: Any, rows: Any) -> Tensor:
        """
        Args:
            pooled: what the EmbeddingBagCollection returned, or None: a KeyedTensor with one key per table.
            rows: what the EmbeddingCollection returned, or None: a dict of JaggedTensors by table.

        Returns:
            [B, F, D].
        """
        parts = [] if pooled is None else self._combine_pooled(_wait(pooled))
        if rows is not None:
            parts.append(_keyed(self.unpooled, self.dim, self._sum_of_products(_wait(rows))))
        if len(parts) == 1 and parts[0].keys() == self.keys:
            values_BFD = parts[0].values()
        else:
            values_BFD = KeyedTensor.regroup(parts, [self.keys])[0]
        return values_BFD.view(values_BFD.shape[0], -1, self.dim)

    def _combine_pooled(self, pooled: KeyedTensor) -> list[KeyedTensor]:
        if not self.mult and not self.add:
            return [pooled]  # the order of its keys follows the sharding plan
        mult_q, mult_r = [f"{name}@q" for name in self.mult], [f"{name}@r" for name in self.mult]
        add_q, add_r = [f"{name}@q" for name in self.add], [f"{name}@r" for name in self.add]
        groups = [keys for keys in (self.single, mult_q, mult_r, add_q, add_r) if keys]
        pieces = iter(KeyedTensor.regroup([pooled], groups))
        parts = []
        if self.single:
            dims = dict(zip(pooled.keys(), pooled.length_per_key(), strict=True))
            parts.append(KeyedTensor(self.single, [dims[key] for key in self.single], next(pieces)))
        if self.mult:
            parts.append(_keyed(self.mult, self.dim, next(pieces) * next(pieces)))
        if self.add:
            parts.append(_keyed(self.add, self.dim, next(pieces) + next(pieces)))
        return parts

    def _sum_of_products(self, rows: dict[str, Any]) -> Tensor:
        """[B, features * D]: the sum over each bag of the products of its ids' rows."""
        q_ND = torch.cat([rows[f"{name}@q"].values() for name in self.unpooled])
        r_ND = torch.cat([rows[f"{name}@r"].values() for name in self.unpooled])
        lengths = torch.cat([rows[f"{name}@q"].lengths() for name in self.unpooled])
        summed_FBD = segment_sum(q_ND * r_ND, lengths).view(len(self.unpooled), -1, self.dim)
        return summed_FBD.transpose(0, 1).reshape(summed_FBD.shape[1], -1)


@torch.fx.wrap
def segment_sum(values_ND: Tensor, lengths: Tensor) -> Tensor:
    """Sums consecutive rows: row i of the result is the sum of the next `lengths[i]` rows; 0 where that is none."""
    return torch.segment_reduce(values_ND, "sum", lengths=lengths.long(), axis=0, initial=0.0)


def _pools(feature: FeatureTable) -> bool:
    return feature.pools_before_combining


def _wait(value: Any) -> Any:
    """The result itself, where a sharded module returned a promise of it."""
    return value.wait() if isinstance(value, LazyAwaitable) else value


def _keyed(keys: list[str], dim: int, values: Tensor) -> KeyedTensor:
    return KeyedTensor(keys, [dim] * len(keys), values)


def _in_order(features: Sequence[FeatureTable], dim: int, keys: Sequence[str]) -> list[Table]:
    tables = {table.name: table for feature in features for table in feature.tables(dim)}
    return [tables[key] for key in keys]


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


def _unpooled(tables: Sequence[Table], device: torch.device) -> UnpooledCollection:
    return UnpooledCollection(
        device=device,
        tables=[
            EmbeddingConfig(name=t.name, num_embeddings=t.rows, embedding_dim=t.dim, feature_names=[t.name])
            for t in tables
        ],
    )
