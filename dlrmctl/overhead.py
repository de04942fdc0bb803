"""`--shampoo-overhead`: measures what Shampoo costs here and chooses settings that stay inside a share of the step."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from data.schema import Schema
from dlrmctl.build import build_dense_network, build_dense_optimizer
from dlrmctl.config import Config
from dlrmctl.console import say, warn
from dlrmctl.ranks import Ranks
from optim.shampoo import DistributedShampoo
from optim.shampoo.timing import PartTimes

SIDES = (2, 1)
BLOCKS = (256, 128, 64)
STATISTICS = (1, 2, 4, 8, 16, 32)
FREQUENCIES = (10, 20, 50, 100, 200, 500, 1000)
ROUNDS = 5


@dataclass(frozen=True)
class Costs:
    """Seconds that one block size costs: every step, per update of the statistics, per refresh of all roots."""

    step: float
    statistics: float
    roots: float

    def per_step(self, statistics_every: int, refresh_every: int) -> float:
        return self.step + self.statistics / statistics_every + self.roots / refresh_every


@dataclass(frozen=True)
class Choice:
    """Settings and the share of an Adagrad step that they add, as estimated from the measured parts."""

    sides: int
    block: int
    statistics_every: int
    refresh_every: int
    overhead: float


def choose_overhead(config: Config, schema: Schema, ranks: Ranks) -> tuple[Config, Choice]:
    """Probes for a few seconds; the choice of rank 0 is everybody's.

    Args:
        config: its `optim.shampoo_overhead` is the budget, in percent of a step with Adagrad.

    Returns:
        The settings with block size and intervals in place of the budget, and what was chosen. Where no choice is
        inside the budget it is the cheapest one; the caller can tell by `overhead`.
    """
    assert config.optim.shampoo_overhead is not None
    backward, parameters = _dense_step(config, schema, ranks, config.train.batch_size // ranks.world_size)
    adagrad = _adagrad_seconds(parameters)
    base = backward + adagrad
    candidates = []
    for sides, block in product(SIDES, BLOCKS):
        costs = measure(config, schema, ranks, sides, block)
        candidates += [
            Choice(sides, block, k, f, (costs.per_step(k, f) - adagrad) / base)
            for k, f in product(STATISTICS, FREQUENCIES)
        ]
    chosen = ranks.broadcast(pick(candidates, config.optim.shampoo_overhead / 100))
    optim = replace(
        config.optim,
        shampoo_sides=chosen.sides,
        shampoo_block=chosen.block,
        shampoo_statistics=chosen.statistics_every,
        shampoo_frequency=chosen.refresh_every,
        shampoo_start=chosen.refresh_every,
        shampoo_overhead=None,  # run.toml then repeats the choice instead of the probe
    )
    return replace(config, optim=optim), chosen


def within_overhead(config: Config, schema: Schema, ranks: Ranks) -> Config:
    """The settings with what `choose_overhead` found; says so."""
    budget = config.optim.shampoo_overhead
    config, choice = choose_overhead(config, schema, ranks)
    if ranks.is_main:
        every = f"statistics every {choice.statistics_every} steps, roots every {choice.refresh_every}"
        cost = f"about {100 * choice.overhead:.1f} % over adagrad"
        say(f"shampoo: {choice.sides}-sided blocks of {choice.block}, {every}: {cost}")
        if budget is not None and choice.overhead > budget / 100:
            warn(f"--shampoo-overhead = {budget:g} % is out of reach here; this is the cheapest choice")
    return config


def pick(candidates: list[Choice], budget: float) -> Choice:
    """The freshest preconditioner inside the budget: roots refreshed most often, then statistics, then large blocks.

    Roots are as stale as the longer of the two intervals, so that one counts first. One side is half of Shampoo and is
    taken only where both do not fit.
    """
    inside = [choice for choice in candidates if choice.overhead <= budget]
    inside = [choice for choice in inside if choice.sides == 2] or inside
    if not inside:
        return min(candidates, key=lambda choice: choice.overhead)
    return min(inside, key=lambda c: (max(c.refresh_every, c.statistics_every), c.statistics_every, -c.block))


def measure(config: Config, schema: Schema, ranks: Ranks, sides: int, block: int) -> Costs:
    """The parts of Shampoo's step on this rank alone, statistics and roots in every step."""
    every_step = replace(config.optim, shampoo_statistics=1, shampoo_frequency=1, shampoo_start=1)
    optim = replace(every_step, shampoo_sides=sides, shampoo_block=block)
    network = build_dense_network(config, schema, ranks.device)
    optimizer = build_dense_optimizer(optim, network, replace(ranks, world_size=1))
    assert isinstance(optimizer, DistributedShampoo)
    _random_gradients(list(network.parameters()), seed=0)
    optimizer.step()
    seconds: dict[str, list[float]] = {"step": [], "statistics": [], "roots": []}
    for _ in range(ROUNDS):
        optimizer.part_times = times = PartTimes(_synchronize(ranks.device))
        optimizer.step()
        parts = times.seconds
        seconds["statistics"].append(parts["statistics"])
        seconds["roots"].append(parts["roots"])
        seconds["step"].append(sum(parts.values()) - parts["statistics"] - parts["roots"])
    # Blocks are shared out over the ranks; what every rank does anyway is small beside them.
    share = {name: statistics.median(values) / ranks.world_size for name, values in seconds.items()}
    return Costs(share["step"], share["statistics"], share["roots"])


def _dense_step(config: Config, schema: Schema, ranks: Ranks, batch: int) -> tuple[float, list[Tensor]]:
    """Seconds of a forward and backward of the dense network, and its parameters with gradients."""
    network = build_dense_network(config, schema, ranks.device)
    dense_BI = torch.randn(batch, len(schema.dense), device=ranks.device)
    embeddings_BFD = torch.randn(batch, len(schema.sparse), config.embeddings.dim, device=ranks.device)
    labels_B = torch.zeros(batch, device=ranks.device)
    embeddings_BFD.requires_grad_()

    def work() -> None:
        network.zero_grad(set_to_none=True)
        functional.binary_cross_entropy_with_logits(network(dense_BI, embeddings_BFD), labels_B).backward()

    return _median_seconds(work, ranks.device), list(network.parameters())


def _adagrad_seconds(parameters: list[Tensor]) -> float:
    optimizer = torch.optim.Adagrad(parameters, lr=0.0, foreach=True)
    return _median_seconds(optimizer.step, parameters[0].device)


def _random_gradients(parameters: list[Tensor], seed: int) -> None:
    generator = torch.Generator(parameters[0].device).manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator, device=p.device) * 1e-3


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronize = _synchronize(device)
    times = []
    for _ in range(2 + ROUNDS):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def _synchronize(device: torch.device) -> Callable[[], None]:
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
