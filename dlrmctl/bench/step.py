"""`dlrmctl bench step`: the training step at the shapes of the Criteo Kaggle data, against its floor and the machine.

13 dense features, 26 tables. Examples are made up with ids that follow a power law, written to a store, and read as
training reads them. Variants differ from the settings in one thing each and are alternated with them in one run.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.store import Store
from data.synthetic import MAX_CARDINALITY, Synthetic
from data.synthetic_sizes import KAGGLE
from data.writer import write_store
from dlrmctl.bench.floor import PARTS
from dlrmctl.bench.limits import Limits
from dlrmctl.bench.lists import BASE
from dlrmctl.bench.timing import alternate, spread, spread_of_rates
from dlrmctl.bench.traced import collective_milliseconds, peak_bytes
from dlrmctl.bench.variants import Variant
from dlrmctl.bench.wording import counted
from dlrmctl.config import Config
from dlrmctl.console import say
from dlrmctl.ranks import Ranks

_PARTED = "base, by part"
_MOST_STORED = 1 << 20  # examples written; rounds beyond them read them again


def bench_step(
    configs: Mapping[str, Config], ranks: Ranks, *, rounds: int, steps: int, rows_cap: int
) -> dict[str, Any]:
    """Times rounds of training steps of every variant, each after a round of its floor, and one round of warm-up.

    Args:
        configs: by name; `BASE` comes first and is what the others are held against.
        rounds: medians are over these.
        steps: of the first variant per round; the others see as many examples.
        rows_cap: larger tables are cut to this many rows.

    Returns:
        Plain values: "limits" of the machine, "variants" with times, shares of the floor, ratios and bytes, and of the
        first variant "parts_ms", measured in rounds of their own, "step_of_parts_ms", the whole step in these rounds,
        "floor_parts_ms", "against_limits" and "communication_ms".
    """
    examples = steps * configs[BASE].train.batch_size
    sizes = {config.train.batch_size for config in configs.values()}
    stored = max(2 * max(sizes), min(_MOST_STORED, (2 * rounds + 2) * examples))
    cardinalities = [min(rows, rows_cap, MAX_CARDINALITY) for rows in KAGGLE]
    with tempfile.TemporaryDirectory(prefix="dlrmctl-bench-") as scratch, ExitStack() as readers:
        _tell(ranks, f"writing {stored:,} examples")
        write_store(Synthetic(0, stored, 1, 1, cardinalities=cardinalities), Path(scratch) / "store")
        store = Store(Path(scratch) / "store")
        rows, dim = sum(f.rows for f in store.schema.sparse), configs[BASE].embeddings.dim
        table_RD = torch.ones(rows, dim, device=ranks.device)
        variants: dict[str, Variant] = {}
        for name, config in configs.items():
            _tell(ranks, f"building {name}")
            variants[name] = readers.enter_context(closing(Variant(config, store, ranks, table_RD, examples=examples)))
        base = variants[BASE]
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
        measured = {name: _variant(variant, name, seconds, cpu, base) for name, variant in variants.items()}
    result = {
        "limits": limits.rates(seconds),
        "variants": measured,
        "parts_ms": {part: spread([each[part] for each in parts]) for part in parts[0]},
        "step_of_parts_ms": spread([s * 1e3 / base.steps for s in seconds[_PARTED]]),
        "floor_parts_ms": {part: spread([each[part] for each in floor_parts]) for part in PARTS},
        "communication_ms": communication,
        "ranks": ranks.world_size,
        "rows": rows,
        "settings": configs[BASE].to_dict(),
    }
    return result | {"against_limits": _against_limits(result, base)}


def _variant(
    variant: Variant, name: str, seconds: Mapping[str, list[float]], cpu: Mapping[str, list[float]], base: Variant
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
        "cpu_floor_share": spread_of_rates(shares),
        "to_base": spread_of_rates([ahead * b / s for s, b in zip(seconds[name], seconds[BASE], strict=True)]),
        "held_bytes": variant.held_bytes(),
        "step_bytes": step_bytes,
    }


def _against_limits(result: Mapping[str, Any], base: Variant) -> dict[str, dict[str, float]]:
    """Rates of the first variant beside what the machine can do: products at their best, and the floor's bare rows.

    What is more than the limits measured is a limit itself: the machine has done it.
    """
    limits, parts, floor = result["limits"], result["parts_ms"], result["floor_parts_ms"]
    kinds = ["sgemm_gflops"] if base.config.train.precision == "fp32" else ["sgemm_gflops", "bf16_gemm_gflops"]
    product = max(rate["fastest"] for kind in kinds for rate in limits[kind].values())
    flop, moved = base.floor.flop / 1e6, base.floor.taken_ND.nbytes / 1e6
    both = floor["gather"]["fastest"] + floor["scatter"]["fastest"]
    product = max(product, flop / floor["products"]["fastest"])
    works = {
        "bare products, GFLOP/s": (flop, floor["products"], product),
        "whole step, GFLOP/s": (flop, result["variants"][BASE]["step_ms"], product),
        "lookup, GB/s": (moved, parts["lookup"], moved / floor["gather"]["fastest"]),
        "sparse update, GB/s": (2 * moved, parts["sparse update"], 2 * moved / both),
    }
    rates = {}
    for name, (amount, times, measured) in works.items():
        ours, limit = amount / times["median"], max(measured, amount / times["fastest"])
        rates[name] = {"ours": ours, "limit": limit, "share": ours / limit}
    return rates


def _counted(work: Callable[[], None], seconds: list[float]) -> Callable[[], None]:
    """The same work, noting the CPU seconds of all threads, which others on the machine disturb less than the clock."""

    def run() -> None:
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)

    return run


def _tell(ranks: Ranks, message: str) -> None:
    if ranks.is_main:
        say(message)
