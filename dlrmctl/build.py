"""From settings to a model on its ranks: tables sharded, dense network replicated, an optimizer for each."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.schema import Schema
from dlrmctl.config import Config, OptimSettings
from dlrmctl.errors import UserError
from dlrmctl.ranks import Ranks
from dlrmctl.tables import feature_tables
from embeddings.collection import CompositionalEmbeddings
from embeddings.sharding import PlacementError, Sharded, shard
from embeddings.state import sparse_state
from models import DLRM, DenseNetwork
from optim.schedule import Schedule
from optim.shampoo import (
    AdaGradGrafting,
    AdamGrafting,
    DistributedShampoo,
    RMSpropGrafting,
    SGDGrafting,
)
from optim.shampoo.grafting import Grafting


@dataclass
class Model:
    """A DLRM on this rank.

    `embeddings` are the sharded tables, `network` the dense half, `replicated` the same half with its gradients
    averaged over ranks.
    """

    sharded: Sharded
    network: DenseNetwork
    replicated: nn.Module

    @property
    def embeddings(self) -> nn.Module:
        return self.sharded.dmp

    @property
    def inference(self) -> DLRM:
        return DLRM(self.embeddings, self.network)

    def tensors(self) -> dict[str, dict[str, Any]]:
        """The weights by name, for checkpoints: live tensors, so that loading into them changes the model."""
        tables = {name: value for name, value in sparse_state(self.sharded.dmp).items() if name.endswith("/weight")}
        return {"tables": tables, "network": self.network.state_dict()}


def build_model(
    config: Config, schema: Schema, ranks: Ranks, *, batch_size: int, memory_bytes: int | None = None
) -> Model:
    """The model of the settings with its initial values, which depend on the seed alone.

    Args:
        batch_size: examples per rank and step, for the plan.
        memory_bytes: what each rank may use for tables; default: what the device has left.

    Raises:
        UserError: if the tables do not fit the settings or the memory; said before any of it is taken.
    """
    settings = config.embeddings
    assert config.optim.qr_lr is not None
    tables = feature_tables(config, schema)
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
    network = build_dense_network(config, schema, ranks.device)
    replicated: nn.Module = network
    if ranks.world_size > 1:
        replicated = DistributedDataParallel(
            network,
            device_ids=None if ranks.device.type == "cpu" else [ranks.device.index],
            process_group=ranks.group,
            gradient_as_bucket_view=True,
            static_graph=True,
        )
    return Model(sharded, network, replicated)


def build_dense_network(config: Config, schema: Schema, device: torch.device) -> DenseNetwork:
    """The dense half with its initial values, which depend on the seed alone."""
    return DenseNetwork(
        num_dense=len(schema.dense),
        num_features=sum(table.vectors for table in feature_tables(config, schema)),
        dim=config.embeddings.dim,
        bottom=config.model.bottom_mlp,
        top=config.model.top_mlp,
        interaction=config.model.interaction,
        generator=torch.Generator().manual_seed(config.train.seed),
    ).to(device)


def build_dense_optimizer(settings: OptimSettings, network: nn.Module, ranks: Ranks) -> torch.optim.Optimizer:
    """The optimizer of the MLPs. Tables never reach it."""
    return dense_optimizer(settings, network, ranks.group if ranks.world_size > 1 else None)


def dense_optimizer(
    settings: OptimSettings, network: nn.Module, group: dist.ProcessGroup | None
) -> torch.optim.Optimizer:
    """The same for the ranks of `group`, or for this process alone."""
    assert settings.dense_lr is not None
    parameters, lr, decay = list(network.parameters()), settings.dense_lr, settings.weight_decay
    # One pass over memory on CPU; a GPU has no fused adagrad.
    kernel = {"fused": True} if parameters[0].device.type == "cpu" else {"foreach": True}
    if settings.dense_optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=lr, weight_decay=decay, eps=settings.dense_eps, **kernel)
    if settings.dense_optimizer == "adamw":
        betas = (settings.beta1 or 0.9, settings.beta2 if settings.beta2 < 1 else 0.999)
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=decay, eps=settings.dense_eps, **kernel)
    if settings.dense_optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum, weight_decay=decay, **kernel)
    assert settings.shampoo_start is not None
    return DistributedShampoo(
        network.named_parameters(),
        lr=lr,
        betas=(settings.beta1, settings.beta2),
        relative_epsilon=settings.shampoo_epsilon,
        momentum=settings.momentum,
        weight_decay=decay,
        use_decoupled_weight_decay=True,
        max_preconditioner_dim=settings.shampoo_block,
        precondition_frequency=settings.shampoo_frequency,
        start_preconditioning_step=settings.shampoo_start,
        grafting_config=_grafting(settings),
        # One side: the root of that factor alone, to the power -1/2, and none for the other.
        inverse_exponent_override={2: {0: 0.5, 1: 0.0}} if settings.shampoo_sides == 1 else None,
        precondition_vectors=False,
        stagger_refresh=True,
        statistics_frequency=settings.shampoo_statistics,
        process_group=group,
    )


def _grafting(settings: OptimSettings) -> Grafting | None:
    beta2 = settings.beta2 if settings.beta2 < 1 else 0.999
    if settings.grafting == "adagrad":
        return AdaGradGrafting(epsilon=settings.dense_eps)
    if settings.grafting == "rmsprop":
        return RMSpropGrafting(beta2=beta2, epsilon=settings.dense_eps)
    if settings.grafting == "adam":
        return AdamGrafting(beta2=beta2, epsilon=settings.dense_eps)
    return SGDGrafting() if settings.grafting == "sgd" else None


def build_schedule(config: Config, steps: int) -> Schedule:
    """The learning-rate factor over a run of so many steps; decay without a length ends with it."""
    settings = config.schedule
    warmup_steps = min(steps // 20, 1000) if settings.warmup_steps is None else settings.warmup_steps
    ramp = warmup_steps + settings.hold_steps
    decay_steps = 0 if settings.decay == "none" else settings.decay_steps or max(steps - ramp, 1)
    return Schedule(
        warmup_steps=warmup_steps,
        hold_steps=settings.hold_steps,
        decay_steps=decay_steps,
        decay="cosine" if settings.decay == "cosine" else "polynomial",
        floor=settings.final_lr_factor,
    )
