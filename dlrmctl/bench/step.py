"""Measures the training step at the shapes of the Criteo Kaggle data, against its floor and the machine's limits.

13 dense features, 26 tables. Examples have ids that follow a power law; they are written to a store, and read as
training reads them. Each variant differs from the settings in one value and is alternated with them in one run.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import torch

from dlrmctl.bench.limits import Limits
from dlrmctl.bench.timing import alternate, collective_milliseconds, peak_bytes, spread, spread_of_rates
from dlrmctl.bench.variants import PARTS, Variant
from dlrmctl.console.console import output, print_table, say
from dlrmctl.console.text import bytes_text, counted, rate_text
from dlrmctl.data.files import scratch_directory, whole_file
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import write_store
from dlrmctl.data.synthetic.cardinalities import KAGGLE
from dlrmctl.data.synthetic.synthetic import MAX_CARDINALITY, Synthetic
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import Config

_PARTED = "base, by part"
_MOST_STORED = 1 << 20  # examples in the store; longer rounds read them again
_TRACED_STEPS = 10


def bench_step(
    configs: Mapping[str, Config],
    ranks: Ranks,
    *,
    rounds: int,
    steps: int,
    rows_cap: int,
    trace: Path | None = None,
) -> dict[str, Any]:
    """Times rounds of training steps of every variant, each after a round of its floor, after one round of warm-up.

    Args:
        configs: settings by name; the others are compared with the first, the base.
        rounds: number of rounds, of which medians are taken.
        steps: steps of the first variant per round; the others see as many examples.
        rows_cap: the most rows of a table.
        trace: a file for a trace of the first variant, on rank 0, in Chrome's format; then waits are counted.

    Returns:
        Plain values: "limits" of the machine, "variants" with times, shares of the floor, ratios and bytes, and of the
        first variant "parts_ms", measured in rounds of their own, "step_of_parts_ms", the whole step in these rounds,
        "floor_parts_ms", "against_limits" and "communication_ms"; with `trace` also "waits" of all variants.
    """
    configs = {name: config.fitted(None, ranks.world_size) for name, config in configs.items()}
    base_name, base_config = next(iter(configs.items()))
    examples = steps * base_config.train.batch_size
    sizes = {config.train.batch_size for config in configs.values()}
    stored = max(2 * max(sizes), min(_MOST_STORED, (2 * rounds + 2) * examples))
    cardinalities = [min(rows, rows_cap, MAX_CARDINALITY) for rows in KAGGLE]
    with scratch_directory() as scratch, ExitStack() as readers:
        _tell(ranks, f"writing {stored:,} examples")
        write_store(Synthetic(0, stored, 1, 1, cardinalities=cardinalities), scratch / "store")
        store = Store(scratch / "store")
        rows, dim = sum(f.rows for f in store.schema.sparse), base_config.embeddings.dim
        table_RD = torch.ones(rows, dim, device=ranks.device)
        variants: dict[str, Variant] = {}
        for name, config in configs.items():
            _tell(ranks, f"building {name}")
            variants[name] = readers.enter_context(closing(Variant(config, store, ranks, table_RD, examples=examples)))
        base = variants[base_name]
        limits, cpu = Limits(table_RD, num_ids=len(base.floor.rows)), defaultdict[str, list[float]](list)
        works = dict(limits.works)
        for name, variant in variants.items():
            works[f"floor of {name}"] = _counted(variant.bare, cpu[f"floor of {name}"])
            works[name] = _counted(variant.train, cpu[name])
        all_parts: list[dict[str, float]] = []
        works[_PARTED] = lambda: all_parts.append(base.split())
        _tell(ranks, f"{counted(rounds, 'round')} of {examples:,} examples each")
        seconds = alternate(works, rounds=rounds, device=ranks.device)
        parts, floor_parts = all_parts[1:], base.floor_parts[1:]  # without the warm-up
        communication = collective_milliseconds(base.train, base.steps) if ranks.world_size > 1 else {}
        waits = {}
        if trace is not None:
            _tell(ranks, "tracing")
            waits = {name: _waits(variant, trace if variant is base else None) for name, variant in variants.items()}
        measured = {
            name: _variant(variant, name, seconds, cpu, base, seconds[base_name]) for name, variant in variants.items()
        }
    result = {
        "limits": limits.rates(seconds),
        "variants": measured,
        "parts_ms": {part: spread([each[part] for each in parts]) for part in parts[0]},
        "step_of_parts_ms": spread([s * 1e3 / base.steps for s in seconds[_PARTED]]),
        "floor_parts_ms": {part: spread([each[part] for each in floor_parts]) for part in PARTS},
        "communication_ms": communication,
        **({"waits": waits} if waits else {}),
        "ranks": ranks.world_size,
        "rows": rows,
        "settings": base_config.to_dict(),
    }
    return result | {"against_limits": _against_limits(result, base)}


def _variant(
    variant: Variant,
    name: str,
    seconds: Mapping[str, list[float]],
    cpu: Mapping[str, list[float]],
    base: Variant,
    base_seconds: list[float],
) -> dict[str, Any]:
    size = variant.config.train.batch_size
    step_ms, floor_ms = ([s * 1e3 / variant.steps for s in seconds[key]] for key in (name, f"floor of {name}"))
    ahead = variant.steps * size / (base.steps * base.config.train.batch_size)
    shares = [f / s for f, s in zip(cpu[f"floor of {name}"][1:], cpu[name][1:], strict=True)]  # without the warm-up
    step_bytes = peak_bytes(partial(variant.train, steps=1), variant.ranks.device)
    return {
        "batch_size": size,
        "steps": variant.steps,
        "examples_per_second": size * 1e3 / statistics.median(step_ms),
        "step_ms": spread(step_ms),
        "floor_ms": spread(floor_ms),
        "floor_share": spread_of_rates([f / s for f, s in zip(floor_ms, step_ms, strict=True)]),
        # The processor's time says nothing about the work of a GPU.
        "cpu_floor_share": spread_of_rates(shares) if variant.ranks.device.type == "cpu" else None,
        "to_base": spread_of_rates([ahead * b / s for s, b in zip(seconds[name], base_seconds, strict=True)]),
        "held_bytes": variant.held_bytes(),
        "step_bytes": step_bytes,
    }


def _waits(variant: Variant, trace: Path | None) -> dict[str, Any]:
    """Returns what steps wait for, per step; on rank 0 it writes their trace."""
    steps = _TRACED_STEPS
    with scratch_directory() as scratch:
        file = scratch / "trace.json" if trace is not None and variant.ranks.is_main else None
        waits = variant.waits(steps, file)
        if file is not None and trace is not None:
            with file.open("rb") as made, whole_file(trace) as kept:
                copyfileobj(made, kept)
            say(f"wrote {trace}")
    calls, reads = waits.synchronizations, waits.host_reads
    return {
        "steps": steps,
        # CPUs are not waited for, so only a GPU has a number.
        "synchronizations_per_step": sum(calls.values()) / steps if variant.ranks.device.type == "cuda" else None,
        "synchronizations": {name: calls[name] / steps for name in sorted(calls)},
        "host_reads_per_step": sum(reads.values()) / steps,
        "host_reads": {name: reads[name] / steps for name in sorted(reads)},
    }


def _base(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the measured values of the first variant."""
    base: dict[str, Any] = next(iter(result["variants"].values()))
    return base


def _against_limits(result: Mapping[str, Any], base: Variant) -> dict[str, dict[str, float]]:
    """Returns rates of the first variant and the machine's: the best products, and the floor's bare rows.

    A rate above the measured limits becomes the limit.
    """
    limits, parts, floor = result["limits"], result["parts_ms"], result["floor_parts_ms"]
    kinds = ["sgemm_gflops"] if base.config.train.precision == "fp32" else ["sgemm_gflops", "bf16_gemm_gflops"]
    product = max(rate["fastest"] for kind in kinds for rate in limits[kind].values())
    flop, moved = base.floor.flop / 1e6, base.floor.taken_ND.nbytes / 1e6
    both = floor["gather"]["fastest"] + floor["scatter"]["fastest"]
    product = max(product, flop / floor["products"]["fastest"])
    works = {
        "bare products, GFLOP/s": (flop, floor["products"], product),
        "whole step, GFLOP/s": (flop, _base(result)["step_ms"], product),
        "lookup, GB/s": (moved, parts["lookup"], moved / floor["gather"]["fastest"]),
        "sparse update, GB/s": (2 * moved, parts["sparse update"], 2 * moved / both),
    }
    rates = {}
    for name, (amount, times, measured) in works.items():
        ours, limit = amount / times["median"], max(measured, amount / times["fastest"])
        rates[name] = {"ours": ours, "limit": limit, "share": ours / limit}
    return rates


def _counted(work: Callable[[], None], seconds: list[float]) -> Callable[[], None]:
    """Returns the same work with the CPU seconds of all threads, which other programs disturb less than the clock."""

    def run() -> None:
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)

    return run


def _tell(ranks: Ranks, message: str) -> None:
    if ranks.is_main:
        say(message)


def show_bench_step(result: dict[str, Any]) -> None:
    """Prints the result."""
    environment = result["environment"]
    output.print(
        f"batch {result['settings']['train']['batch_size']:,}, {result['rows']:,} rows, {result['ranks']} x "
        f"{environment['device']}, {counted(environment['threads'], 'thread')}, {environment['processor']}"
    )
    _show_machine(result)
    _show_variants(result["variants"])
    parts, whole, above = (
        result["parts_ms"],
        result["step_of_parts_ms"],
        _base(result)["step_ms"],
    )
    here, there = _milliseconds(whole["median"]), _milliseconds(above["median"])
    title = "parts of the step, base, ms, in rounds of their own"
    _show_parts(
        f"{title}, in which the whole step takes {here}, and {there} above",
        parts | {"whole step": whole},
        whole["median"],
    )
    floor = result["floor_parts_ms"]
    _show_parts("parts of its floor, ms", floor, sum(figures["median"] for figures in floor.values()))
    if result["communication_ms"]:
        print_table(
            "collectives in progress, ms per step, traced; backward continues meanwhile",
            ["", "ms"],
            [[name, f"{ms:.2f}"] for name, ms in result["communication_ms"].items()],
        )
    if "waits" in result:
        _show_waits(result["waits"])


def _show_waits(waits: Mapping[str, Any]) -> None:
    rows = []
    for name, figures in waits.items():
        for kind in ("synchronizations", "host_reads"):
            if figures[f"{kind}_per_step"] is not None:
                rows.append([f"{name}, {kind.replace('_', ' ')}", f"{figures[f'{kind}_per_step']:.1f}"])
                rows += [[f"  {what}", f"{per_step:.1f}"] for what, per_step in figures[kind].items()]
    print_table(
        "waits, traced; a host read needs values of a tensor, for which a GPU is waited", ["", "per step"], rows
    )


def _show_machine(result: dict[str, Any]) -> None:
    limits = result["limits"]
    rows = [
        (f"{name}, GFLOP/s, threads {threads}", figures)
        for name, kind in (("sgemm", "sgemm_gflops"), ("bf16 gemm", "bf16_gemm_gflops"))
        for threads, figures in limits[kind].items()
    ]
    rows += [
        (f"{what}, GB/s", limits[f"{kind}_gigabytes_per_second"])
        for what, kind in (("copy", "copy"), ("rows read at random", "gather"), ("rows written at random", "scatter"))
    ]
    print_table(
        "limits of the machine",
        ["", "median", "fastest", "slowest"],
        [[name, *(rate_text(figures[key]) for key in ("median", "fastest", "slowest"))] for name, figures in rows],
    )
    print_table(
        "base against the limits; a limit is the most that was measured in this run",
        ["", "ours", "limit", "share"],
        [
            [name, rate_text(row["ours"]), rate_text(row["limit"]), f"{100 * row['share']:.1f} %"]
            for name, row in result["against_limits"].items()
        ],
    )


def _show_variants(variants: dict[str, Any]) -> None:
    print_table(
        "a row per variant, medians and ranges over rounds; CPU: of floor in CPU seconds of all threads",
        [
            "",
            "batch",
            "examples/s",
            "x base",
            "range",
            "ms",
            "floor ms",
            "of floor",
            "of floor, range",
            "CPU",
            "held",
            "in a step",
        ],
        [
            [
                name,
                f"{row['batch_size']:,}",
                f"{row['examples_per_second']:,.0f}",
                f"{row['to_base']['median']:.2f}",
                _range(row["to_base"], 1, "{:.2f}"),
                f"{row['step_ms']['median']:.2f}",
                f"{row['floor_ms']['median']:.2f}",
                f"{100 * row['floor_share']['median']:.0f} %",
                _range(row["floor_share"], 100, "{:.0f}"),
                f"{100 * row['cpu_floor_share']['median']:.0f} %" if row["cpu_floor_share"] else "",
                bytes_text(row["held_bytes"]),
                bytes_text(row["step_bytes"]),
            ]
            for name, row in variants.items()
        ],
        optional=("in a step", "held", "CPU", "of floor, range", "floor ms", "batch", "range"),
    )


def _range(figures: dict[str, float], scale: float, form: str) -> str:
    low, high = sorted((figures["fastest"], figures["slowest"]))
    return f"{form.format(scale * low)}-{form.format(scale * high)}"


def _show_parts(title: str, parts: dict[str, Any], whole: float) -> None:
    print_table(
        title,
        ["", "median", "fastest", "slowest", "share"],
        [
            [
                part,
                *(_milliseconds(figures[key]) for key in ("median", "fastest", "slowest")),
                f"{100 * figures['median'] / whole if whole else 0:.1f} %",
            ]
            for part, figures in parts.items()
        ],
    )


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value >= 1 or value == 0 else f"{value:#.2g}"
