"""An estimate of the time of a step: what has to be multiplied, moved and sent, over the rates of the slowest rank.

It counts arithmetic and bytes, one after the other. What overlaps, what waits, and what a kernel loses at small sizes
is not in it, nor is reading data: take it for an order of magnitude, and for what a step is bound by.
"""

from dataclasses import dataclass

from dlrmctl.config import Config
from dlrmctl.plan.memory import MemoryPlan, activation_floats, table_exchange
from dlrmctl.plan.rates import Rates

_FLOAT = 4
_PASSES = 6  # over activations: written and read forward; read, and a gradient written and read twice, backward
_ELEMENTWISE = {"adagrad": 8, "adamw": 9, "sgd": 3, "shampoo": 0}  # reads and writes of each weight; shampoo counts its


@dataclass(frozen=True)
class StepTime:
    """Seconds by part; None where a rate is not known. `bound_by` is the longest part."""

    parts: dict[str, float | None]

    @property
    def total(self) -> float | None:
        known = [seconds for seconds in self.parts.values() if seconds is not None]
        return sum(known) if len(known) == len(self.parts) else None

    @property
    def bound_by(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name] or 0.0)


def estimate(config: Config, plan: MemoryPlan, rates: Rates) -> StepTime:
    """Of the rank that is slowest at each part."""
    cluster, dense, size = plan.cluster, plan.dense, plan.cluster.world_size
    batch = config.train.batch_size // size
    exchanges = table_exchange(plan.embeddings, plan.placements, cluster, batch)
    N, D = plan.embeddings.num_vectors + 1, config.embeddings.dim
    interaction = N * N * D if config.model.interaction == "dot" else 0
    flop = 2 * 3 * batch * (dense.products + interaction)  # forward, and the gradients of both factors
    activations = batch * activation_floats(config, N - 1) * _FLOAT * _PASSES
    elementwise = _ELEMENTWISE[config.optim.dense_optimizer] * dense.weights
    gathered = max(3 * one.row_bytes + one.looked_up / 2 for one in exchanges)  # read; read and written in the update
    parts = {
        "MLPs": _over(flop, rates.flops),
        "activations": _over(activations, rates.memory),
        "lookups": _over(gathered, rates.gather),
        "optimizer": _sum(_over(2 * max(dense.optimizer_products), rates.flops), _over(elementwise, rates.memory)),
    }
    if size > 1:
        # Ids there, sums back, gradients there; a ring sends gradients of the MLPs twice; directions of other ranks.
        tables = max(max(one.sent, one.received / 2) * 2 + one.sent_ids for one in exchanges)
        others = (size - 1) / size
        parts["exchange of tables"] = _sent(tables, plan, rates)
        parts["exchange of MLPs"] = _sent((2 * dense.gradients + dense.exchanged) * others, plan, rates)
    return StepTime(parts)


def _sent(num_bytes: float, plan: MemoryPlan, rates: Rates) -> float | None:
    """Over both networks at once: the share of ranks on other nodes goes by the slower one."""
    cluster = plan.cluster
    outside = (cluster.world_size - cluster.ranks_per_node) / (cluster.world_size - 1)
    ways = [_over(num_bytes * (1 - outside), rates.intra) if outside < 1 else 0.0]
    ways += [_over(num_bytes * outside, rates.inter) if outside > 0 else 0.0]
    known = [seconds for seconds in ways if seconds is not None]
    return max(known) if len(known) == len(ways) else None


def _over(amount: float, rate: object) -> float | None:
    value = getattr(rate, "value", None)
    return None if value is None else amount / value


def _sum(*seconds: float | None) -> float | None:
    known = [number for number in seconds if number is not None]
    return sum(known) if len(known) == len(seconds) else None
