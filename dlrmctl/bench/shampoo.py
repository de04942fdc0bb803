"""Measures Shampoo's time against Adagrad and AdamW, by part and by layer (`dlrmctl bench shampoo`).

Only the dense network: forward, backward and optimizer step, amortized over the first steps of a training, which may
refresh more often, and over later refresh periods. Variants are alternated step by step in one run, so that all see the
same machine.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from dlrmctl.assembly.network import build_dense_network
from dlrmctl.assembly.optimizers import build_dense_optimizer
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.bench.timing import now, spread
from dlrmctl.console.console import output, print_table, say
from dlrmctl.console.text import bytes_text, counted
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.optim.shampoo import DistributedShampoo
from dlrmctl.optim.shampoo.costs import PartTimes
from dlrmctl.ranks.group import Ranks
from dlrmctl.ranks.process import set_precision
from dlrmctl.settings.config import Config

VARIANTS = ("adagrad", "adamw", "shampoo")
RUN, SHORT_RUN = 1000, 200  # steps
_COSTS = ("statistics", "roots", "application", "elementwise")


class _Variant:
    """One optimizer with its own network; all have the same inputs."""

    def __init__(self, config: Config, optimizer: str, inputs: tuple[torch.Tensor, ...], ranks: Ranks) -> None:
        optim = replace(config.optim, dense_optimizer=optimizer, dense_lr=1e-4, shampoo_overhead=None)
        self.config = replace(config, optim=optim)
        self.inputs, self.ranks = inputs, ranks
        self._begin()

    def _begin(self) -> None:
        """Makes a network and an optimizer."""
        self.network = build_dense_network(self.config, Synthetic(0, 1, 1, 1).schema, self.ranks.device)
        self.optimizer = build_dense_optimizer(self.config.optim, self.network, self.ranks.group)
        if isinstance(self.optimizer, DistributedShampoo):
            self.optimizer.check_gradients = False  # as in training, where the step checks them for every optimizer

    def warm_up(self) -> None:
        """Runs some steps of a network and an optimizer, and then makes both again."""
        for _ in range(3):
            self.step()
        self._begin()

    def step(self) -> float:
        """Returns the seconds of one forward, backward and optimizer step."""
        dense_BI, embeddings_BFD, labels_B = self.inputs
        started = now(self.ranks.device)
        self.optimizer.zero_grad(set_to_none=True)
        loss = functional.binary_cross_entropy_with_logits(self.network(dense_BI, embeddings_BFD), labels_B)
        loss.backward()
        self.optimizer.step()
        return now(self.ranks.device) - started


def bench_shampoo(config: Config, ranks: Ranks, *, periods: int) -> dict[str, Any]:
    """Times the first steps of every variant, and refresh periods after them.

    Args:
        periods: number of periods of `optim.shampoo_frequency` steps.

    Returns:
        Plain values: milliseconds per step and ratios to Adagrad per period, the same ratios over the first 200 steps
        and over a run of 1,000, Shampoo's worst step against its median, parts of its step, and its layers.
    """
    set_precision(config.train.precision)
    config = config.fitted(None, ranks.world_size)
    size, device = config.train.batch_size // ranks.world_size, ranks.device
    num_vectors = sum(table.vectors for table in feature_tables(config, Synthetic(0, 1, 1, 1).schema))
    inputs = (
        torch.randn(size, 13, device=device),
        torch.randn(size, num_vectors, config.embeddings.dim, device=device, requires_grad=True),
        (torch.rand(size, device=device) < 0.25).float(),
    )
    variants = {name: _Variant(config, name, inputs, ranks) for name in VARIANTS}
    for variant in variants.values():  # allocations and lookups that happen once are no part of a training
        variant.warm_up()
    period = config.optim.shampoo_frequency
    num_first = max(SHORT_RUN, 2 * period)  # all later intervals are late ones
    say(f"the first {num_first} steps")
    first = _alternate(variants, num_first)
    late: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(periods):
        say(f"period {number + 1} of {periods}")
        for name, seconds in _alternate(variants, period).items():
            late[name] += seconds
    means = {
        name: [statistics.fmean(seconds[i : i + period]) * 1e3 for i in range(0, len(seconds), period)]
        for name, seconds in late.items()
    }
    over = {
        steps: {name: _mean_over(steps, first[name], statistics.median(means[name]) / 1e3) for name in variants}
        for steps in (SHORT_RUN, RUN)
    }
    shampoo = variants["shampoo"]
    assert isinstance(shampoo.optimizer, DistributedShampoo)
    return {
        "batch_size": size,
        "ranks": ranks.world_size,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "step_ms": {name: spread(values) for name, values in means.items()},
        "ratio_to_adagrad": {
            name: spread([a / b for a, b in zip(values, means["adagrad"], strict=True)])
            for name, values in means.items()
        },
        "ratio_to_adagrad_over": {
            str(steps): {name: seconds / means["adagrad"] for name, seconds in means.items()}
            for steps, means in over.items()
        },
        "worst_step_over_median": {
            name: max(_typical(seconds, period)) / statistics.median(seconds) for name, seconds in late.items()
        },
        "parts_ms": _parts(shampoo, period),
        "layers": [
            {
                "name": cost.name,
                "shape": list(cost.shape),
                "blocks": cost.num_blocks,
                "state_bytes": cost.state_bytes,
                "share": cost.cost.total / sum(each.cost.total for each in shampoo.optimizer.costs()),
                **{f"{part}_share": getattr(cost.cost, part) / cost.cost.total for part in _COSTS},
            }
            for cost in shampoo.optimizer.costs()
        ],
        "settings": config.to_dict(),
    }


def _alternate(variants: Mapping[str, _Variant], steps: int) -> dict[str, list[float]]:
    """Returns the seconds of each step of each variant."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(steps):
        for name, variant in variants.items():
            seconds[name].append(variant.step())
    return seconds


def _mean_over(steps: int, first: list[float], late: float) -> float:
    """Returns the mean seconds over `steps` steps: the first as measured, the others at the late mean."""
    measured = first[:steps]
    return (sum(measured) + late * (steps - len(measured))) / steps


def _typical(seconds: list[float], period: int) -> list[float]:
    """Returns each step of the period at its median over the periods, which removes outliers of the machine."""
    return [statistics.median(seconds[place::period]) for place in range(period)]


def _parts(variant: _Variant, period: int) -> dict[str, float]:
    """Measures milliseconds per step of each part of the optimizer, over one more period."""
    assert isinstance(variant.optimizer, DistributedShampoo)
    device = variant.ranks.device
    times = PartTimes((lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else None)
    variant.optimizer.part_times = times
    started = time.perf_counter()
    for _ in range(period):
        variant.step()
    whole = time.perf_counter() - started
    variant.optimizer.part_times = None
    parts = {part: seconds * 1e3 / period for part, seconds in times.seconds.items()}
    return {"forward and backward": whole * 1e3 / period - sum(parts.values())} | parts


def show_bench_shampoo(result: dict[str, Any]) -> None:
    """Prints the result."""
    output.print(
        f"dense network, batch {result['batch_size']:,}, {result['ranks']} x {result['device']}, "
        f"{counted(result['threads'], 'thread')}; a step is forward, backward and update, the mean of a refresh period"
    )
    print_table(
        "milliseconds per step, median over periods; ratios to adagrad, in late periods and in whole runs",
        ["", "step", "to adagrad", "fastest", "slowest", "worst step / median", "first 200", "run of 1,000"],
        [
            [
                name,
                f"{result['step_ms'][name]['median']:.2f}",
                *(f"{result['ratio_to_adagrad'][name][key]:.3f}" for key in ("median", "fastest", "slowest")),
                f"{result['worst_step_over_median'][name]:.2f}",
                *(f"{result['ratio_to_adagrad_over'][str(steps)][name]:.3f}" for steps in (SHORT_RUN, RUN)),
            ]
            for name in result["step_ms"]
        ],
    )
    total = sum(result["parts_ms"].values())
    print_table(
        "parts of shampoo's step",
        ["", "ms", "share"],
        [[part, f"{ms:.3f}", f"{100 * ms / total:.1f} %"] for part, ms in result["parts_ms"].items()],
    )
    print_table(
        "layers: share of the optimizer's estimated work, and of each layer's own",
        ["", "shape", "blocks", "state", "work", *_COSTS],
        [
            [
                layer["name"],
                "x".join(map(str, layer["shape"])),
                str(layer["blocks"]),
                bytes_text(layer["state_bytes"]),
                *(f"{100 * layer[key]:.0f} %" for key in ("share", *(f"{part}_share" for part in _COSTS))),
            ]
            for layer in result["layers"]
        ],
    )
