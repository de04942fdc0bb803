"""Plans which rank holds which rows, by TorchRec's planner."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed import _remote_device
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.proposers import GreedyProposer, GridSearchProposer, UniformProposer
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    BasicCommsBandwidths,
    KernelConfig,
    PlannerError,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingPlan,
    ShardMetadata,
)

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.sharding.memory import cache_bytes, gib, state_bytes, table_bytes, weight_bytes
from dlrmctl.embeddings.tables import Table
from dlrmctl.embeddings.words import PLACEMENTS, SHARDINGS

_UNLIMITED_BYTES = 2**60
# Between CPU ranks, by loopback or a fast network: an order of magnitude. With the planner's default, NVLink's 600
# GiB/s, it cuts every table, and exchanging the sums of row-wise sharding made a step 1.3-1.5 times as long.
CPU_BYTES_PER_SECOND = 2.0 * 2**30
# All combinations are tried up to this many, and beyond it those of the planner's other searches, which take
# milliseconds. Up to its default of 10,000, for 13 tables or fewer, they take 10 seconds.
_MOST_COMBINATIONS = 2**8
FUSED, CACHED = "fused", "fused_uvm_caching"  # TorchRec's kernels: a table in the rank's memory; one in the host's


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
        precision: type of the weights, "fp32" or "fp16".
        kernel: "fused", or "fused_uvm_caching" for weights in host memory with a cache on the GPU.
        rank_cache_bytes: bytes of the cache on each of the ranks; 0 without one.
    """

    table: str
    rows: int
    dim: int
    bytes: int
    sharding: str
    ranks: tuple[int, ...]
    rank_rows: tuple[int, ...]
    precision: str = "fp32"
    kernel: str = FUSED
    rank_cache_bytes: tuple[int, ...] = ()

    def rank_weights(self) -> tuple[int, ...]:
        """Returns the bytes of the weights that each of the ranks holds, in whatever memory."""
        return tuple(weight_bytes(rows, self.dim, self.precision) for rows in self.rank_rows)

    def rank_weights_on_device(self) -> tuple[int, ...]:
        """Returns the bytes that weights, or a cache of them, take on the device of each of the ranks."""
        return self.rank_cache_bytes if self.kernel == CACHED else self.rank_weights()


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
    placement: str = "hbm",
    uvm_cache: float = 0.2,
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
        placement: one of `PLACEMENTS`: "hbm" keeps tables in the memory of the rank's device, "uvm" in that of the
            host, with a cache on the GPU; "auto" the largest tables in that of the host, as few as make the others fit.
            With `memory_bytes` None, that is none.
        uvm_cache: share of the rows of a table in host memory that its cache has room for.

    Raises:
        ValueError: for an unknown `sharding` or `placement`, or one that needs a GPU on a CPU.
        PlacementError: if the tables do not fit.
    """
    if sharding not in SHARDINGS:
        raise ValueError(f"{sharding=} must be one of {', '.join(SHARDINGS)}")
    if placement not in (PLACEMENTS if device_type == "cuda" else PLACEMENTS[:1]):
        raise ValueError(f"{placement=} must be one of {', '.join(PLACEMENTS)}, on a CPU hbm")
    by_size = [table.name for table in sorted(embeddings.tables, key=table_bytes, reverse=True)]

    def with_largest_in_host_memory(count: int) -> tuple[ShardingPlan, list[Placement]]:
        return _plan_with(
            model,
            embeddings,
            set(by_size[:count]),
            world_size=world_size,
            local_world_size=local_world_size,
            device_type=device_type,
            batch_size=batch_size,
            sharding=sharding,
            memory_bytes=memory_bytes,
            bandwidths=bandwidths,
            uvm_cache=uvm_cache,
        )

    if placement != "auto":
        return with_largest_in_host_memory(len(by_size) if placement == "uvm" else 0)
    try:
        return with_largest_in_host_memory(0)
    except PlacementError:
        found, too_few, enough = with_largest_in_host_memory(len(by_size)), 0, len(by_size)
    while enough - too_few > 1:
        count = (too_few + enough) // 2
        try:
            found, enough = with_largest_in_host_memory(count), count
        except PlacementError:
            too_few = count
    return found


def _plan_with(
    model: nn.Module,
    embeddings: CompositionalEmbeddings,
    in_host_memory: Collection[str],
    *,
    world_size: int,
    local_world_size: int,
    device_type: str,
    batch_size: int,
    sharding: str,
    memory_bytes: int | None,
    bandwidths: tuple[float, float] | None,
    uvm_cache: float,
) -> tuple[ShardingPlan, list[Placement]]:
    """Plans with these tables in host memory; see `make_plan`."""
    kinds = ["table_wise", "row_wise"] if sharding == "auto" else [sharding]
    if world_size == 1:
        kinds = ["table_wise"]  # nothing to divide
    tables = embeddings.tables
    _check_sizes(embeddings, in_host_memory, kinds, world_size, memory_bytes)
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
        proposer=[
            GridSearchProposer(max_proposals=_MOST_COMBINATIONS),
            GreedyProposer(),
            GreedyProposer(use_depth=False),
            UniformProposer(),
        ],
        constraints={
            table.name: ParameterConstraints(
                sharding_types=["table_wise"] if _leaves_ranks_out(table, world_size) else kinds,
                compute_kernels=[CACHED if table.name in in_host_memory else FUSED],
                pooling_factors=ids_per_bag[table.name],
                is_weighted=embeddings.weighted,
                cache_params=CacheParams(load_factor=uvm_cache) if table.name in in_host_memory else None,
                stochastic_rounding=True if embeddings.precision == "fp16" else None,
            )
            for table in tables
        },
    )
    try:
        plan = planner.plan(model, sharders())
    except PlannerError as error:
        if memory_bytes is None:
            raise
        raise _does_not_fit(embeddings, world_size, memory_bytes, "with the inputs and outputs of lookups") from error
    placements = describe(plan, embeddings, uvm_cache)
    if in_host_memory and memory_bytes is not None and max(rank_bytes(placements, world_size)) > memory_bytes:
        raise _does_not_fit(embeddings, world_size, memory_bytes, "in host memory with a cache on the GPU")
    return plan, placements


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


def describe(plan: ShardingPlan, embeddings: CompositionalEmbeddings, uvm_cache: float = 0.2) -> list[Placement]:
    """One row per table, in the order of `embeddings.tables`.

    Args:
        uvm_cache: see `make_plan`.

    Raises:
        AssertionError: if a table is not in the plan, or would not be trained by its fused optimizer.
    """
    shardings: dict[str, ParameterSharding] = {}
    for module_plan in plan.plan.values():
        assert isinstance(module_plan, EmbeddingModuleShardingPlan)
        shardings |= module_plan
    widths = _cache_widths(embeddings, [name for name, found in shardings.items() if found.compute_kernel == CACHED])
    placements = []
    for table in embeddings.tables:
        sharding = shardings[table.name]
        # The dense optimizer would train a data-parallel table, not the fused one.
        assert sharding.sharding_type in SHARDINGS[1:], (table.name, sharding.sharding_type)
        assert sharding.compute_kernel in (FUSED, CACHED), (table.name, sharding.compute_kernel)
        shards: list[ShardMetadata] = sharding.sharding_spec.shards
        rank_rows = tuple(shard.shard_sizes[0] for shard in shards)
        caches = tuple(
            cache_bytes(rows, widths[table.name], embeddings.precision, uvm_cache) if table.name in widths else 0
            for rows in rank_rows
        )
        placements.append(
            Placement(
                table=table.name,
                rows=table.rows,
                dim=table.dim,
                bytes=table_bytes(table, precision=embeddings.precision),
                sharding=sharding.sharding_type,
                ranks=tuple(shard.placement.rank() for shard in shards),
                rank_rows=rank_rows,
                precision=embeddings.precision,
                kernel=sharding.compute_kernel,
                rank_cache_bytes=caches,
            )
        )
    return placements


def _cache_widths(embeddings: CompositionalEmbeddings, cached: Sequence[str]) -> dict[str, int]:
    """Returns the columns of the cache of each table: tables of one kernel share a cache, as wide as the widest.

    Pooled tables with one learning rate have one kernel, and others one for each width.
    """
    pooled, combined = set(embeddings.bag_ids.tables), embeddings.combined_tables
    columns = {table.name: table.dim for table in embeddings.tables}
    kernel_of = {name: (name in combined, 0 if name in pooled else columns[name]) for name in cached}
    widest: dict[tuple[bool, int], int] = {}
    for name, kernel in kernel_of.items():
        widest[kernel] = max(widest.get(kernel, 0), columns[name])
    return {name: widest[kernel] for name, kernel in kernel_of.items()}


def rank_bytes(placements: Sequence[Placement], world_size: int) -> list[int]:
    """Returns the bytes of tables, or of their caches, and their optimizer state on the device of each rank."""
    totals = [0] * world_size
    for table in placements:
        for rank, rows, weights in zip(table.ranks, table.rank_rows, table.rank_weights_on_device(), strict=True):
            totals[rank] += weights + state_bytes(rows)
    return totals


def _check_sizes(
    embeddings: CompositionalEmbeddings,
    in_host_memory: Collection[str],
    kinds: list[str],
    world_size: int,
    memory_bytes: int | None,
) -> None:
    if memory_bytes is None:
        return
    sizes = [
        state_bytes(table.rows) if table.name in in_host_memory else table_bytes(table, precision=embeddings.precision)
        for table in embeddings.tables
    ]
    if sum(sizes) > memory_bytes * world_size or ("row_wise" not in kinds and max(sizes) > memory_bytes):
        raise _does_not_fit(embeddings, world_size, memory_bytes, "with their optimizer state")


def _does_not_fit(embeddings: CompositionalEmbeddings, world_size: int, memory_bytes: int, what: str) -> PlacementError:
    sizes = {table: table_bytes(table, precision=embeddings.precision) for table in embeddings.tables}
    largest = max(sizes, key=lambda table: sizes[table])
    total = sum(sizes.values())
    ranks = "the only rank" if world_size == 1 else f"each of {world_size} ranks"
    return PlacementError(
        f"the embedding tables do not fit: {what} they need {gib(total)}, {gib(-(-total // world_size))} per rank, and "
        f"{ranks} has {gib(memory_bytes)}; the largest, {largest.name}, has {largest.rows:,} rows of {largest.dim} and "
        f"needs {gib(sizes[largest])}. Try more ranks, row-wise sharding, more collisions (hash or qr), or a "
        f"smaller dim"
    )
