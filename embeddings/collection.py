"""The embedding module: sparse features in, one vector per feature out.

Dimensions: B examples, F features, D columns, N ids of multi-hot bags.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag
from torchrec.distributed.types import LazyAwaitable
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.embedding_modules import EmbeddingCollection as UnpooledCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embeddings.quiet  # noqa: F401
from embeddings.combine import Combiner, Part
from embeddings.ids import IdCheck, OneHotTest, RowIds
from embeddings.init import fill_rows, table_distributions
from embeddings.local import Columns, LocalBags
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
        self._is_one_hot = OneHotTest()
        self._check_ids = IdCheck(self.features, self._is_one_hot)
        self._local_bags: LocalBags | None = None
        self.bag_ids, self.row_ids = RowIds(pooled, self._is_one_hot), RowIds(unpooled, self._is_one_hot)
        self._combiner = Combiner(_parts(self.features, dim), self.num_features, dim)
        self._unpooled_names = [f.name for f in unpooled]
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
            rows = _wait(self.rows(self.row_ids(kjt)))
            summed = _sum_of_products(rows, self._unpooled_names, self.dim)
            columns.append(Columns(summed, self._unpooled_names, [self.dim] * len(self._unpooled_names)))
        return self._combiner(columns)

    def use_local_bags(self, kernels: Sequence[tuple[BatchedFusedEmbeddingBag, list[str]]]) -> None:
        """Looks up pooled features in these kernels, which hold all tables of `bags`, from now on."""
        self._local_bags = LocalBags(kernels, self.bag_ids.keys, self._is_one_hot)

    def _pool(self, kjt: KeyedJaggedTensor) -> list[Columns]:
        if self._local_bags is not None:
            return self._local_bags(kjt)
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


def _parts(features: Sequence[FeatureTable], dim: int) -> list[Part]:
    """What each feature's vector is made of, by the keys of tables; a feature summed in `rows` comes as one piece."""
    parts = []
    for index, feature in enumerate(features):
        if feature.kind != "qr" or not feature.pools_before_combining:
            parts.append(Part(index, 0, dim, "copy", feature.name))
            continue
        quotient, remainder = feature.tables(dim)
        if feature.operation == "concat":
            parts.append(Part(index, 0, dim // 2, "copy", quotient.name))
            parts.append(Part(index, dim // 2, dim // 2, "copy", remainder.name))
        else:
            parts.append(Part(index, 0, dim, feature.operation, quotient.name, remainder.name))
    return parts


def _sum_of_products(rows: dict[str, Any], names: list[str], dim: int) -> Tensor:
    """[B, features * D]: the sum over each bag of the products of its ids' rows."""
    q_ND = torch.cat([rows[f"{name}@q"].values() for name in names])
    r_ND = torch.cat([rows[f"{name}@r"].values() for name in names])
    lengths = torch.cat([rows[f"{name}@q"].lengths() for name in names])
    summed_FBD = segment_sum(q_ND * r_ND, lengths).view(len(names), -1, dim)
    return summed_FBD.transpose(0, 1).reshape(summed_FBD.shape[1], -1)


@torch.fx.wrap
def segment_sum(values_ND: Tensor, lengths: Tensor) -> Tensor:
    """Sums consecutive rows: row i of the result is the sum of the next `lengths[i]` rows; 0 where that is none."""
    return torch.segment_reduce(values_ND, "sum", lengths=lengths.long(), axis=0, initial=0.0)


def _wait(value: Any) -> Any:
    """The result itself, where a sharded module returned a promise of it."""
    return value.wait() if isinstance(value, LazyAwaitable) else value


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
