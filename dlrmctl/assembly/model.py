"""Builds the model on this rank: sharded tables and a replicated dense network."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dlrmctl.assembly.inputs import DenseInputs, fitted_inputs
from dlrmctl.assembly.network import build_dense_network, scoring_model
from dlrmctl.assembly.storage import IN_ITS_OWN_MEMORY, TableStorage, table_storage
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.assembly.wide import EDGES, wide_terms
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.embeddings.collection import CompositionalEmbeddings, WideTables
from dlrmctl.embeddings.sharding.codecs import CodecError
from dlrmctl.embeddings.sharding.placement import PlacementError
from dlrmctl.embeddings.sharding.shard import Sharded, shard, sparse_state
from dlrmctl.embeddings.wide import Wide, column_settings
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM, DenseNetwork
from dlrmctl.optim.thresholding import ThresholdedGradients
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import DCT_REFRESH, Config, OptimSettings
from dlrmctl.settings.exchange import dense_ratio, table_codec


@dataclass(frozen=True)
class WidePart:
    """The first-order part of a model: its sharded tables, and the module around them."""

    sharded: Sharded
    module: Wide


@dataclass
class Model:
    """A DLRM on this rank.

    `embeddings` are the sharded tables, `network` is the dense half, `replicated` the same half with gradients averaged
    over ranks, `wide` the first-order part, if any. `thresholded` selects what ranks exchange of the network's
    gradients; None for all of it.
    """

    sharded: Sharded
    network: DenseNetwork
    replicated: nn.Module
    precision: str = "fp32"
    wide: WidePart | None = None
    thresholded: ThresholdedGradients | None = None

    @property
    def embeddings(self) -> nn.Module:
        return self.sharded.dmp

    @property
    def inference(self) -> DLRM:
        device = next(self.network.parameters()).device
        wide = None if self.wide is None else self.wide.module
        return scoring_model(self.embeddings, self.network, self.precision, device, wide)

    def set_learning_rates(self, optim: OptimSettings, factor: float) -> None:
        """Sets the learning rates of all tables to those of the settings times a factor."""
        self.sharded.set_learning_rates(sparse_lr=optim.sparse_lr * factor, qr_lr=optim.qr_lr * factor)
        if self.wide is not None:
            lr, _ = column_settings(optim.wide_lr * factor, optim.sparse_eps)
            self.wide.sharded.set_learning_rates(sparse_lr=lr, qr_lr=lr)

    def tensors(self, *, with_sums: bool = False) -> dict[str, dict[str, Any]]:
        """Returns the weights by name, for checkpoints: live tensors, so that loading into them changes the model.

        Args:
            with_sums: whether to include the state of the optimizer of tables.
        """
        tensors: dict[str, dict[str, Any]] = {
            "tables": _table_tensors(self.sharded, with_sums),
            "network": self.network.state_dict(),
        }
        if self.wide is not None:
            tensors["wide"] = {EDGES: self.wide.module.edges_IE} | _table_tensors(self.wide.sharded, with_sums)
        return tensors


def _table_tensors(sharded: Sharded, with_sums: bool) -> dict[str, Any]:
    tensors = sparse_state(sharded.dmp)
    return {name: value for name, value in tensors.items() if with_sums or name.endswith("/weight")}


def build_model(
    config: Config,
    features: FeatureSpace,
    ranks: Ranks,
    *,
    batch_size: int,
    memory_bytes: tuple[int | None, int | None] = (None, None),
    inputs: DenseInputs | None = None,
    base_rate: float | None = None,
) -> Model:
    """Builds the model of the settings with its initial values, which depend on the seed alone.

    Args:
        features: of the data.
        batch_size: examples per rank and step, for the plan.
        memory_bytes: memory of each rank for tables, and for first-order weights; default: the free memory of the
            device.
        inputs: the transform of the dense features; default: that of the settings and the data.
        base_rate: see `build_dense_network`.

    Raises:
        UserError: if the tables do not fit the settings or the memory, before anything is allocated.
    """
    storage = table_storage(config, ranks.device.type)
    tables = CompositionalEmbeddings(
        feature_tables(config, features.schema), config.embeddings.dim, precision=storage.table_precision
    )
    optim = config.optim
    rates = {"sparse_lr": optim.sparse_lr, "qr_lr": optim.qr_lr, "eps": optim.sparse_eps}
    codec = table_codec(config.train.compress_a2a)
    sharded = _sharded(tables, rates, config, ranks, batch_size, memory_bytes[0], codec, storage=storage)
    wide = None
    if config.model.wide:
        wide = _wide_part(config, features, ranks, batch_size, memory_bytes[1])
    inputs = inputs or fitted_inputs(config, features)
    network = build_dense_network(config, features.schema, ranks.device, inputs, base_rate=base_rate)
    replicated: nn.Module = network
    thresholded = None
    if ranks.world_size > 1:
        replicated = ddp = DistributedDataParallel(
            network,
            device_ids=None if ranks.device.type == "cpu" else [ranks.device.index],
            process_group=ranks.group,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # they are the same on all ranks from the beginning
        )
        if ratio := dense_ratio(config.train.compress_dense):
            thresholded = ThresholdedGradients(
                dict(network.named_parameters()),
                ratio=ratio,
                refresh=config.train.dct_refresh or DCT_REFRESH,
                group=ranks.group,
            )
            ddp.register_comm_hook(thresholded, ThresholdedGradients.reduce)
    return Model(sharded, network, replicated, config.train.precision, wide, thresholded)


def _wide_part(
    config: Config, features: FeatureSpace, ranks: Ranks, batch_size: int, memory_bytes: int | None
) -> WidePart:
    """Builds the first-order part; all its weights start at 0."""
    terms = wide_terms(config, features)
    tables = WideTables(terms.features)
    lr, eps = column_settings(config.optim.wide_lr, config.optim.sparse_eps)
    rates = {"sparse_lr": lr, "qr_lr": lr, "eps": eps}
    sharded = _sharded(tables, rates, config, ranks, batch_size, memory_bytes)
    return WidePart(sharded, Wide(sharded.dmp, terms.bucketed, terms.edges_IE.to(ranks.device)))


def _sharded(
    tables: CompositionalEmbeddings,
    rates: dict[str, float],
    config: Config,
    ranks: Ranks,
    batch_size: int,
    memory_bytes: int | None,
    codec: tuple[str, int] | None = None,
    *,
    storage: TableStorage = IN_ITS_OWN_MEMORY,
) -> Sharded:
    try:
        return shard(
            tables,
            device=ranks.device,
            group=ranks.group,
            local_world_size=ranks.local_world_size,
            batch_size=batch_size,
            seed=config.train.seed,
            sharding=config.embeddings.sharding,
            memory_bytes=memory_bytes,
            codec=codec,
            placement=storage.placement,
            uvm_cache=storage.uvm_cache,
            sparse_lr=rates["sparse_lr"],
            qr_lr=rates["qr_lr"],
            eps=rates["eps"],
        )
    except CodecError as problem:
        raise UserError(
            f"train.compress_a2a = {config.train.compress_a2a}: {problem}",
            "--sharding table_wise, tables of one width, or --compress-a2a fp16",
        ) from None
    except PlacementError as problem:
        raise UserError(
            str(problem), "--embedding qr with a larger --compress-ratio, a smaller --dim, or more ranks"
        ) from None
