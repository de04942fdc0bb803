"""Reports the gradient noise scale in the course of a training (`dlrmctl bench noise`). Its batch stays as it is."""

import math
from contextlib import closing
from typing import Any

from dlrmctl.assembly.model import build_model
from dlrmctl.assembly.optimizers import build_averaging, build_dense_optimizer, build_schedule
from dlrmctl.bench.variants import endless_batches
from dlrmctl.console.console import output, print_table, say
from dlrmctl.console.text import counted, number_text
from dlrmctl.datasets.open import open_source
from dlrmctl.optim.noise_scale import GEOMETRIES, NoiseAverage
from dlrmctl.ranks.group import Ranks
from dlrmctl.ranks.process import set_precision
from dlrmctl.rundir.state import StepSums
from dlrmctl.settings.batches import PROXIES, geometry_of, theta_of
from dlrmctl.settings.config import Config
from dlrmctl.training.batches import PROBE_EVERY, NoiseProbe
from dlrmctl.training.display import averages as averaged
from dlrmctl.training.step import TrainingStep

_LINES = 10


def bench_noise(config: Config, ranks: Ranks, *, steps: int) -> dict[str, Any]:
    """Trains with a constant batch and estimates noise and signal in every geometry.

    Args:
        config: the settings of the training.
        steps: the number of steps; at least one estimate is made.

    Returns:
        Plain values: "curve", one entry per estimate with "step", "examples", "loss" and the noise scale by geometry,
        None where the signal is below the noise of its estimate; "batches", by geometry the batch at its default theta;
        "own", the geometry of the dense optimizer.
    """
    set_precision(config.train.precision)
    source = open_source(config.data)
    config = config.fitted(source.num_examples("train"), ranks.world_size)
    size, optim = config.train.batch_size, config.optim
    model = build_model(config, source.features, ranks, batch_size=size // ranks.world_size)
    optimizer = build_dense_optimizer(optim, model.network, ranks.group)
    rates = [group["lr"] for group in optimizer.param_groups]
    step = TrainingStep(model, build_averaging(optim, optimizer) or optimizer, ranks, config.train.precision)
    averages = {geometry: NoiseAverage() for geometry in GEOMETRIES}
    step.probe = NoiseProbe(model.network, ranks, averages, muon=optim.dense_optimizer == "muon")
    steps = max(steps, PROBE_EVERY)
    schedule, window, curve = build_schedule(config, steps), StepSums(), list[dict[str, Any]]()
    with closing(endless_batches(source, config, ranks)) as batches:
        for number in range(1, steps + 1):
            factor = schedule(number - 1)
            model.set_learning_rates(optim, factor)
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr * factor
            window += step(next(batches).to(ranks.device, non_blocking=True), number)
            if not step.probe.is_due(number):
                continue
            loss, window = averaged(window)["loss"], StepSums()
            scales = {geometry: _finite(average.batch_for(1.0)) for geometry, average in averages.items()}
            curve.append({"step": number, "examples": number * size, "loss": loss, **scales})
            if ranks.is_main:
                say(f"step {number}  loss {number_text(loss)}  noise scale {_listed(scales)}")
    own = geometry_of("auto", optim.dense_optimizer)
    return {
        "curve": curve,
        "batches": {geometry: _finite(a.batch_for(theta_of(None, geometry))) for geometry, a in averages.items()},
        "own": own,
        "proxy": optim.dense_optimizer in PROXIES,
        "batch_size": size,
        "settings": config.to_dict(),
    }


def _finite(batch: float) -> float | None:
    return batch if math.isfinite(batch) else None


def _listed(scales: dict[str, float | None]) -> str:
    return "  ".join(f"{name} {'-' if batch is None else f'{batch:,.0f}'}" for name, batch in scales.items())


def show_bench_noise(result: dict[str, Any]) -> None:
    """Prints the result."""
    curve, optimizer = result["curve"], result["settings"]["optim"]["dense_optimizer"]
    shown = [entry for i, entry in enumerate(curve) if (i + 1) % -(-len(curve) // _LINES) == 0 or entry is curve[-1]]
    print_table(
        f"noise scale: the batch whose noise is as large as the gradient, {counted(len(curve), 'estimate')}",
        ["step", "examples", "loss", *GEOMETRIES],
        [
            [f"{e['step']:,}", f"{e['examples']:,}", number_text(e["loss"]), *(_number(e[g]) for g in GEOMETRIES)]
            for e in shown
        ],
    )
    own = result["own"]
    proxy = ", a proxy," if result["proxy"] else ""
    output.print(
        f"batch {result['batch_size']:,}; in the {own} geometry{proxy} of {optimizer}, --batch-schedule gns aims at "
        f"{_number(result['batches'][own])} with theta {theta_of(None, own):g}"
    )


def _number(batch: float | None) -> str:
    return "-" if batch is None else f"{batch:,.0f}"
