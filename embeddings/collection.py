"""The embedding module that is trained: its tables are TorchRec's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchrec.distributed.types import ShardedModule
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.embedding_modules import EmbeddingCollection as UnpooledCollection

from dlrmctl.embeddings.combine import Columns
from dlrmctl.embeddings.ids import RowIds, SparseBatch, SparseIds
from dlrmctl.embeddings.init import Uniform, fill_rows, table_distributions
from dlrmctl.embeddings.module import BatchRows, FeatureEmbeddings
from dlrmctl.embeddings.parts import Bags
from dlrmctl.embeddings.tables import FeatureTable, Table
from dlrmctl.embeddings.wide import WIDTH, summed_weights

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor


_DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}


class OneHotSender(Protocol):
    """Sends the rows of bags; `one_hot` is whether all bags of the next batch have one row, on all ranks."""

    one_hot: bool


class RowExchange:
    """The rows of one batch in a sharded collection, on their way from the ranks that have the examples to those that
    hold the tables.

    The ranks exchange how many rows each gets, and then, with `send` and `receive`, the rows. Every rank must take the
    same steps in the same order, but none waits for the tables.

    Args:
        collection: whose rows they are.
        kjt: the rows; the exchange of their numbers begins.
    """

    def __init__(self, collection: ShardedModule[Any, Any, Any, Any], kjt: "KeyedJaggedTensor") -> None:
        self._collection, self._context = collection, collection.create_context()
        self._numbers = collection.input_dist(self._context, kjt)
        self._under_way: Any = None
        self._received: Any = None
        self._found: Any = None

    def send(self) -> None:
        """Waits for the numbers of rows, and begins the exchange of the rows."""
        if self._under_way is None:
            self._under_way = self._numbers.wait()

    def receive(self) -> None:
        """Waits for the rows; in a stream of a GPU, only the stream does."""
        self.send()
        if self._received is None:
            self._received = self._under_way.wait()

    def begin_lookup(self) -> None:
        """Looks up the rows, and begins to send what is found to the ranks that have the examples."""
        self.receive()
        if self._found is None:
            self._found = self._collection.compute_and_output_dist(self._context, self._received)

    def look_up(self) -> Any:
        """Returns what the collection returns for this batch."""
        self.begin_lookup()
        return self._found.wait()

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of what was received until this stream of a GPU has used it."""
        self._received.record_stream(stream)
        self._context.record_stream(stream)


@dataclass(frozen=True)
class SentIds(SparseIds):
    """The rows of a batch that ranks exchange; `exchanges` are by the name of the collection."""

    exchanges: Mapping[str, RowExchange] = field(default_factory=dict)


class SentRows(BatchRows):
    """The rows of a batch on their way to the ranks that hold them. Every rank must take the same steps."""

    def send(self) -> None:
        """See `RowExchange.send`."""
        for exchange in self._exchanges():
            exchange.send()

    def receive(self) -> None:
        """See `RowExchange.receive`."""
        for exchange in self._exchanges():
            exchange.receive()

    def begin_lookup(self) -> None:
        """See `RowExchange.begin_lookup`; part of the forward pass."""
        for exchange in self._exchanges():
            exchange.begin_lookup()

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of what was received until this stream of a GPU has used it."""
        for ids in (self.pooled, self.single):
            for tensor in () if ids is None else (ids.values, ids.lengths_KB, ids.weights):
                if tensor is not None:
                    tensor.record_stream(stream)
        for exchange in self._exchanges():
            exchange.record_stream(stream)

    def _exchanges(self) -> Iterator[RowExchange]:
        for ids in (self.pooled, self.single):
            if isinstance(ids, SentIds):
                yield from ids.exchanges.values()


class CompositionalEmbeddings(FeatureEmbeddings):
    """`FeatureEmbeddings` over TorchRec's collections.

    Tables that are pooled are in one EmbeddingBagCollection, `bags`. Tables that are looked up one by one are in
    `rows`, or in `wide_rows` if they have another width.

    Args:
        features, dim: see `FeatureEmbeddings`.
        precision: type of the weights, "fp32" or "fp16"; embeddings are float32.
        device: "meta" for `sharding.shard`, which gives the tables memory and values; "cpu" for an unsharded module,
            whose tables start with the values that `shard` would give them.
        seed: seed of the initial values on "cpu".

    Raises:
        ValueError: as `FeatureEmbeddings`.
    """

    def __init__(
        self,
        features: Sequence[FeatureTable],
        dim: int,
        *,
        precision: str = "fp32",
        device: str = "meta",
        seed: int = 0,
    ) -> None:
        super().__init__(features, dim)
        self.precision = precision
        self._pool_bags: Callable[[SparseIds], list[Columns]] | None = None
        self._one_hot_senders: Sequence[OneHotSender] = ()
        target = torch.device(device)
        bags, rows = self._with_keys(self.bag_ids), self._with_keys(self.row_ids)
        # TorchRec weights all bags of a collection or none.
        self.weighted = any(feature.weighted for feature in self.features)
        kind = _DATA_TYPES[precision]
        narrow = {table: keys for table, keys in rows.items() if table.dim == dim}
        wide = {table: keys for table, keys in rows.items() if table.dim != dim}
        with _WithoutValues() if target.type == "meta" else nullcontext():
            self.bags = _bags(bags, target, kind, weighted=self.weighted) if bags else None
            self.rows, self.wide_rows = _collection(narrow, target, kind), _collection(wide, target, kind)
        if target.type != "meta":
            self._initialize(seed)

    def _with_keys(self, ids: RowIds) -> dict[Table, list[str]]:
        """Returns the tables of the ids, in their order, and the keys of each."""
        tables = {table.name: table for table in self.tables}
        found: dict[Table, list[str]] = {}
        for key, name in zip(ids.keys, ids.tables, strict=True):
            found.setdefault(tables[name], []).append(key)
        return found

    def forward(self, sparse: "SparseIds | SparseBatch | KeyedJaggedTensor | SentRows") -> Tensor:
        """See `FeatureEmbeddings.forward`; of a batch, or of what `rows_of` has returned for it."""
        if torch.is_inference_mode_enabled():
            # FBGEMM has no kernels for inference mode, and tensors made in it cannot be used in training.
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(sparse)
        return self.embed(sparse if isinstance(sparse, SentRows) else self.rows_of(sparse))

    def rows_of(self, sparse: "SparseIds | SparseBatch | KeyedJaggedTensor") -> SentRows:
        """See `FeatureEmbeddings.rows_of`; begins to send the rows to the ranks that hold them."""
        rows = super().rows_of(sparse)
        return SentRows(
            self._sent(rows.pooled, () if self._pool_bags else ("bags",), weighted=self.weighted),
            self._sent(rows.single, ("rows", "wide_rows")),
        )

    def _sent(self, rows: SparseIds | None, names: Sequence[str], *, weighted: bool = False) -> SparseIds | None:
        collections = {name: getattr(self, name) for name in names}
        sharded = {name: found for name, found in collections.items() if isinstance(found, ShardedModule)}
        if rows is None or not sharded:
            return rows
        for sender in self._one_hot_senders:
            sender.one_hot = rows.lengths_KB is None
        kjt = rows.kjt(weighted=weighted)
        exchanges = {name: RowExchange(collection, kjt) for name, collection in sharded.items()}
        known = (rows.keys, rows.values, rows.lengths_KB, rows.batch_size, rows.weights, rows.values_per_key())
        return SentIds(*known, exchanges=exchanges)

    def pool_with(self, lookup: Callable[[SparseIds], list[Columns]]) -> None:
        """Replaces `bags` by `lookup`, which pools the rows of every key of `bag_ids`."""
        self._pool_bags = lookup

    def send_bags_with(self, senders: "Sequence[OneHotSender]") -> None:
        """Tells these of each batch that ranks exchange whether all its bags have one row."""
        self._one_hot_senders = senders

    def pool(self, rows: SparseIds) -> list[Columns]:
        if self._pool_bags is not None:
            return self._pool_bags(rows)
        if isinstance(rows, SentIds):
            pooled = rows.exchanges["bags"].look_up()
        else:
            assert self.bags is not None
            pooled = self.bags(rows.kjt(weighted=self.weighted))
        return [Columns(pooled.values(), pooled.keys(), pooled.length_per_key())]

    def look_up(self, rows: SparseIds) -> dict[str, Bags]:
        found: dict[str, JaggedTensor] = {}
        if isinstance(rows, SentIds):
            for exchange in rows.exchanges.values():
                found.update(exchange.look_up())
        else:
            kjt = rows.kjt()
            for collection in (self.rows, self.wide_rows):
                if collection is not None:
                    found.update(collection(kjt))
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


class _WithoutValues(TorchFunctionMode):
    """Skips the initial values of torch's tables: on "meta", computing none takes most of the time of a table."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func is nn.init.normal_ else func(*args, **kwargs or {})


def _bags(
    tables: Mapping[Table, list[str]], device: torch.device, kind: DataType, *, weighted: bool
) -> EmbeddingBagCollection:
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
                data_type=kind,
            )
            for t, keys in tables.items()
        ],
    )


def _collection(tables: Mapping[Table, list[str]], device: torch.device, kind: DataType) -> UnpooledCollection | None:
    if not tables:
        return None
    return UnpooledCollection(
        device=device,
        tables=[
            EmbeddingConfig(name=t.name, num_embeddings=t.rows, embedding_dim=t.dim, feature_names=keys, data_type=kind)
            for t, keys in tables.items()
        ],
    )
