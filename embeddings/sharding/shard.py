"""Shards the tables of a model over ranks, and returns their tensors for checkpoints; the rest is replicated."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import (
    DataParallelWrapper,
    DefaultDataParallelWrapper,
    DistributedModelParallel,
)
from torchrec.distributed.types import ShardingEnv, ShardingPlan

from dlrmctl.embeddings.collection import CompositionalEmbeddings, WideTables
from dlrmctl.embeddings.init import fill_rows
from dlrmctl.embeddings.sharding.codecs import WHOLE_TABLES_ONLY, TableExchange, check_codec, codec_registry
from dlrmctl.embeddings.sharding.fused import LearningRates, attach_rowwise_adagrad, kernels
from dlrmctl.embeddings.sharding.local import LocalBags, LocalWeights
from dlrmctl.embeddings.sharding.memory import available_bytes
from dlrmctl.embeddings.sharding.one_hot import send_one_hot_in_one
from dlrmctl.embeddings.sharding.placement import Placement, make_plan, place_on_devices, rank_bytes, sharders


@dataclass(frozen=True)
class Sharded:
    """A sharded model with its plan and learning rates.

    Attributes:
        dmp: the sharded model; call it like the model. Its backward updates the tables.
        embeddings: the CompositionalEmbeddings inside.
        plan: the place of every table.
        bytes_per_rank: bytes of tables and their optimizer state.
        learning_rates: learning rates of the tables on this rank.
        exchange: the compression of what ranks exchange; None without one.
    """

    dmp: DistributedModelParallel
    embeddings: CompositionalEmbeddings
    plan: list[Placement]
    bytes_per_rank: list[int]
    learning_rates: LearningRates
    exchange: TableExchange | None = None

    def set_learning_rates(self, *, sparse_lr: float, qr_lr: float) -> None:
        """Sets the learning rates of tables used directly and of combined tables, from the next backward on."""
        self.learning_rates.set(sparse_lr=sparse_lr, qr_lr=qr_lr)


def shard(
    model: nn.Module,
    *,
    device: torch.device,
    batch_size: int,
    seed: int,
    sparse_lr: float,
    qr_lr: float,
    eps: float = 1e-8,
    sharding: str = "auto",
    memory_bytes: int | None = None,
    local_world_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    codec: tuple[str, int] | None = None,
    placement: str = "hbm",
    uvm_cache: float = 0.2,
) -> Sharded:
    """Shards the tables of `model` over the ranks of `group`; every rank must call it.

    Initial values of tables depend only on `seed` and the table, not on ranks or plan; those of dense parameters are
    rank 0's. With one rank nothing is wrapped in DistributedDataParallel. The batches of all ranks must have as many
    examples, and either all or none of them lengths.

    Args:
        model: is or contains one CompositionalEmbeddings built on "meta"; the rest has values. It is modified.
        device: of this rank.
        batch_size: examples per rank and step.
        sparse_lr, qr_lr, eps: see `fused.attach_rowwise_adagrad`.
        sharding: "table_wise", "row_wise", or "auto": the planner decides for each table.
        memory_bytes: memory of each rank for tables; default: the free memory of the device.
        local_world_size: ranks on this host; default: all.
        group: the ranks; default: the world.
        codec: kind and k of the codec for what ranks exchange, see `codecs.check_codec`; None: none. One rank exchanges
            nothing. With "auto", tables are kept whole for a codec that needs it.
        placement, uvm_cache: see `placement.make_plan`.

    Raises:
        ValueError: if a setting is out of bounds, or the model does not have exactly one CompositionalEmbeddings.
        PlacementError: if the tables do not fit the memory, before anything is allocated.
        CodecError: if the codec cannot serve a table.
    """
    group = group or dist.group.WORLD
    if group is None:
        raise ValueError("sharding needs a process group, even for one rank: call torch.distributed.init_process_group")
    world_size = dist.get_world_size(group)
    embeddings = _only_embeddings(model)
    codec = codec if world_size > 1 else None
    if codec is not None and codec[0] in WHOLE_TABLES_ONLY and sharding == "auto":
        sharding = "table_wise"
    attach_rowwise_adagrad(embeddings, sparse_lr=sparse_lr, qr_lr=qr_lr, eps=eps)
    sharding_plan, plan = _agree_on_plan(
        model,
        embeddings,
        group,
        device=device,
        batch_size=batch_size,
        sharding=sharding,
        placement=placement,
        uvm_cache=uvm_cache,
        memory_bytes=memory_bytes,
        local_world_size=local_world_size or world_size,
    )
    exchange, codecs = None, None
    if codec is not None:
        kind, k = codec
        row_wise = [place.table for place in plan if place.sharding == "row_wise"]
        check_codec(kind, k, embeddings.tables, row_wise)
        exchange = TableExchange()
        codecs = codec_registry(kind, k, embeddings.tables, batch_size, exchange)
    _move_dense(model, embeddings, device)
    dmp = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(group),
        device=device,
        plan=sharding_plan,
        sharders=sharders(codecs),
        init_parameters=False,
        data_parallel_wrapper=_NoWrapper() if world_size == 1 else DefaultDataParallelWrapper(),
    )
    _check_trained_in_backward(dmp, embeddings)
    _initialize_tables(dmp, embeddings, seed)
    if world_size == 1 and embeddings.bags is not None:
        # FBGEMM's update on CPU takes most of its time for the bookkeeping of rows, whatever their width.
        local = LocalWeights if isinstance(embeddings, WideTables) and device.type == "cpu" else LocalBags
        embeddings.pool_with(local(list(kernels(embeddings.bags)), embeddings.bag_ids.keys))
    if world_size > 1 and isinstance(embeddings.bags, ShardedEmbeddingBagCollection):
        embeddings.send_bags_with(send_one_hot_in_one(embeddings.bags, embeddings.bag_ids.keys))
    return Sharded(
        dmp=dmp,
        embeddings=embeddings,
        plan=plan,
        bytes_per_rank=rank_bytes(plan, world_size),
        learning_rates=LearningRates(dmp, embeddings.combined_tables),
        exchange=exchange,
    )


class _NoWrapper(DataParallelWrapper):
    """Wraps nothing: one rank has no gradients to average."""

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        pass


def _only_embeddings(model: nn.Module) -> CompositionalEmbeddings:
    found = [module for module in model.modules() if isinstance(module, CompositionalEmbeddings)]
    if len(found) != 1:
        raise ValueError(f"the model must contain one CompositionalEmbeddings, found {len(found)}")
    if any(not weight.is_meta for weight in found[0].parameters()):
        raise ValueError("build CompositionalEmbeddings with device='meta': sharding gives the tables their memory")
    return found[0]


def _agree_on_plan(
    model: nn.Module,
    embeddings: CompositionalEmbeddings,
    group: dist.ProcessGroup,
    *,
    device: torch.device,
    memory_bytes: int | None,
    local_world_size: int,
    **settings: Any,
) -> tuple[ShardingPlan, list[Placement]]:
    """Returns the plan for the smallest memory of any rank. Every rank makes it, from the same numbers.

    Raises:
        ValueError: on every rank, if the tables do not fit, or the ranks were given other tables.
    """
    free = available_bytes(device, local_world_size) if memory_bytes is None else memory_bytes
    mine = torch.tensor([-1 if free is None else free, device.index or 0, local_world_size], device=device)
    of_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(of_ranks, mine, group=group)
    memory, devices, per_node = zip(*(numbers.tolist() for numbers in of_ranks), strict=True)
    known = [number for number in memory if number >= 0]
    plan, placements = make_plan(
        model,
        embeddings,
        world_size=len(of_ranks),
        local_world_size=per_node[0],
        device_type=device.type,
        memory_bytes=min(known) if known else None,
        **settings,
    )
    _check_equal(placements, group, device)
    if device.type == "cuda":
        place_on_devices(plan, devices)
    return plan, placements


def _check_equal(placements: Sequence[Placement], group: dist.ProcessGroup, device: torch.device) -> None:
    checksum = zlib.crc32(repr(placements).encode())
    extremes = torch.tensor([checksum, -checksum], device=device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
    if extremes.tolist() != [checksum, -checksum]:
        raise ValueError("the ranks place the tables differently: they must have equal settings, data and packages")


def _move_dense(model: nn.Module, embeddings: CompositionalEmbeddings, device: torch.device) -> None:
    tables = set(embeddings.parameters())
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in tables and parameter.device != device:
                setattr(module, name, nn.Parameter(parameter.detach().to(device), parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


@torch.no_grad()
def _initialize_tables(dmp: nn.Module, embeddings: CompositionalEmbeddings, seed: int) -> None:
    distributions = embeddings.distributions()
    for name, weight in dmp.state_dict().items():
        if isinstance(weight, ShardedTensor):
            table = name.split(".")[-2]
            for piece in weight.local_shards():
                first_row = piece.metadata.shard_offsets[0]
                fill_rows(piece.tensor, distributions[table], table=table, seed=seed, first_row=first_row)


def _check_trained_in_backward(dmp: nn.Module, embeddings: CompositionalEmbeddings) -> None:
    """Checks that every table has a fused optimizer, so that no other optimizer is needed."""
    # TorchRec calls them ....embedding_bags.<table>.weight and ....embeddings.<table>.weight.
    tables = {f"{kind}.{table.name}.weight" for table in embeddings.tables for kind in ("embedding_bags", "embeddings")}
    escaped = [
        name
        for name, p in dmp.named_parameters()
        if not hasattr(p, "_in_backward_optimizers") and ".".join(name.split(".")[-3:]) in tables
    ]
    assert not escaped, f"tables that are not trained in backward: {escaped}"


def sparse_state(dmp: DistributedModelParallel) -> dict[str, ShardedTensor]:
    """Returns live tensors of all tables, by names that do not depend on ranks, plan or model.

    Returns:
        For each table that this rank has a part of: "cat_3/weight", [rows, D], and "cat_3/sum", [rows], the row-wise
        AdaGrad state. Saved from any number of ranks they load on any other. Loading into them changes the model; no
        further call is needed, if it is before the next lookup: the caches of tables in host memory are emptied here.
    """
    tensors = {}
    for kernel, _ in kernels(dmp):
        kernel.flush()
        kernel.purge()
    for name, value in dmp.state_dict().items():
        if isinstance(value, ShardedTensor):
            tensors[f"{name.split('.')[-2]}/weight"] = value
    # Names end in <table>.weight.<table>.momentum1.
    for states in dmp.fused_optimizer.state_dict()["state"].values():
        for name, value in states.items():
            table, kind = name.rsplit(".", 1)
            if kind == "momentum1":
                tensors[f"{table}/sum"] = value
    return tensors
