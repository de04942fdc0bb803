"""Measures the steps and time that optimizers need to the same validation NE (`dlrmctl bench convergence`).

Every optimizer runs the same grid of learning rates with the same seeds, which fix initial values and the order of
examples, so that comparisons are paired. Each optimizer is reported at the rate with the best mean NE.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dlrmctl.assembly.model import build_model
from dlrmctl.assembly.optimizers import build_averaging, build_dense_optimizer
from dlrmctl.bench.timing import alternate, mean_and_error
from dlrmctl.console.console import print_table, say
from dlrmctl.console.text import counted, with_error
from dlrmctl.data.files import scratch_directory
from dlrmctl.data.source import Source
from dlrmctl.datasets.open import open_source
from dlrmctl.ranks.group import Ranks
from dlrmctl.ranks.process import set_precision
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.settings.config import Config
from dlrmctl.training.step import TrainingStep
from dlrmctl.training.train import Trainer

Curve = list[tuple[int, float]]  # step, validation NE
TIMED_STEPS = 50  # one refresh period of Shampoo's defaults


def bench_convergence(
    config: Config, ranks: Ranks, *, optimizers: Sequence[str], lrs: Sequence[float], seeds: int
) -> dict[str, Any]:
    """Trains every optimizer with every rate and seed.

    Args:
        config: all other settings.
        optimizers: dense optimizers; the others are compared with the first.
        lrs: dense learning rates.
        seeds: 0, 1, ..., seeds - 1.

    Returns:
        Plain values: per optimizer its best rate, NE, steps to the first one's best NE, milliseconds per step.
    """
    set_precision(config.train.precision)
    source = open_source(config.data)
    config = config.fitted(source.num_examples("train"), ranks.world_size)
    curves: dict[str, dict[float, list[Curve]]] = {}
    for optimizer in optimizers:
        for lr in lrs:
            for seed in range(seeds):
                curve = _train(_variant(config, optimizer, lr, seed), source, ranks)
                curves.setdefault(optimizer, {}).setdefault(lr, []).append(curve)
                say(f"{optimizer}  lr {lr:g}  seed {seed}  best NE {_best(curve)[1]:.5f} at step {_best(curve)[0]}")
    milliseconds = _step_times(config, source, ranks, optimizers)
    chosen = {name: _best_rate(by_rate) for name, by_rate in curves.items()}
    base = optimizers[0]
    targets = [_best(curve) for curve in curves[base][chosen[base]]]
    return {
        "baseline": base,
        "seeds": seeds,
        "rates": list(lrs),
        "optimizers": {
            name: _compare(curves[name][chosen[name]], targets, milliseconds[name] / milliseconds[base])
            | {"lr": chosen[name], "step_ms": milliseconds[name], "ne_by_rate": _means(curves[name])}
            for name in optimizers
        },
        "settings": config.to_dict(),
    }


def _variant(config: Config, optimizer: str, lr: float, seed: int) -> Config:
    config = replace(config, optim=replace(config.optim, shampoo_overhead=None))
    # `change` keeps a rate that happens to be the default of another optimizer.
    return config.change(dense_optimizer=optimizer, dense_lr=lr, seed=seed, keep_checkpoints=1)


def _train(config: Config, source: Source, ranks: Ranks) -> Curve:
    with scratch_directory() as scratch:
        run = RunDirectory(ranks.broadcast(scratch) / "run", writes=ranks.is_main)
        with run.created():
            trainer = Trainer(config, source, run, ranks, quiet=True)
            trainer.begin()
            trainer.run_to_the_end()
        entries = [json.loads(line) for line in run.metrics_file.read_text().splitlines()] if ranks.is_main else []
        return ranks.broadcast([(e["step"], e["ne"]) for e in entries if e["kind"] == "validation"])


def _step_times(config: Config, source: Source, ranks: Ranks, optimizers: Sequence[str]) -> dict[str, float]:
    """Measures milliseconds per whole training step, amortized over a refresh period, with variants alternated."""
    from dlrmctl.bench.variants import endless_batches

    works = {}
    for name in optimizers:
        variant = _variant(config, name, 0.001, 0)
        model = build_model(variant, source.features, ranks, batch_size=config.train.batch_size // ranks.world_size)
        optimizer = build_dense_optimizer(variant.optim, model.network, ranks.group)
        averaging = build_averaging(variant.optim, optimizer)
        step = TrainingStep(model, averaging or optimizer, ranks, config.train.precision)
        batches = endless_batches(source, variant, ranks)

        def work(step: TrainingStep = step, batches: Any = batches) -> None:
            for number in range(TIMED_STEPS):
                step(next(batches).to(ranks.device, non_blocking=True), number)

        works[name] = work
    seconds = alternate(works, rounds=5, device=ranks.device)
    return {name: statistics.median(times) * 1e3 / TIMED_STEPS for name, times in seconds.items()}


def _compare(curves: Sequence[Curve], targets: Sequence[tuple[int, float]], step_cost: float) -> dict[str, Any]:
    """Compares curves with the targets of the baseline, (step, NE) per seed."""
    ratios = []
    for curve, (target_step, target_ne) in zip(curves, targets, strict=True):
        reached = next((step for step, ne in curve if ne <= target_ne), None)
        ratios.append(math.inf if reached is None else reached / target_step)
    differences = [_best(curve)[1] - ne for curve, (_, ne) in zip(curves, targets, strict=True)]
    reached_all = all(math.isfinite(ratio) for ratio in ratios)
    difference, difference_se = mean_and_error(differences)
    ratio, ratio_se = mean_and_error(ratios) if reached_all else (math.inf, math.nan)
    return {
        "ne": statistics.fmean(_best(curve)[1] for curve in curves),
        "ne_difference": difference,
        "ne_difference_se": difference_se,
        "steps_ratio": ratio if reached_all else None,
        "steps_ratio_se": ratio_se if reached_all else None,
        "seeds_that_reached": sum(math.isfinite(ratio) for ratio in ratios),
        "step_cost": step_cost,
        "time_ratio": ratio * step_cost if reached_all else None,
    }


def show_bench_convergence(result: dict[str, Any]) -> None:
    """Prints the result."""
    base, seeds = result["baseline"], result["seeds"]
    rows = []
    for name, r in result["optimizers"].items():
        steps = "-" if r["steps_ratio"] is None else with_error(r["steps_ratio"], r["steps_ratio_se"], ".2f")
        time = "-" if r["time_ratio"] is None else f"{r['time_ratio']:.2f}"
        rows.append(
            [
                name,
                f"{r['lr']:g}",
                f"{r['ne']:.5f}",
                with_error(r["ne_difference"], r["ne_difference_se"], "+.5f"),
                f"{r['seeds_that_reached']}/{seeds}",
                steps,
                f"{r['step_cost']:.2f}",
                time,
            ]
        )
    columns = ["", "lr", "best NE", f"against {base}", "reached it", "steps", "ms per step", "time"]
    print_table(f"until {base}'s best validation NE, {counted(seeds, 'seed')}, ratios to {base}", columns, rows)


def _best(curve: Curve) -> tuple[int, float]:
    return min(curve, key=lambda point: point[1])


def _means(by_rate: Mapping[float, Sequence[Curve]]) -> dict[float, float]:
    return {lr: statistics.fmean(_best(curve)[1] for curve in curves) for lr, curves in by_rate.items()}


def _best_rate(by_rate: Mapping[float, Sequence[Curve]]) -> float:
    means = _means(by_rate)
    return min(means, key=lambda lr: means[lr])
