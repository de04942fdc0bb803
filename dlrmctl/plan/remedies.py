"""Finds changes that make a training fit: smaller tables or layers, more ranks; or fewer bits, for serving.

Every remedy for training is planned, with tables in equal parts, before it is offered.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dlrmctl.console.text import bytes_text
from dlrmctl.data.schema import Schema
from dlrmctl.embeddings.choose import num_parameters
from dlrmctl.embeddings.compression.rules.quantize import row_bytes
from dlrmctl.errors import UserError
from dlrmctl.plan.cluster import Cluster
from dlrmctl.plan.memory import TABLES, MemoryPlan, plan_memory
from dlrmctl.settings.config import Config
from dlrmctl.settings.setting import shown

_SERVED = {"fp16": 16, "int8": 8, "int4": 4}
_RATIOS = (1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 200, 256, 400, 512, 1000)
_MOST_RANKS = 1024  # planning for more takes minutes


@dataclass(frozen=True)
class Remedy:
    """One remedy.

    Attributes:
        what: description with numbers.
        flags: flags to add or to replace; empty if it needs none.
        bytes_per_rank: bytes of the fullest rank with it.
        serving: whether it is for predictions only, not for training.
    """

    what: str
    flags: str
    bytes_per_rank: int
    serving: bool = False


def remedies(config: Config, schema: Schema, plan: MemoryPlan) -> list[Remedy]:
    """Returns remedies for a plan that does not fit, the smallest change of each kind."""
    limit = plan.cluster.memory_bytes
    if plan.fits or limit is None:
        return []
    if plan.cluster.process_bytes >= limit:
        return []
    if plan.fixed_bytes > limit:
        found = [_smaller_batch(config, schema, plan), _smaller_mlps(config, schema, plan)]
    else:
        found = [_cut(config, schema, plan), _compressed(config, schema, plan), _more_ranks(config, schema, plan)]
        found.append(_served(plan, limit))
    found.insert(0, _without_copy(config, schema, plan))
    return [remedy for remedy in found if remedy is not None]


def _without_copy(config: Config, schema: Schema, plan: MemoryPlan) -> Remedy | None:
    """Returns the same training without the copy that checkpoints are written from, if there is one."""
    if not plan.copies:
        return None
    smaller = _planned(replace(config, train=replace(config.train, async_save=False)), schema, plan.cluster)
    if not smaller.fits:
        return None
    return Remedy("training that waits for checkpoints", "--no-async-save", max(smaller.totals))


def _smaller_batch(config: Config, schema: Schema, plan: MemoryPlan) -> Remedy | None:
    """Returns the largest half, quarter and so on of the batch that fits."""
    batch = config.train.batch_size
    while batch % (2 * plan.cluster.world_size) == 0:
        batch //= 2
        smaller = _planned(replace(config, train=replace(config.train, batch_size=batch)), schema, plan.cluster)
        if smaller.fits:
            return Remedy(f"a batch of {batch:,}", f"--batch-size {batch}", max(smaller.totals))
    return None


def _smaller_mlps(config: Config, schema: Schema, plan: MemoryPlan) -> Remedy | None:
    """Returns the widest layers that fit, among a half, a quarter and so on of their widths."""
    bottom, top, part = config.model.bottom_mlp, config.model.top_mlp, 2
    while part <= max(*bottom[:-1], *top[:-1], 0):
        # The last widths are the tables' and the logit's.
        narrow = tuple(tuple(max(1, width // part) for width in mlp[:-1]) + mlp[-1:] for mlp in (bottom, top))
        model = replace(config.model, bottom_mlp=narrow[0], top_mlp=narrow[1])
        smaller = _planned(replace(config, model=model), schema, plan.cluster)
        if smaller.fits:
            flags = f"--bottom-mlp {shown(narrow[0])} --top-mlp {shown(narrow[1])}"
            return Remedy(f"MLPs with {part} times narrower layers", flags, max(smaller.totals))
        part *= 2
    return None


def _cut(config: Config, schema: Schema, plan: MemoryPlan) -> Remedy | None:
    """Returns the same tables in equal parts, if the settings keep them whole."""
    if config.embeddings.sharding != "table_wise" or plan.cluster.world_size == 1:
        return None
    cut = plan_memory(config, schema, plan.cluster, sharding="row_wise")
    most = max(cut.totals)
    return Remedy("tables cut over the ranks", "--sharding auto", most) if cut.fits else None


def _compressed(config: Config, schema: Schema, plan: MemoryPlan) -> Remedy | None:
    """Returns the smallest ratio of a list with which it fits."""
    kind = config.embeddings.embedding if config.embeddings.embedding != "full" else "qr"
    for ratio in _worth_trying(plan):
        settings = replace(config.embeddings, embedding=kind, compress_ratio=float(ratio))
        try:
            smaller = _planned(replace(config, embeddings=settings), schema, plan.cluster)
        except UserError:  # these tables cannot be that small
            return None
        if smaller.fits:
            how = f"{kind} {settings.operation}" if kind == "qr" else kind
            return Remedy(
                f"tables {ratio:g} times smaller ({how})",
                f"--embedding {kind} --compress-ratio {ratio:g}",
                max(smaller.totals),
            )
    return None


def _worth_trying(plan: MemoryPlan) -> Iterator[float]:
    """Returns ratios from the estimated one on."""
    features, dim = plan.embeddings.features, plan.embeddings.dim
    now = sum(feature.rows * dim for feature in features) / num_parameters(features, dim)
    room = _room(plan) * plan.cluster.world_size
    least = now * _table_bytes(plan) / room
    yield from (ratio for ratio in _RATIOS if ratio >= least and ratio > now)


def _table_bytes(plan: MemoryPlan) -> int:
    return sum(sum(plan.parts[name]) for name in TABLES)


def _room(plan: MemoryPlan) -> int:
    """The bytes of a rank for all tables; at least 1."""
    return max(plan.table_room or 1, 1) + max(plan.parts["first-order"])


def _more_ranks(config: Config, schema: Schema, plan: MemoryPlan) -> Remedy | None:
    """Returns the smallest number of equal nodes that fits: more ranks on a node do not have more memory."""
    cluster, batch = plan.cluster, config.train.batch_size
    room = _room(plan) * cluster.ranks_per_node
    nodes = max(cluster.nodes + 1, _table_bytes(plan) // room)
    while nodes * cluster.ranks_per_node <= _MOST_RANKS:
        size = nodes * cluster.ranks_per_node
        if batch % size == 0:
            larger = _planned(config, schema, replace(cluster, world_size=size))
            if larger.fits:
                each = "GPUs" if cluster.device_type == "cuda" else "ranks"
                flags = f"--world-size {size} --nodes {nodes}"
                if not cluster.described:
                    flags = f"torchrun --nnodes {nodes} --nproc-per-node {cluster.ranks_per_node}"
                what = f"{size} {each} of {bytes_text(cluster.memory_bytes or 0)} on {nodes} nodes"
                return Remedy(what, flags, max(larger.totals))
        nodes += 1
    return None


def _planned(config: Config, schema: Schema, cluster: Cluster) -> MemoryPlan:
    """Plans the tables as a run would place them, if equal parts of them, which is the least and fast, fit."""
    kept_whole = config.embeddings.sharding == "table_wise" or cluster.world_size == 1
    least = plan_memory(config, schema, cluster, sharding="table_wise" if kept_whole else "row_wise")
    return least if kept_whole or not least.fits else plan_memory(config, schema, cluster)


def _served(plan: MemoryPlan, limit: int) -> Remedy | None:
    """Returns the most bits with which the tables and the MLPs fit on one rank, without gradients or optimizer."""
    for name, bits in _SERVED.items():
        size = sum(table.rows * row_bytes(table.dim, bits) for table in plan.placements)
        need = size + plan.dense.weights + plan.cluster.process_bytes
        if need <= limit:
            what = f"for serving, after training elsewhere: {name} tables, {bytes_text(size)}, on one rank"
            return Remedy(what, f"dlrmctl compress-embeddings RUN -o OUT --method {name}", need, serving=True)
    return None
