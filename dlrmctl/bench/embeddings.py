"""Measures the NE of smaller tables, with equal tuning and paired seeds (`dlrmctl bench embeddings`).

Every method tries the same factors of its learning rates with seed 0 and keeps the one with the best validation NE.
Then each is trained with that factor on seeds 1, 2, ..., which fix the initial values, the order of the examples and,
for synthetic data, the teacher and its rows. Methods are compared by the test NE for the same seed.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dlrmctl.bench.timing import mean_and_error
from dlrmctl.console.console import print_table, say
from dlrmctl.console.text import bytes_text, counted, fixed, with_error
from dlrmctl.data.files import scratch_directory
from dlrmctl.datasets.open import open_source
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks
from dlrmctl.ranks.process import set_precision
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.settings.config import Config, resolve
from dlrmctl.training.train import Trainer

TUNING_SEED = 0


def method_settings(config: Config, method: str) -> Config:
    """Returns the settings overridden by those of a method.

    Args:
        config: all other settings.
        method: a kind of tables and more settings, such as "qr" or "qr:operation=add:collisions=16".

    Raises:
        UserError: if the method cannot be parsed, or a setting is wrong.
    """
    kind, *changes = method.split(":")
    flags = {"embedding": kind}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--methods: {change!r} of {method!r} is not a setting and its value", "qr:operation=add")
        flags[name.replace("-", "_")] = value
    sections = config.to_dict(derived=False)  # the method decides the learning rate of its tables
    sections["embeddings"] |= flags
    return resolve(sections, {}, file_name=f"--methods {method}")


def bench_embeddings(
    config: Config, ranks: Ranks, *, methods: Sequence[str], factors: Sequence[float], seeds: int
) -> dict[str, Any]:
    """Trains every method with every factor once, and with its best factor on every seed.

    Args:
        config: all other settings.
        methods: as for `method_settings`; the others are compared with the first.
        factors: factors of all learning rates of tables.
        seeds: 1, 2, ..., seeds.

    Returns:
        Plain values: per method its factor, bytes, test NE by seed, mean, and the paired difference to the first.
    """
    settings = {method: method_settings(config, method) for method in methods}
    set_precision(config.train.precision)
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        tried = {}
        for factor in factors if len(factors) > 1 else ():
            results = _train(_variant(settings[method], factor, TUNING_SEED), ranks)
            tried[factor] = results["validation"]["ne"]
            _tell(ranks, method, factor, TUNING_SEED, results["validation"])
        best = min(tried, key=lambda factor: tried[factor]) if tried else factors[0]
        found[method] = {"factor": best, "validation_ne_by_factor": tried, "runs": []}
    for seed in range(1, seeds + 1):
        for method in methods:
            results = _train(_variant(settings[method], found[method]["factor"], seed), ranks)
            found[method]["runs"].append({"seed": seed, "bytes": results["bytes"], **results["test"]})
            _tell(ranks, method, found[method]["factor"], seed, results["test"])
    base = [run["ne"] for run in found[methods[0]]["runs"]]
    return {
        "baseline": methods[0],
        "seeds": seeds,
        "factors": list(factors),
        "methods": {method: entry | _summary(entry["runs"], base) for method, entry in found.items()},
        "differences": _all_pairs({method: [run["ne"] for run in entry["runs"]] for method, entry in found.items()}),
        "settings": config.to_dict(),
    }


def _variant(config: Config, factor: float, seed: int) -> Config:
    optim = config.optim
    return replace(
        config,
        data=replace(config.data, synthetic_seed=seed),
        optim=replace(optim, sparse_lr=optim.sparse_lr * factor, qr_lr=optim.qr_lr * factor),
        train=replace(config.train, seed=seed, keep_checkpoints=1),
    )


def _train(config: Config, ranks: Ranks) -> dict[str, Any]:
    """Returns the results of a run, and the bytes of its tables with their optimizer state."""
    with scratch_directory() as scratch:
        run = RunDirectory(ranks.broadcast(scratch) / "run", writes=ranks.is_main)
        with run.created():
            source = open_source(config.data)
            config = config.fitted(source.num_examples("train"), ranks.world_size)
            trainer = Trainer(config, source, run, ranks, quiet=True)
            trainer.begin()
            results = trainer.run_to_the_end()
        return results | {"bytes": sum(table.bytes for table in trainer.model.sharded.plan)}


def _tell(ranks: Ranks, method: str, factor: float, seed: int, metrics: Mapping[str, Any]) -> None:
    if ranks.is_main:
        gap = f"  gap closed {fixed(100 * metrics['gap_closed'], '.1f')} %" if "gap_closed" in metrics else ""
        say(f"{method}  factor {factor:g}  seed {seed}  NE {metrics['ne']:.5f}{gap}")


def _summary(runs: Sequence[Mapping[str, Any]], base: Sequence[float]) -> dict[str, Any]:
    nes = [run["ne"] for run in runs]
    mean, error = _paired_difference(nes, base)
    gaps = [run["gap_closed"] for run in runs if "gap_closed" in run]
    return {
        "bytes": runs[0]["bytes"],
        "ne": statistics.fmean(nes),
        "auc": statistics.fmean(run["auc"] for run in runs),
        "ne_difference": mean,
        "ne_difference_se": error,
        "gap_closed": statistics.fmean(gaps) if gaps else None,
    }


def _paired_difference(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    return mean_and_error([a - b for a, b in zip(values, base, strict=True)])


def _all_pairs(nes: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Compares every later method with every earlier one."""
    names = list(nes)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    found = [(a, b, *_paired_difference(nes[b], nes[a])) for a, b in pairs]
    return [{"of": b, "to": a, "ne": mean, "se": error} for a, b, mean, error in found]


def show_bench_embeddings(result: dict[str, Any]) -> None:
    """Prints the result."""
    base, methods = result["baseline"], result["methods"]
    rows = [
        [
            name,
            bytes_text(m["bytes"]),
            f"{m['bytes'] / methods[base]['bytes']:.3f}",
            f"{m['factor']:g}",
            f"{m['ne']:.5f}",
            with_error(m["ne_difference"], m["ne_difference_se"], "+.5f"),
            "-" if m["gap_closed"] is None else f"{fixed(100 * m['gap_closed'], '.1f')} %",
        ]
        for name, m in methods.items()
    ]
    columns = ["", "tables", "size", "rates x", "test NE", f"against {base}", "gap closed"]
    seeds = counted(result["seeds"], "seed")
    print_table(f"test NE, mean of {seeds}, differences paired by seed ± standard error", columns, rows)
    print_table(
        "every pair",
        ["", "test NE", "in standard errors"],
        [
            [f"{p['of']} against {p['to']}", with_error(p["ne"], p["se"], "+.5f"), _ratio(p["ne"], p["se"])]
            for p in result["differences"]
        ],
    )


def _ratio(mean: float, error: float | None) -> str:
    return fixed(mean / error, ".1f") if error else "-"
