"""Checks by the numbers of `dlrmctl plan`, before memory is allocated, that a training fits its ranks."""

from dataclasses import dataclass, replace

import torch

from dlrmctl.console.text import bytes_text
from dlrmctl.data.schema import Schema
from dlrmctl.errors import UserError
from dlrmctl.plan.cluster import these_ranks
from dlrmctl.plan.memory import COPY, PARTS, MemoryPlan, plan_memory
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import Config
from dlrmctl.settings.setting import shown

_SMALLER_TABLES = (
    "--embedding qr with a larger --compress-ratio, a smaller --dim, or more ranks; `dlrmctl plan` with the same flags "
    "shows every table and what would fit"
)


@dataclass(frozen=True)
class Rooms:
    """What the memory of each rank has room for.

    Attributes:
        tables: bytes for tables with their lookups; None if unknown.
        wide: bytes for first-order weights; None if unknown.
        copy: whether checkpoints are written from a copy of the state, while training continues.
    """

    tables: int | None = None
    wide: int | None = None
    copy: bool = False


def check_memory(config: Config, schema: Schema, ranks: Ranks) -> Rooms:
    """Returns the room for each part. Every rank must call it.

    Raises:
        UserError: on every rank, if the training does not fit, before anything is allocated.
    """
    cluster = these_ranks(ranks)
    host = None
    if ranks.device.type == "cuda":
        host = these_ranks(replace(ranks, device=torch.device("cpu"))).memory_bytes

    def rooms() -> tuple[int | None, int | None, bool]:
        plan = plan_memory(config, schema, cluster)
        if not plan.fits:
            raise _refusal(config, plan)
        if host is not None and (needed := max(plan.host_tables)) > host:
            raise UserError(
                f"embeddings.placement = {config.embeddings.placement} needs {bytes_text(needed)} of host memory on a "
                f"rank, which has {bytes_text(host)}",
                _SMALLER_TABLES,
            )
        if host is not None and max(map(sum, zip(plan.copy, plan.host_tables, strict=True))) > host:
            raise _no_copy(plan, host - max(plan.host_tables))
        return plan.table_room, plan.wide_room, plan.copies

    return Rooms(*ranks.from_main(rooms))


def _no_copy(plan: MemoryPlan, room: int) -> UserError:
    """Returns the error for a copy that checkpoints should be written from, and that does not fit."""
    return UserError(
        f"train.async_save = true needs {bytes_text(max(plan.copy))} of host memory on a rank, which has "
        f"{bytes_text(room)}",
        "--no-async-save, or more memory",
    )


def _refusal(config: Config, plan: MemoryPlan) -> UserError:
    """Returns the error with the numbers of the fullest rank, and what to change first."""
    cluster = plan.cluster
    if plan.problem is not None and max(plan.totals) <= (cluster.memory_bytes or 0):
        return UserError(plan.problem, _SMALLER_TABLES)  # the planner counts more for lookups than this does
    assert cluster.memory_bytes is not None
    without_copy = max(sum(parts) for parts in zip(*(plan.parts[n] for n in PARTS if n != COPY), strict=True))
    if without_copy <= cluster.memory_bytes:
        return _no_copy(plan, cluster.memory_bytes - without_copy)
    rank = max(range(cluster.world_size), key=lambda r: plan.totals[r])
    needs = {name: plan.parts[name][rank] for name in PARTS if plan.parts[name][rank]}
    listed = ", ".join(f"{name} {bytes_text(needs[name])}" for name in sorted(needs, key=lambda name: -needs[name])[:4])
    where = "it" if cluster.world_size == 1 else f"rank {rank} of {cluster.world_size}"
    message = (
        f"the training does not fit in memory: {where} needs {bytes_text(plan.totals[rank])} ({listed}) and has "
        f"{bytes_text(cluster.memory_bytes)}"
    )
    of_batch = sum(needs.get(name, 0) for name in ("activations", "batches", "lookups"))
    room = cluster.memory_bytes - (plan.totals[rank] - of_batch)
    if room > 0 and of_batch > needs.get("tables", 0):
        size = config.train.batch_size
        fits = 1 << max(int(0.9 * size * room / of_batch).bit_length() - 1, 0)
        return UserError(f"{message}; train.batch_size = {size:,}", f"a smaller --batch-size, such as {fits}")
    if plan.fixed_bytes <= cluster.memory_bytes:
        largest = max(plan.placements, key=lambda table: table.bytes)
        message += f"; the largest table, {largest.table}, has {largest.rows:,} rows of {largest.dim}"
        return UserError(message, _SMALLER_TABLES)
    dense = sum(needs.get(name, 0) for name in ("MLPs", "gradients", "optimizer"))
    if dense > cluster.memory_bytes:
        mlps = f"{shown(config.model.bottom_mlp)} and {shown(config.model.top_mlp)}"
        message += f"; the MLPs {mlps} have {plan.dense.num_weights:,} weights"
        return UserError(message, "smaller --bottom-mlp or --top-mlp")
    return UserError(f"{message}; train.batch_size = {config.train.batch_size:,}", "a smaller --batch-size")
