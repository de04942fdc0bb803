"""Computes the memory that a training needs on every rank, by part.

    tables, or caches of those in host memory, and their row-wise AdaGrad,
    as placed by TorchRec's planner                                          (exact)
    first-order weights and their AdaGrad, likewise                          (exact)
    MLPs, their gradients, their optimizer's state and scratch               (exact)
    a copy of weights and state, from which checkpoints are written          (exact; in host memory, also of GPUs)
    batches, lookups, activations, exchanges between ranks                   (from shapes; an estimate)

Nothing is allocated, and no rank is needed. `dlrmctl plan` shows this; `dlrmctl train` refuses what does not fit.
Dimensions: B examples of a rank, G of all ranks, I dense features, F vectors, D columns, N = F + 1.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dlrmctl.assembly.storage import IN_ITS_OWN_MEMORY, TableStorage, refuse_without_gpu, table_storage
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.assembly.wide import unfitted_wide_features
from dlrmctl.data.reader import MOST_ROWS_HELD, WINDOW_ROWS
from dlrmctl.data.schema import Schema
from dlrmctl.data.store.layout import narrowest
from dlrmctl.embeddings.collection import CompositionalEmbeddings, WideTables
from dlrmctl.embeddings.sharding.fused import attach_rowwise_adagrad
from dlrmctl.embeddings.sharding.memory import state_bytes, table_bytes, weight_bytes
from dlrmctl.embeddings.sharding.placement import CACHED, Placement, PlacementError, make_plan, rank_bytes
from dlrmctl.embeddings.tables import Table
from dlrmctl.errors import UserError
from dlrmctl.plan.cluster import Cluster
from dlrmctl.plan.dense import DenseNeed, dense_need
from dlrmctl.settings.config import CROSS_LAYERS, CROSS_RANK, Config
from dlrmctl.settings.exchange import sharding_with

COPY = "checkpoint copy"
PARTS = (
    *("process", "tables", "table state", "first-order", "MLPs", "gradients", "optimizer"),
    *("batches", "lookups", "activations", COPY),
)
TABLES = ("tables", "table state", "first-order")
_FLOAT, _ID = 4, 8
_LIST = 12  # length and offset
_CUDA_WIDEST = 2048  # columns of a row in FBGEMM's CUDA kernels
# The CPU allocator keeps memory and cannot always reuse it: measured 0.9 to 1.7 times what is counted.
_CPU_ALLOCATOR = 1.7
_CUDA_ID_BYTES = 40  # FBGEMM's backward sorts the ids, with copies and positions; not measured
_CPU_LEFT_OVER = 20 * 2**20  # and for initial values of tables: measured 10 to 40 MiB


@dataclass(frozen=True)
class Exchange:
    """The rows that one rank looks up, and the bytes that it exchanges, in a step.

    Attributes:
        rows, row_bytes: rows it reads from its tables, and their bytes.
        looked_up: bytes of ids, sums and their gradients that belong to its tables.
        received: bytes of the vectors of its examples and their gradients; 0 on a single rank.
        sent: bytes of sums that go to other ranks; as many gradients come back.
        sent_ids: bytes of ids that go to other ranks.
    """

    rows: float
    row_bytes: float
    looked_up: int
    received: int
    sent: int
    sent_ids: int


_NO_EXCHANGE = Exchange(rows=0.0, row_bytes=0.0, looked_up=0, received=0, sent=0, sent_ids=0)


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that every rank needs and has.

    Attributes:
        parts: name -> bytes per rank, the names of `PARTS`.
        host_tables: bytes of each rank for tables in host memory, which its GPU caches; not one of `parts`.
        copy: bytes of each rank for a copy of its state in host memory, from which checkpoints are written while
            training continues; 0 if it waits for them. On CPUs also one of `parts`.
        placements: placement of every table; if they do not fit, in equal parts, or as set.
        exchanges, wide_exchanges: what each rank looks up and exchanges in a step, of tables, and of first-order
            weights.
        table_room, wide_room: bytes of each rank for tables and their lookups, and for first-order weights; None if
            unknown.
        problem: the planner's reason why the tables do not fit, or None.
    """

    cluster: Cluster
    dense: DenseNeed
    embeddings: CompositionalEmbeddings
    parts: dict[str, tuple[int, ...]]
    host_tables: tuple[int, ...]
    copy: tuple[int, ...]
    placements: list[Placement]
    exchanges: list[Exchange]
    wide_exchanges: list[Exchange]
    table_room: int | None
    wide_room: int | None
    problem: str | None

    @property
    def totals(self) -> tuple[int, ...]:
        """Bytes per rank, over all parts."""
        return tuple(map(sum, zip(*self.parts.values(), strict=True)))

    @property
    def copies(self) -> bool:
        """Whether checkpoints are written from a copy, while training continues."""
        return any(self.copy)

    @property
    def fits(self) -> bool:
        limit = self.cluster.memory_bytes
        return self.problem is None and (limit is None or max(self.totals) <= limit)

    @property
    def fixed_bytes(self) -> int:
        """The most bytes that any rank needs besides what depends on the rows of tables."""
        names = [name for name in PARTS if name not in (*TABLES, "lookups", COPY)]
        return max(map(sum, zip(*(self.parts[name] for name in names), strict=True)))


def plan_memory(config: Config, schema: Schema, cluster: Cluster, *, sharding: str | None = None) -> MemoryPlan:
    """Plans a training of these settings on these ranks.

    Args:
        sharding: replaces that of the settings.

    Raises:
        UserError: if the settings do not fit the data.
    """
    world_size, batch = cluster.world_size, config.train.batch_size // cluster.world_size
    refuse_without_gpu(config, cluster.device_type)
    storage = table_storage(config, cluster.device_type)
    embeddings = CompositionalEmbeddings(
        feature_tables(config, schema), config.embeddings.dim, precision=storage.table_precision
    )
    if cluster.device_type == "cuda":
        refuse_wide_rows(embeddings.tables)
    dense = dense_need(config, schema, world_size)
    each = {
        "process": cluster.process_bytes,
        "MLPs": dense.weights,
        "gradients": dense.gradients,
        "batches": _batches(schema, cluster, batch),
        "activations": _activations(config, embeddings, cluster, batch),
    }
    parts = {name: (value,) * world_size for name, value in each.items()}
    # With late checks, a step keeps the weights and the state from before it.
    kept = [dense.weights + state if config.train.late_checks else 0 for state in dense.state]
    parts["optimizer"] = tuple(map(sum, zip(dense.state, dense.scratch, kept, strict=True)))
    fixed = max(map(sum, zip(*parts.values(), strict=True)))
    weights = WideTables(unfitted_wide_features(config, schema)) if config.model.wide else None
    room = wide_room = None
    if cluster.memory_bytes is not None:
        room = cluster.memory_bytes - fixed
        wide_room = _room_of_weights(weights, embeddings, room, storage)
    wide_kept, wide_gradient, wide_exchanges, wide_problem = _first_order(
        config, weights, cluster, batch, wide_room, sharding
    )
    parts["first-order"] = tuple(map(sum, zip(wide_kept, wide_gradient, strict=True)))
    wide_lookups = [_allocated(one.looked_up + one.received, cluster) for one in wide_exchanges]
    if room is not None:
        room -= max(map(sum, zip(parts["first-order"], wide_lookups, strict=True)))
    placements, problem = _placements(config, embeddings, cluster, batch, room, sharding, storage)
    parts["tables"] = _per_rank(placements, world_size, Placement.rank_weights_on_device)
    parts["table state"] = _per_rank(placements, world_size, lambda table: map(state_bytes, table.rank_rows))
    in_host_memory = [table for table in placements if table.kernel == CACHED]
    host_tables = _per_rank(in_host_memory, world_size, Placement.rank_weights)
    exchanges = _exchanges(embeddings, placements, cluster, batch)
    scratch = _CUDA_ID_BYTES if cluster.device_type == "cuda" else 0
    parts["lookups"] = tuple(
        _allocated(both.looked_up + both.received, cluster) + int(both.rows) * scratch + theirs
        for both, theirs in zip(exchanges, wide_lookups, strict=True)
    )
    of_tables = [_per_rank(placements, world_size, Placement.rank_weights), parts["table state"], wide_kept]
    copy = tuple(
        sum(part[rank] for part in of_tables) + dense.weights + dense.state[rank] for rank in range(world_size)
    )
    if not _copies(config, cluster, parts, copy):
        copy = (0,) * world_size
    parts[COPY] = copy if cluster.device_type == "cpu" else (0,) * world_size
    return MemoryPlan(
        cluster=cluster,
        dense=dense,
        embeddings=embeddings,
        parts={name: parts[name] for name in PARTS},
        host_tables=host_tables,
        copy=copy,
        placements=placements,
        exchanges=exchanges,
        wide_exchanges=wide_exchanges,
        table_room=room,
        wide_room=wide_room,
        problem=problem or wide_problem,
    )


def _copies(config: Config, cluster: Cluster, parts: dict[str, tuple[int, ...]], copy: tuple[int, ...]) -> bool:
    """Returns whether to make the copy of the state: as set, otherwise if it fits, and not yet on GPUs."""
    if config.train.async_save is not None:
        return config.train.async_save
    if cluster.device_type != "cpu" or cluster.memory_bytes is None:
        return cluster.device_type == "cpu"
    return max(map(sum, zip(*parts.values(), copy, strict=True))) <= cluster.memory_bytes


def _exchanges(
    embeddings: CompositionalEmbeddings, placements: Sequence[Placement], cluster: Cluster, batch: int
) -> list[Exchange]:
    """Computes the exchange of each rank.

    A whole table serves the batches of all ranks; of a divided table, every rank has sums for all of them.
    """
    world_size = cluster.world_size
    ids_of: dict[str, list[int]] = {}  # by table, for each feature
    for feature in embeddings.features:
        for name in feature.table_names:
            ids_of.setdefault(name, []).append(feature.max_ids)
    unpooled = set(embeddings.row_ids.tables)
    rows, row_bytes, looked_up, width = ([0.0] * world_size for _ in range(4))
    examples = batch * world_size
    received = ids_of_rank = 0
    for table in placements:
        ids, features = sum(ids_of[table.table]), len(ids_of[table.table])
        vectors = ids if table.table in unpooled else features
        received += batch * vectors * table.dim * _FLOAT * 2
        ids_of_rank += batch * ids * _ID
        share = 1 / len(table.ranks)
        for rank in table.ranks:
            rows[rank] += examples * ids * share
            row_bytes[rank] += examples * ids * share * weight_bytes(1, table.dim, table.precision)
            vectors_here = vectors * share if table.table in unpooled else features
            looked_up[rank] += examples * (vectors_here * table.dim * _FLOAT * 2 + ids * share * _ID)
            width[rank] += vectors_here * table.dim * _FLOAT
    others = (world_size - 1) / world_size
    return [
        Exchange(
            rows=rows[rank],
            row_bytes=row_bytes[rank],
            looked_up=int(looked_up[rank]),
            received=received if world_size > 1 else 0,
            sent=int(width[rank] * examples * others),
            sent_ids=int(ids_of_rank * others),
        )
        for rank in range(world_size)
    ]


def activation_floats(config: Config, num_vectors: int) -> int:
    """Returns the numbers per example that the dense network keeps for backward, and its largest temporary."""
    model, N, D = config.model, num_vectors + 1, config.embeddings.dim
    joined = D + N * (N - 1) // 2 if model.interaction == "dot" else N * D
    kept = sum(model.bottom_mlp) + N * D + joined + sum(model.top_mlp)
    if model.interaction == "dcn":  # of each layer its output, W V x + b, and V x
        layers, rank = model.cross_layers or CROSS_LAYERS, model.cross_rank or CROSS_RANK
        kept += layers * (2 * N * D + rank)
    hidden = sum(model.bottom_mlp) + sum(model.top_mlp)
    kept += hidden * (model.layer_norm + 2 * (model.dropout > 0))
    products = N * N if model.interaction == "dot" else 0
    added = max(products, 2 * max(joined, *model.bottom_mlp, *model.top_mlp))
    return kept + added + 2 * num_vectors * D  # the embeddings and their gradient


def _room_of_weights(
    weights: WideTables | None, embeddings: CompositionalEmbeddings, room: int, storage: TableStorage
) -> int:
    """Returns the part of the room that first-order weights have of all bytes of tables.

    They stay on the GPU: if tables may leave it, that is all of the room.
    """
    if weights is None:
        return 0
    if storage.placement != "hbm":
        return max(room, 0)
    theirs, others = (sum(map(table_bytes, module.tables)) for module in (weights, embeddings))
    return max(room, 0) * theirs // (theirs + others)


def _first_order(
    config: Config,
    weights: WideTables | None,
    cluster: Cluster,
    batch: int,
    room: int | None,
    sharding: str | None,
) -> tuple[tuple[int, ...], tuple[int, ...], list[Exchange], str | None]:
    """Returns the bytes of first-order weights with their optimizer state on each rank, those of their gradient, their
    exchanges, and the planner's reason why they do not fit, or None."""
    nothing = (0,) * cluster.world_size
    if weights is None:
        return nothing, nothing, [_NO_EXCHANGE] * cluster.world_size, None
    placements, problem = _placements(config, weights, cluster, batch, room, sharding)
    gradient = nothing
    if cluster.world_size == 1 and cluster.device_type == "cpu":  # of every row
        gradient = (sum(state_bytes(table.rows) for table in placements),)
    kept = tuple(rank_bytes(placements, cluster.world_size))
    return kept, gradient, _exchanges(weights, placements, cluster, batch), problem


def refuse_wide_rows(tables: Sequence[Table]) -> None:
    """Checks that FBGEMM's CUDA kernels can look up the rows of all tables.

    Raises:
        UserError: naming the table with the widest rows.
    """
    widest = max(tables, key=lambda table: table.dim)
    if widest.dim > _CUDA_WIDEST:
        raise UserError(
            f"table {widest.name} has rows of {widest.dim:,} columns; on a GPU at most {_CUDA_WIDEST:,} are possible",
            "a smaller --dim (at most 128 with --operation path), or --device cpu",
        )


def _placements(
    config: Config,
    embeddings: CompositionalEmbeddings,
    cluster: Cluster,
    batch: int,
    room: int | None,
    sharding: str | None,
    storage: TableStorage = IN_ITS_OWN_MEMORY,
) -> tuple[list[Placement], str | None]:
    wanted = sharding or sharding_with(config.train.compress_a2a, config.embeddings.sharding)
    # The planner counts the state of an attached optimizer.
    attach_rowwise_adagrad(embeddings, sparse_lr=config.optim.sparse_lr, qr_lr=config.optim.qr_lr)

    def placed(memory_bytes: int | None, how: str, where: str) -> list[Placement]:
        return make_plan(
            embeddings,
            embeddings,
            world_size=cluster.world_size,
            local_world_size=cluster.ranks_per_node,
            device_type=cluster.device_type,
            batch_size=batch,
            sharding=how,
            memory_bytes=memory_bytes,
            bandwidths=cluster.bandwidths,
            placement=where,
            uvm_cache=storage.uvm_cache,
        )[1]

    try:
        return placed(None if room is None else max(room, 1), wanted, storage.placement), None
    except PlacementError as problem:
        # Equal parts are the least for the fullest rank; if they do not fit, nothing does.
        where = "uvm" if storage.placement == "auto" else storage.placement
        return placed(None, "row_wise" if wanted == "auto" else wanted, where), str(problem)


def _per_rank(
    placements: Sequence[Placement], world_size: int, bytes_of: Callable[[Placement], Iterable[int]]
) -> tuple[int, ...]:
    """Returns the sum over tables of what `bytes_of` gives for each of their ranks."""
    totals = [0] * world_size
    for table in placements:
        for rank, num_bytes in zip(table.ranks, bytes_of(table), strict=True):
            totals[rank] += num_bytes
    return tuple(totals)


def _batches(schema: Schema, cluster: Cluster, batch: int) -> int:
    """Returns the bytes of the current batch and the next one; on a CPU also of those that the reader holds."""
    example = _FLOAT * (len(schema.dense) + 1) + sum(_ID * feature.max_ids + _FLOAT for feature in schema.sparse)
    if cluster.device_type != "cpu":
        return example * 2 * batch
    of_ids = sum(narrowest(feature.rows - 1).itemsize * feature.max_ids for feature in schema.sparse)
    of_lists = 0 if schema.one_hot else _LIST * len(schema.sparse)
    picked = _FLOAT * (len(schema.dense) + 1) + of_ids + of_lists
    return example * 2 * batch + (example * WINDOW_ROWS + picked * MOST_ROWS_HELD) // cluster.world_size


def _activations(config: Config, embeddings: CompositionalEmbeddings, cluster: Cluster, batch: int) -> int:
    floats = activation_floats(config, embeddings.num_vectors)
    left_over = _CPU_LEFT_OVER if cluster.device_type == "cpu" else 0
    return _allocated(batch * floats * _FLOAT, cluster) + left_over


def _allocated(num_bytes: int, cluster: Cluster) -> int:
    return int(num_bytes * _CPU_ALLOCATOR) if cluster.device_type == "cpu" else num_bytes
