"""Measures the cost of Shampoo on this machine and chooses settings within a budget (`--shampoo-overhead`)."""

import statistics
import time
from dataclasses import asdict, dataclass, replace
from itertools import product

import torch
from torch.nn import functional

from dlrmctl.assembly.network import build_dense_network
from dlrmctl.assembly.optimizers import build_dense_optimizer
from dlrmctl.console.console import say, warn
from dlrmctl.data.schema import Schema
from dlrmctl.optim.shampoo import DistributedShampoo
from dlrmctl.optim.shampoo.costs import PartTimes
from dlrmctl.optim.shampoo.plan import mean_refreshes, num_statistics
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import Config, OptimSettings

SIDES = (2, 1)
BLOCKS = (256, 128, 64)
STATISTICS = (1, 2, 4, 8, 16, 32)
FREQUENCIES = (10, 20, 50, 100, 200, 500, 1000)
ROUNDS = 5
TRIES = 3
VERIFIED_STEPS = 40
RUN, SHORT_RUN = 1000, 200  # steps with the budget, and with EARLY_ALLOWANCE times the budget
EARLY_ALLOWANCE = 2.5


@dataclass(frozen=True)
class Costs:
    """Seconds for a block size: per step, per update of the statistics, and per refresh of all roots."""

    step: float
    statistics: float
    roots: float

    def late(self, statistics_every: int, refresh_every: int) -> float:
        """Seconds per step after the early steps, when the intervals are those of the settings."""
        return self.step + self.statistics / statistics_every + self.roots / refresh_every

    def over(self, steps: int, rates: dict[str, float]) -> float:
        """Mean seconds per step in the first `steps`; `rates` holds their updates and refreshes."""
        return self.step + (self.statistics * rates["statistics"] + self.roots * rates["roots"]) / steps


@dataclass(frozen=True)
class OverheadChoice:
    """Settings, and their overhead as a fraction of an Adagrad step.

    Attributes:
        overhead: mean of the first 1,000 steps.
        early: mean of the first 200 steps.
        late: of a later step, when the intervals are those of the settings.
    """

    sides: int
    block: int
    statistics_every: int
    refresh_every: int
    overhead: float
    early: float = 0.0
    late: float = 0.0

    @property
    def claim(self) -> float:
        """The budget that the choice needs."""
        return max(self.overhead, self.early / EARLY_ALLOWANCE)

    def corrected(self, late: float) -> "OverheadChoice":
        """The choice with a measured `late`."""
        more = late - self.late
        return replace(self, overhead=self.overhead + more, early=self.early + more, late=late)


def choose_overhead(config: Config, schema: Schema, ranks: Ranks) -> tuple[Config, OverheadChoice]:
    """Measures for a few seconds and chooses settings; all ranks use the choice of rank 0.

    Args:
        config: its `optim.shampoo_overhead` is the budget, in percent of a step with Adagrad, over a run of 1,000
            steps. The first 200 steps, which may refresh roots more often, have 2.5 times the budget.

    Returns:
        The settings with block size and intervals in place of the budget, and the choice with its measured overhead:
        the cheapest one if none is within the budget.
    """
    assert config.optim.shampoo_overhead is not None
    dense = _DenseStep(config, schema, ranks)
    optimizer = torch.optim.Adagrad(dense.parameters, lr=0.0, foreach=True)
    optimizer.step()
    backward, adagrad = dense.median_seconds(optimizer)
    base = backward + adagrad
    all_rates = {(k, f): _rates(config.optim, k, f) for k, f in product(STATISTICS, FREQUENCIES)}
    candidates = []
    for sides, block in product(SIDES, BLOCKS):
        costs = measure(config, dense, ranks, sides, block)
        for (k, f), rates in all_rates.items():
            run, early = (costs.over(steps, rates[steps]) for steps in (RUN, SHORT_RUN))
            shares = ((seconds - adagrad) / base for seconds in (run, early, costs.late(k, f)))
            candidates.append(OverheadChoice(sides, block, k, f, *shares))
    budget = room = config.optim.shampoo_overhead / 100
    for _ in range(TRIES):
        estimated = OverheadChoice(**ranks.broadcast(asdict(pick(candidates, room))))
        settings = _chosen(config.optim, estimated)
        chosen = estimated.corrected(ranks.broadcast(_verified(settings, dense, optimizer, base, ranks)))
        if chosen.claim <= budget or estimated.claim > room:
            break
        # Measured together, the parts cost more than their sum, so the target is lowered by that factor.
        room *= min(budget / chosen.claim, estimated.claim / chosen.claim)
    return replace(config, optim=settings), chosen


def _chosen(settings: OptimSettings, choice: OverheadChoice) -> OptimSettings:
    return replace(
        settings,
        shampoo_sides=choice.sides,
        shampoo_block=choice.block,
        shampoo_statistics=choice.statistics_every,
        shampoo_frequency=choice.refresh_every,
        shampoo_start=1 if settings.shampoo_schedule == "doubling" else choice.refresh_every,
        shampoo_overhead=None,  # so that run.toml repeats the choice, not the measurement
    )


def _rates(settings: OptimSettings, statistics_every: int, refresh_every: int) -> dict[int, dict[str, float]]:
    """Number of statistics updates and root refreshes per block in the first steps of a run, by number of steps."""
    group = {
        "betas": (settings.beta1, settings.beta2),
        "statistics_frequency": statistics_every,
        "precondition_frequency": refresh_every,
        "refresh_schedule": settings.shampoo_schedule,
        "start_preconditioning_step": refresh_every,
        "stagger_refresh": True,
    }
    return {
        steps: {"statistics": num_statistics(steps, group), "roots": mean_refreshes(steps, group)}
        for steps in (RUN, SHORT_RUN)
    }


def _verified(
    settings: OptimSettings, dense: "_DenseStep", adagrad: torch.optim.Optimizer, base: float, ranks: Ranks
) -> float:
    """Measures the overhead of a late step, with roots spread over the steps as in training."""
    late = replace(settings, shampoo_schedule="constant", shampoo_start=1, dense_lr=0.0)
    shampoo = build_dense_optimizer(late, dense.network, group=None)
    dense.backward()
    shampoo.step()  # refreshes all roots; later steps refresh a few blocks each
    seconds: dict[str, list[float]] = {"shampoo": [], "adagrad": []}
    for _ in range(VERIFIED_STEPS):
        for name, optimizer in (("shampoo", shampoo), ("adagrad", adagrad)):
            dense.backward()
            started = time.perf_counter()
            optimizer.step()
            dense.synchronize()
            seconds[name].append(time.perf_counter() - started)
    added = _mean_without_hiccups(seconds["shampoo"]) / ranks.world_size - _mean_without_hiccups(seconds["adagrad"])
    return added / base


def _mean_without_hiccups(seconds: list[float]) -> float:
    """The mean without the slowest tenth, which on a shared machine is due to other programs."""
    return statistics.fmean(sorted(seconds)[: -max(1, len(seconds) // 10)])


def within_overhead(config: Config, schema: Schema, ranks: Ranks) -> Config:
    """Applies and prints the choice of `choose_overhead`."""
    budget = config.optim.shampoo_overhead
    config, choice = choose_overhead(config, schema, ranks)
    if ranks.is_main:
        every = f"statistics every {choice.statistics_every} steps, roots every {choice.refresh_every}"
        cost = f"about {100 * choice.overhead:.1f} % over adagrad in a run of {RUN:,} steps"
        if config.optim.shampoo_schedule == "doubling":
            cost += f", {100 * choice.early:.1f} % in the first {SHORT_RUN}"
        say(f"shampoo: {choice.sides}-sided blocks of {choice.block}, {every}: {cost}")
        if budget is not None and choice.claim > budget / 100:
            warn(f"--shampoo-overhead = {budget:g} % cannot be reached on this machine; this is the cheapest choice")
    return config


def pick(candidates: list[OverheadChoice], budget: float) -> OverheadChoice:
    """The best choice within the budget: most frequent root refreshes, then statistics updates, then largest blocks.

    Roots are as stale as the longer of the two intervals, so it counts first. One-sided Shampoo is chosen only if
    two-sided does not fit.
    """
    inside = [choice for choice in candidates if choice.claim <= budget]
    inside = [choice for choice in inside if choice.sides == 2] or inside
    if not inside:
        return min(candidates, key=lambda choice: choice.claim)
    return min(inside, key=lambda c: (max(c.refresh_every, c.statistics_every), c.statistics_every, -c.block))


def measure(config: Config, dense: "_DenseStep", ranks: Ranks, sides: int, block: int) -> Costs:
    """Measures the parts of Shampoo's step on this rank, with statistics and roots in every step."""
    every_step = replace(config.optim, shampoo_statistics=1, shampoo_frequency=1, shampoo_start=1, dense_lr=0.0)
    optim = replace(every_step, shampoo_schedule="constant", shampoo_sides=sides, shampoo_block=block)
    optimizer = build_dense_optimizer(optim, dense.network, group=None)
    assert isinstance(optimizer, DistributedShampoo)
    optimizer.step()
    seconds: dict[str, list[float]] = {"step": [], "statistics": [], "roots": []}
    for _ in range(ROUNDS):
        dense.backward()
        optimizer.part_times = times = PartTimes(dense.synchronize)
        optimizer.step()
        parts = times.seconds
        seconds["statistics"].append(parts["statistics"])
        seconds["roots"].append(parts["roots"])
        seconds["step"].append(sum(parts.values()) - parts["statistics"] - parts["roots"])
    # Blocks are distributed over the ranks; the work that every rank does is small.
    share = {name: statistics.median(values) / ranks.world_size for name, values in seconds.items()}
    return Costs(share["step"], share["statistics"], share["roots"])


class _DenseStep:
    """The dense network with inputs of this rank's batch size.

    Optimizers are timed after a backward pass, with its effect on caches: alone they would seem a third cheaper.
    """

    def __init__(self, config: Config, schema: Schema, ranks: Ranks) -> None:
        batch, device = config.train.batch_size // ranks.world_size, ranks.device
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.train.precision == "bf16")
        self.device = device
        self.network = build_dense_network(config, schema, device)
        self.parameters = list(self.network.parameters())
        self.dense_BI = torch.randn(batch, len(schema.dense), device=device)
        self.embeddings_BFD = torch.randn(batch, self.network.num_vectors, config.embeddings.dim, device=device)
        self.embeddings_BFD.requires_grad_()
        self.labels_B = torch.zeros(batch, device=device)
        self.backward()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def backward(self) -> float:
        """Runs forward and backward and returns the seconds; leaves gradients."""
        self.synchronize()
        started = time.perf_counter()
        self.network.zero_grad(set_to_none=True)
        with self.autocast:
            logits_B = self.network(self.dense_BI, self.embeddings_BFD)
        functional.binary_cross_entropy_with_logits(logits_B.float(), self.labels_B).backward()
        self.synchronize()
        return time.perf_counter() - started

    def median_seconds(self, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        """Median seconds of forward and backward, and of the optimizer step."""
        backwards, steps = [], []
        for _ in range(2 + ROUNDS):
            backwards.append(self.backward())
            started = time.perf_counter()
            optimizer.step()
            self.synchronize()
            steps.append(time.perf_counter() - started)
        return statistics.median(backwards[2:]), statistics.median(steps[2:])
