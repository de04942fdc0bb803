"""Builds the model on this rank: sharded tables and a replicated dense network."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dlrmctl.assembly.inputs import DenseInputs, fitted_inputs
from dlrmctl.assembly.network import build_dense_network, scoring_model
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.sharding.placement import PlacementError
from dlrmctl.embeddings.sharding.shard import Sharded, shard, sparse_state
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM, DenseNetwork
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import Config


@dataclass
class Model:
    """A DLRM on this rank.

    `embeddings` are the sharded tables, `network` is the dense half, `replicated` the same half with gradients averaged
    over ranks.
    """

    sharded: Sharded
    network: DenseNetwork
    replicated: nn.Module
    precision: str = "fp32"

    @property
    def embeddings(self) -> nn.Module:
        return self.sharded.dmp

    @property
    def inference(self) -> DLRM:
        device = next(self.network.parameters()).device
        return scoring_model(self.embeddings, self.network, self.precision, device)

    def tensors(self) -> dict[str, dict[str, Any]]:
        """Returns the weights by name, for checkpoints: live tensors, so that loading into them changes the model."""
        tables = {name: value for name, value in sparse_state(self.sharded.dmp).items() if name.endswith("/weight")}
        return {"tables": tables, "network": self.network.state_dict()}


def build_model(
    config: Config,
    features: FeatureSpace,
    ranks: Ranks,
    *,
    batch_size: int,
    memory_bytes: int | None = None,
    inputs: DenseInputs | None = None,
) -> Model:
    """Builds the model of the settings with its initial values, which depend on the seed alone.

    Args:
        features: of the data.
        batch_size: examples per rank and step, for the plan.
        memory_bytes: memory of each rank for tables; default: the free memory of the device.
        inputs: the transform of the dense features; default: that of the settings and the data.

    Raises:
        UserError: if the tables do not fit the settings or the memory, before anything is allocated.
    """
    settings = config.embeddings
    tables = feature_tables(config, features.schema)
    try:
        sharded = shard(
            CompositionalEmbeddings(tables, settings.dim),
            device=ranks.device,
            group=ranks.group,
            local_world_size=ranks.local_world_size,
            batch_size=batch_size,
            seed=config.train.seed,
            sparse_lr=config.optim.sparse_lr,
            qr_lr=config.optim.qr_lr,
            eps=config.optim.sparse_eps,
            sharding=settings.sharding,
            memory_bytes=memory_bytes,
        )
    except PlacementError as problem:
        raise UserError(
            str(problem), "--embedding qr with a larger --compress-ratio, a smaller --dim, or more ranks"
        ) from None
    inputs = inputs or fitted_inputs(config, features)
    network = build_dense_network(config, features.schema, ranks.device, inputs)
    replicated: nn.Module = network
    if ranks.world_size > 1:
        replicated = DistributedDataParallel(
            network,
            device_ids=None if ranks.device.type == "cpu" else [ranks.device.index],
            process_group=ranks.group,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # they are the same on all ranks from the beginning
            static_graph=True,
        )
    return Model(sharded, network, replicated, config.train.precision)
