"""The embedding module that is trained: its tables are TorchRec's."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.embedding_modules import EmbeddingCollection as UnpooledCollection

from dlrmctl.embeddings.combine import Columns
from dlrmctl.embeddings.ids import RowIds, SparseBatch, SparseIds
from dlrmctl.embeddings.init import Uniform, fill_rows, table_distributions
from dlrmctl.embeddings.module import FeatureEmbeddings
from dlrmctl.embeddings.parts import Bags
from dlrmctl.embeddings.tables import FeatureTable, Table
from dlrmctl.embeddings.wide import WIDTH, summed_weights

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class CompositionalEmbeddings(FeatureEmbeddings):
    """`FeatureEmbeddings` over TorchRec's collections.

    Tables that are pooled are in one EmbeddingBagCollection, `bags`. Tables that are looked up one by one are in
    `rows`, or in `wide_rows` if they have another width.

    Args:
        features, dim: see `FeatureEmbeddings`.
        device: "meta" for `sharding.shard`, which gives the tables memory and values; "cpu" for an unsharded module,
            whose tables start with the values that `shard` would give them.
        seed: seed of the initial values on "cpu".

    Raises:
        ValueError: as `FeatureEmbeddings`.
    """

    def __init__(self, features: Sequence[FeatureTable], dim: int, *, device: str = "meta", seed: int = 0) -> None:
        super().__init__(features, dim)
        self._pool_bags: Callable[[SparseIds], list[Columns]] | None = None
        target = torch.device(device)
        bags, rows = self._with_keys(self.bag_ids), self._with_keys(self.row_ids)
        # TorchRec weights all bags of a collection or none.
        self.weighted = any(feature.weighted for feature in self.features)
        self.bags = _bags(bags, target, weighted=self.weighted) if bags else None
        self.rows = _collection({table: keys for table, keys in rows.items() if table.dim == dim}, target)
        self.wide_rows = _collection({table: keys for table, keys in rows.items() if table.dim != dim}, target)
        if target.type != "meta":
            self._initialize(seed)

    def _with_keys(self, ids: RowIds) -> dict[Table, list[str]]:
        """Returns the tables of the ids, in their order, and the keys of each."""
        tables = {table.name: table for table in self.tables}
        found: dict[Table, list[str]] = {}
        for key, name in zip(ids.keys, ids.tables, strict=True):
            found.setdefault(tables[name], []).append(key)
        return found

    def forward(self, sparse: "SparseIds | SparseBatch | KeyedJaggedTensor") -> Tensor:
        """See `FeatureEmbeddings.forward`."""
        if torch.is_inference_mode_enabled():
            # FBGEMM has no kernels for inference mode, and tensors made in it cannot be used in training.
            with torch.inference_mode(False), torch.no_grad():
                return super().forward(sparse)
        return super().forward(sparse)

    def pool_with(self, lookup: Callable[[SparseIds], list[Columns]]) -> None:
        """Replaces `bags` by `lookup`, which pools the rows of every key of `bag_ids`."""
        self._pool_bags = lookup

    def pool(self, rows: SparseIds) -> list[Columns]:
        if self._pool_bags is not None:
            return self._pool_bags(rows)
        assert self.bags is not None
        pooled = _wait(self.bags(rows.kjt(weighted=self.weighted)))
        return [Columns(pooled.values(), pooled.keys(), pooled.length_per_key())]

    def look_up(self, rows: SparseIds) -> dict[str, Bags]:
        kjt, found = rows.kjt(), {}
        for collection in (self.rows, self.wide_rows):
            if collection is not None:
                found.update(_wait(collection(kjt)))
        weights: dict[str, Tensor | None] = dict.fromkeys(rows.keys)
        if rows.weights is not None:
            weights = dict(zip(rows.keys, rows.weights.split(rows.values_per_key()), strict=True))
        return {key: Bags(jagged.values(), jagged.lengths(), weights[key]) for key, jagged in found.items()}

    def distributions(self) -> dict[str, Uniform]:
        """Returns the distribution of the initial values of every table, by the table's name."""
        return table_distributions(self.features, self.dim)

    @torch.no_grad()
    def _initialize(self, seed: int) -> None:
        distributions = self.distributions()
        for name, weight in self.named_parameters():
            table = name.split(".")[-2]
            fill_rows(weight, distributions[table], table=table, seed=seed)


class WideTables(CompositionalEmbeddings):
    """First-order weights, all 0 at first, as TorchRec's tables; their sum for each example is float32 [B].

    Args:
        features: see `wide.wide_features`.
    """

    def __init__(self, features: Sequence[FeatureTable]) -> None:
        super().__init__(features, WIDTH)

    def combine(self, columns: Sequence[Columns]) -> Tensor:
        return summed_weights(columns)

    @property
    def combined_tables(self) -> set[str]:
        return set()  # all weights have one learning rate

    def distributions(self) -> dict[str, Uniform]:
        return {table.name: Uniform(0.0, 0.0) for table in self.tables}


def _wait(value: Any) -> Any:
    """Returns the result; waits for it if a sharded module returned an awaitable."""
    return value.wait() if hasattr(value, "wait") else value


def _bags(tables: Mapping[Table, list[str]], device: torch.device, *, weighted: bool = False) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        device=device,
        is_weighted=weighted,
        tables=[
            EmbeddingBagConfig(
                name=t.name,
                num_embeddings=t.rows,
                embedding_dim=t.dim,
                feature_names=keys,
                pooling=PoolingType.SUM,
            )
            for t, keys in tables.items()
        ],
    )


def _collection(tables: Mapping[Table, list[str]], device: torch.device) -> UnpooledCollection | None:
    if not tables:
        return None
    return UnpooledCollection(
        device=device,
        tables=[
            EmbeddingConfig(name=t.name, num_embeddings=t.rows, embedding_dim=t.dim, feature_names=keys)
            for t, keys in tables.items()
        ],
    )
