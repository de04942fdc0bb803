"""Prints a plan: tables, ranks, time, and remedies, in less than fifty lines for Criteo's 26 tables."""

import statistics
from collections.abc import Sequence
from typing import Any

from dlrmctl.assembly.tables import summary
from dlrmctl.console.console import output, print_json, print_table, say
from dlrmctl.console.text import bytes_text
from dlrmctl.data.schema import Schema
from dlrmctl.embeddings.sharding.memory import state_bytes, weight_bytes
from dlrmctl.embeddings.sharding.placement import CACHED, Placement
from dlrmctl.plan.cluster import Cluster
from dlrmctl.plan.memory import COPY, MemoryPlan
from dlrmctl.plan.plan import Answer, answer
from dlrmctl.plan.steptime import Rate, Rates
from dlrmctl.settings.amounts import bandwidth_text, flops_text, time_text
from dlrmctl.settings.config import Config

_MANY_RANKS = 32  # from this number on the planner takes seconds
_MOST_TABLES = 26  # the others share one line
_FEW_RANKS = 4
# Columns of the table of ranks, and the parts that each sums up.
_COLUMNS = {
    "tables": ("tables",),
    "their state": ("table state",),
    "first-order weights": ("first-order",),
    "MLPs, gradients": ("MLPs", "gradients"),
    "optimizer": ("optimizer",),
    "batch, lookups, activations": ("batches", "lookups", "activations"),
    "copy for checkpoints": (COPY,),
    "process": ("process",),
}


def plan_and_show(
    config: Config, schema: Schema, cluster: Cluster, *, examples: int | None, as_json: bool, **given: Any
) -> bool:
    """Prints the plan; returns whether it fits.

    Args:
        examples: of the training split; None where there is no data.
        given: further arguments of `answer`.

    Raises:
        UserError: if the settings do not fit the tables or the ranks.
    """
    config = config.fitted(examples, cluster.world_size)
    if cluster.world_size >= _MANY_RANKS:
        say(f"planning for {cluster.name}")
    found = answer(config, schema, cluster, **given)
    print_json(found.to_dict()) if as_json else _show_plan(found)
    return found.memory.fits


def _show_plan(answer: Answer) -> None:
    """Prints a plan."""
    plan = answer.memory
    output.print(f"{answer.source} on {plan.cluster.name}, batch {answer.config.train.batch_size:,}")
    output.print(summary(plan.embeddings.features, answer.config.embeddings))
    _show_tables(plan.placements)
    _show_ranks(plan)
    _show_time(answer)
    _show_verdict(answer)


def _show_tables(placements: Sequence[Placement]) -> None:
    shown, rest, cached = list(placements), [], any(table.kernel == CACHED for table in placements)
    if len(shown) > _MOST_TABLES:
        by_size = sorted(shown, key=lambda table: -table.bytes)
        kept = set(map(id, by_size[: _MOST_TABLES - 1]))
        shown, rest = [t for t in shown if id(t) in kept], [t for t in shown if id(t) not in kept]
    rows = [
        [
            t.table,
            f"{t.rows:,}",
            str(t.dim),
            bytes_text(weight_bytes(t.rows, t.dim, t.precision)),
            bytes_text(state_bytes(t.rows)),
            *([bytes_text(max(t.rank_cache_bytes)) if t.kernel == CACHED else "-"] if cached else []),
            t.sharding,
            _ranks_text(t.ranks),
        ]
        for t in shown
    ]
    if rest:
        total = sum(t.rows for t in rest)
        weights = bytes_text(sum(weight_bytes(t.rows, t.dim, t.precision) for t in rest))
        others = [""] * (3 if cached else 2)
        rows.append([f"{len(rest)} smaller", f"{total:,}", "", weights, bytes_text(state_bytes(total)), *others])
    columns = ["", "rows", "dim", "weights", "AdaGrad", *(["cache"] if cached else []), "sharding", "ranks"]
    print_table("tables; those with a cache are in host memory" if cached else "tables", columns, rows)


def _ranks_text(ranks: Sequence[int]) -> str:
    """Formats consecutive ranks as 0 or 0-15."""
    ordered = sorted(ranks)
    if len(ordered) > 1 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}-{ordered[-1]}"
    return ",".join(map(str, ordered))


def _show_ranks(plan: MemoryPlan) -> None:
    columns = {title: parts for title, parts in _COLUMNS.items() if any(max(plan.parts[p]) for p in parts)}
    per_rank = {title: [sum(plan.parts[p][r] for p in parts) for r in _ranks(plan)] for title, parts in columns.items()}
    per_rank["total"] = list(plan.totals)
    if plan.cluster.world_size <= _FEW_RANKS:
        lines = {f"rank {rank}": {title: values[rank] for title, values in per_rank.items()} for rank in _ranks(plan)}
    else:
        lines = {
            name: {title: int(of(values)) for title, values in per_rank.items()}
            for name, of in (("least", min), ("median", statistics.median), ("most", max))
        }
    limit = plan.cluster.memory_bytes
    rows = [
        [name, *(bytes_text(value) for value in line.values()), _share(line["total"], limit)]
        for name, line in lines.items()
    ]
    has = "" if limit is None else f" of {bytes_text(limit)}"
    print_table(f"memory per rank{has}", ["", *per_rank, "used"], rows)
    if any(plan.host_tables):
        output.print(f"host memory per rank, for tables with a cache on the GPU: {bytes_text(max(plan.host_tables))}")
    if plan.copies and plan.cluster.device_type == "cuda":
        output.print(
            f"host memory per rank, for the copy that checkpoints are written from: {bytes_text(max(plan.copy))}"
        )


def _ranks(plan: MemoryPlan) -> range:
    return range(plan.cluster.world_size)


def _share(total: int, limit: int | None) -> str:
    return "-" if not limit else f"{100 * total / limit:.0f} %" if limit > 0 else "-"


def _show_time(answer: Answer) -> None:
    time = answer.time
    parts = {name: "?" if seconds is None else time_text(seconds) for name, seconds in time.parts.items()}
    whole = "?" if time.total is None else time_text(time.total)
    print_table("time of a step, estimated", ["", *parts, "sum"], [["slowest rank", *parts.values(), whole]])
    if time.total is None:
        output.print(f"no estimate of the total without {', '.join(_missing(answer.rates, answer.memory))}")
        return
    per_second = answer.config.train.batch_size / time.total
    output.print(f"bound by {time.bound_by}; about {per_second:,.0f} examples/s, without reading data, from")
    output.print(", ".join(_rate_texts(answer.rates, answer.memory)))
    if (shares := time.optimizer_shares) and answer.config.optim.dense_optimizer == "shampoo":
        texts = [f"{100 * share:.0f} % over the first {steps:,} steps" for steps, share in shares.items()]
        output.print(f"the optimizer adds to the rest of a step about {' and '.join(texts)}")


def _missing(rates: Rates, plan: MemoryPlan) -> list[str]:
    needed = {"--flops": rates.flops, "--memory-bw": rates.memory}
    if plan.cluster.ranks_per_node > 1:
        needed["--intra-bw"] = rates.intra
    if plan.cluster.nodes > 1:
        needed["--inter-bw"] = rates.inter
    return [flag for flag, rate in needed.items() if rate is None]


def _rate_texts(rates: Rates, plan: MemoryPlan) -> list[str]:
    found: list[tuple[str, Rate | None, bool]] = [
        ("memory", rates.memory, True),
        ("random rows", rates.gather, True),
        ("to ranks of its node", rates.intra, plan.cluster.ranks_per_node > 1),
        ("to other nodes", rates.inter, plan.cluster.nodes > 1),
    ]
    assert rates.flops is not None
    texts = [f"matrix products {flops_text(rates.flops.value)} ({rates.flops.source})"]
    return texts + [
        f"{name} {bandwidth_text(rate.value)} ({rate.source})" for name, rate, wanted in found if rate and wanted
    ]


def _show_verdict(answer: Answer) -> None:
    plan = answer.memory
    limit = plan.cluster.memory_bytes
    if limit is None:
        output.print("this system does not report its memory")
        return
    most = max(plan.totals)
    if plan.fits:
        output.print(f"fits: the fullest rank needs {bytes_text(most)} of {bytes_text(limit)}")
        return
    if most > limit:
        output.print(f"does not fit: the fullest rank needs {bytes_text(most)} and has {bytes_text(limit)}")
    else:
        output.print(f"does not fit: {plan.problem}")
    if plan.cluster.process_bytes >= limit:
        output.print(f"a rank needs {bytes_text(plan.cluster.process_bytes)} before it has a model")
    elif not answer.remedies:
        output.print("no remedy found")
    for remedy in answer.remedies:
        output.print(f"  {remedy.what}: {bytes_text(remedy.bytes_per_rank)} per rank  ({remedy.flags})")
