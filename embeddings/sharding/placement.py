"""Plans which rank holds which rows, by TorchRec's planner."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed import _remote_device
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    BasicCommsBandwidths,
    KernelConfig,
    PlannerError,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingPlan,
    ShardMetadata,
)

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.sharding.memory import gib, table_bytes
from dlrmctl.embeddings.tables import Table
from dlrmctl.embeddings.words import SHARDINGS

_UNLIMITED_BYTES = 2**60
# Between CPU ranks, by loopback or a fast network: an order of magnitude. With the planner's default, NVLink's 600
# GiB/s, it cuts every table, and exchanging the sums of row-wise sharding made a step 1.3-1.5 times as long.
CPU_BYTES_PER_SECOND = 2.0 * 2**30


class PlacementError(ValueError):
    """Raised when the tables do not fit the memory of the ranks."""


@dataclass(frozen=True)
class Placement:
    """The place of one table.

    Attributes:
        bytes: of the table and its optimizer state, over all ranks.
        sharding: "table_wise" (whole, on one rank) or "row_wise" (rows cut over all ranks).
        ranks: the ranks, in the order of the rows they hold.
        rank_rows: the number of rows each of them holds.
    """

    table: str
    rows: int
    dim: int
    bytes: int
    sharding: str
    ranks: tuple[int, ...]
    rank_rows: tuple[int, ...]


class BagSharder(EmbeddingBagCollectionSharder):
    """Offers row-wise sharding on CPU too, where it works although TorchRec's planner does not list it."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types = super().sharding_types(compute_device_type)
        return types if "row_wise" in types else [*types, "row_wise"]


def sharders(codecs: dict[str, QuantizedCommCodecs] | None = None) -> list[Any]:
    """Returns TorchRec's sharders, with the codecs of what ranks exchange."""
    return [BagSharder(qcomm_codecs_registry=codecs), EmbeddingCollectionSharder(qcomm_codecs_registry=codecs)]


def make_plan(
    model: nn.Module,
    embeddings: CompositionalEmbeddings,
    *,
    world_size: int,
    local_world_size: int,
    device_type: str,
    batch_size: int,
    sharding: str = "auto",
    memory_bytes: int | None = None,
    bandwidths: tuple[float, float] | None = None,
) -> tuple[ShardingPlan, list[Placement]]:
    """Plans the tables of `embeddings` inside `model` in this process, without allocating them.

    No process group is needed.

    Args:
        world_size, local_world_size: ranks in all and on each host.
        device_type: "cpu" or "cuda".
        batch_size: examples per rank and step, for the planner's estimates.
        sharding: one of `SHARDINGS`; "auto" lets the planner choose between the other two for each table. Tables of too
            few rows for all ranks are never cut.
        memory_bytes: each rank's memory for tables, their optimizer state and lookups; None: no limit.
        bandwidths: bytes per second between ranks of one host, and of two; None: the planner's defaults for GPUs, the
            constants above for CPU ranks.

    Raises:
        ValueError: for an unknown `sharding`.
        PlacementError: if the tables do not fit.
    """
    if sharding not in SHARDINGS:
        raise ValueError(f"{sharding=} must be one of {', '.join(SHARDINGS)}")
    kinds = ["table_wise", "row_wise"] if sharding == "auto" else [sharding]
    if world_size == 1:
        kinds = ["table_wise"]  # nothing to divide
    tables = embeddings.tables
    _check_sizes(tables, kinds, world_size, memory_bytes)
    cap = _UNLIMITED_BYTES if memory_bytes is None else memory_bytes
    ids_per_bag: dict[str, list[float]] = {}  # by table, for each feature
    for feature in embeddings.features:
        for name in feature.table_names:
            ids_per_bag.setdefault(name, []).append(float(feature.max_ids))
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(
                world_size=world_size,
                local_world_size=local_world_size,
                hbm_cap_bytes=cap if device_type == "cuda" else None,
                ddr_cap_bytes=cap if device_type == "cpu" else _UNLIMITED_BYTES,
            ),
            kernel_config=KernelConfig(
                compute_device=device_type,
                generalized_comms_bandwidths=_planner_bandwidths(bandwidths, device_type),
            ),
        ),
        batch_size=batch_size,
        # The default reservation guesses what the dense part needs, and warns. Here the limit is for tables alone.
        storage_reservation=FixedPercentageStorageReservation(0.0),
        constraints={
            table.name: ParameterConstraints(
                sharding_types=["table_wise"] if _leaves_ranks_out(table, world_size) else kinds,
                compute_kernels=["fused"],
                pooling_factors=ids_per_bag[table.name],
                is_weighted=embeddings.weighted,
            )
            for table in tables
        },
    )
    try:
        plan = planner.plan(model, sharders())
    except PlannerError as error:
        if memory_bytes is None:
            raise
        raise _does_not_fit(tables, world_size, memory_bytes, "with the inputs and outputs of lookups") from error
    return plan, describe(plan, tables)


def _leaves_ranks_out(table: Table, world_size: int) -> bool:
    """Whether the last rank would have no row if the table was cut. FBGEMM cannot look up in tables without any row."""
    return -(-table.rows // world_size) * (world_size - 1) >= table.rows


def _planner_bandwidths(bandwidths: tuple[float, float] | None, device_type: str) -> BasicCommsBandwidths | None:
    if bandwidths is None and device_type != "cpu":
        return None
    cpu = CPU_BYTES_PER_SECOND
    intra, inter = bandwidths or (cpu, cpu)
    return BasicCommsBandwidths(intra_host_bw=intra / 1000, inter_host_bw=inter / 1000)  # per millisecond


def place_on_devices(plan: ShardingPlan, devices: Sequence[int]) -> None:
    """Sets the GPU of every shard to that of its rank.

    The planner assumes that local rank n has GPU n; a launcher may show every rank its own GPU alone, as number 0.

    Args:
        plan: changed in place.
        devices: the number of its GPU, by rank.
    """
    for module_plan in plan.plan.values():
        assert isinstance(module_plan, EmbeddingModuleShardingPlan)
        for sharding in module_plan.values():
            for shard in sharding.sharding_spec.shards:
                rank = shard.placement.rank()
                shard.placement = _remote_device(f"rank:{rank}/cuda:{devices[rank]}")


def describe(plan: ShardingPlan, tables: Sequence[Table]) -> list[Placement]:
    """One row per table, in the order of `tables`.

    Raises:
        AssertionError: if a table is not in the plan, or would not be trained by its fused optimizer.
    """
    shardings: dict[str, ParameterSharding] = {}
    for module_plan in plan.plan.values():
        assert isinstance(module_plan, EmbeddingModuleShardingPlan)
        shardings |= module_plan
    placements = []
    for table in tables:
        sharding = shardings[table.name]
        # The dense optimizer would train a data-parallel table, not the fused one.
        assert sharding.sharding_type in SHARDINGS[1:], (table.name, sharding.sharding_type)
        assert sharding.compute_kernel == "fused", (table.name, sharding.compute_kernel)
        shards: list[ShardMetadata] = sharding.sharding_spec.shards
        placements.append(
            Placement(
                table=table.name,
                rows=table.rows,
                dim=table.dim,
                bytes=table_bytes(table),
                sharding=sharding.sharding_type,
                ranks=tuple(shard.placement.rank() for shard in shards),
                rank_rows=tuple(shard.shard_sizes[0] for shard in shards),
            )
        )
    return placements


def rank_bytes(placements: Sequence[Placement], world_size: int) -> list[int]:
    """Returns the bytes of tables and their optimizer state on each rank."""
    totals = [0] * world_size
    for placement in placements:
        for rank, rows in zip(placement.ranks, placement.rank_rows, strict=True):
            totals[rank] += placement.bytes // placement.rows * rows
    return totals


def _check_sizes(tables: Sequence[Table], kinds: list[str], world_size: int, memory_bytes: int | None) -> None:
    if memory_bytes is None:
        return
    total, largest = sum(map(table_bytes, tables)), max(map(table_bytes, tables))
    if total > memory_bytes * world_size or ("row_wise" not in kinds and largest > memory_bytes):
        raise _does_not_fit(tables, world_size, memory_bytes, "with their optimizer state")


def _does_not_fit(tables: Sequence[Table], world_size: int, memory_bytes: int, what: str) -> PlacementError:
    largest = max(tables, key=table_bytes)
    total = sum(map(table_bytes, tables))
    ranks = "the only rank" if world_size == 1 else f"each of {world_size} ranks"
    return PlacementError(
        f"the embedding tables do not fit: {what} they need {gib(total)}, {gib(-(-total // world_size))} per rank, and "
        f"{ranks} has {gib(memory_bytes)}; the largest, {largest.name}, has {largest.rows:,} rows of {largest.dim} and "
        f"needs {gib(table_bytes(largest))}. Try more ranks, row-wise sharding, more collisions (hash or qr), or a "
        f"smaller dim"
    )
