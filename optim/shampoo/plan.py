"""Plans a parameter group: its blocks, the rank that owns each block, and the steps at which roots are refreshed.

Everything here is deterministic and equal on every rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dlrmctl.optim.shampoo.blocks import ParameterBlock, ParameterCut, cut_parameter, flat_order
from dlrmctl.optim.shampoo.costs import StepCost, root_cost, step_cost
from dlrmctl.optim.shampoo.factors import preconditioned_dims

Kind = tuple[torch.device, torch.dtype]  # where a block's state lives, and its type
REFRESH_SCHEDULES = ("constant", "doubling")
_DENSE_INTERVALS = 8  # of `statistics_frequency`, in which "doubling" updates the factor matrices at every step
_LONGER_AFTER = (
    32  # intervals until the interval grows, so that what is not yet in a factor matrix is a small part of it
)


@dataclass(frozen=True)
class GroupPlan:
    """Cuts by position of the parameter; blocks by kind and rank, in the order of the rank's buffers."""

    cuts: list[ParameterCut]
    blocks_of_rank: dict[Kind, list[list[ParameterBlock]]]
    turn_of: dict[ParameterBlock, int | None]
    cost_of: dict[ParameterBlock, StepCost]


def plan_group(group_index: int, group: dict[str, Any], loads: list[float]) -> GroupPlan:
    """Cuts the parameters of a group into blocks and gives every block an owner.

    Args:
        loads: the ranks' work so far, in multiplications per step; the group's blocks are added in place.
    """
    limit, merge = group["max_preconditioner_dim"], group["merge_small_dims"]
    cuts = [cut_parameter(p, limit=limit, merge=merge) for p in group["params"]]
    blocks = []
    for position, cut in enumerate(cuts):
        order = len(cut.shape)
        diagonal, dims = preconditioning(order, group)
        if diagonal and order == 1:  # cutting elementwise work gains nothing, and biases are many
            cuts[position] = cut = cut_parameter(group["params"][position], limit=max(*cut.shape, 1), merge=False)
        blocks += [
            ParameterBlock(group_index, position, n, cut.region_shape(n), diagonal, dims)
            for n in range(len(cut.regions))
        ]

    frequency, every = group["precondition_frequency"], group["statistics_frequency"]
    turns: list[int | None] = [None] * len(blocks)
    if group["stagger_refresh"]:  # depends on the blocks alone: the same on any number of ranks
        turns = [*spread([root_cost(block) for block in blocks], frequency)]

    costs = [step_cost(block, precondition_frequency=frequency, statistics_frequency=every) for block in blocks]
    owners = spread([cost.total for cost in costs], len(loads), loads)
    blocks_of_rank: dict[Kind, list[list[ParameterBlock]]] = {}
    for block, owner in zip(blocks, owners, strict=True):
        p = group["params"][block.position]
        kind = (p.device, torch.float64 if p.dtype == torch.float64 else torch.float32)
        blocks_of_rank.setdefault(kind, [[] for _ in loads])[owner].append(block)
    ordered = {kind: [flat_order(members) for members in ranks] for kind, ranks in blocks_of_rank.items()}
    return GroupPlan(cuts, ordered, dict(zip(blocks, turns, strict=True)), dict(zip(blocks, costs, strict=True)))


def preconditioning(order: int, group: dict[str, Any]) -> tuple[bool, tuple[int, ...]]:
    """Returns whether blocks with this number of dimensions are diagonal, and which dimensions have a factor matrix."""
    config = group["preconditioner_config"]
    if config is None or (order == 1 and not group["precondition_vectors"]):
        return True, ()
    return False, preconditioned_dims(order, config, group["inverse_exponent_override"])


def spread(costs: Sequence[float], num_bins: int, loads: list[float] | None = None) -> list[int]:
    """Assigns each item to the least loaded bin, the largest cost first; ties go to the earlier item and bin.

    Args:
        costs: one per item.
        num_bins: ranks, or steps of a refresh cycle; >= 1.
        loads: loads of the bins so far; changed in place.

    Returns:
        The bin of each item, in the order of `costs`. No bin has more than the mean plus the largest item.
    """
    loads = [0.0] * num_bins if loads is None else loads
    bins = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        bins[item] = min(range(num_bins), key=lambda b: (loads[b], b))
        loads[bins[item]] += costs[item]
    return bins


def refresh_due(
    step: int, *, frequency: int, start: float, turn: int | None, schedule: str = REFRESH_SCHEDULES[0]
) -> bool:
    """Returns whether a block's roots are refreshed at `step` (counted from 1).

    "constant": without a turn, at `start` and then at every multiple of `frequency`. With a turn (0 <= turn <
    frequency), once in every `frequency` steps, for the first time in the last `frequency` steps up to `start`, so that
    all steps have equal work and no root in use is older than `frequency` steps. If `start` is too early for that, the
    first time is `start`.

    "doubling": at about 1, 2, 4, 8, ... and finally every `frequency` steps, whatever `start` is. A block's first late
    refresh is at `frequency + 1 + turn` (without a turn, `frequency`), and the early ones at half of it, a quarter of
    it, and so on, rounded down, to 1. So blocks with different turns spread over the steps, later refreshes more
    widely.
    """
    if schedule == "doubling":
        late = _first_late(frequency, turn)
        if start == math.inf or step >= late:
            return start < math.inf and (step - late) % frequency == 0
        return step == late >> (late.bit_length() - step.bit_length())
    if turn is None:
        return step == start or (step > start and step % frequency == 0)
    first = start + 1 - frequency + turn % frequency
    if first < 1 and step <= start:
        return step == start
    return step >= first and (step - first) % frequency == 0


def _first_late(frequency: int, turn: int | None) -> int:
    return frequency if turn is None else frequency + 1 + turn % frequency


def mean_refreshes(steps: int, settings: dict[str, Any]) -> float:
    """Returns the number of refreshes of a block in the first `steps` steps of a group, the mean over all turns."""
    frequency, start = settings["precondition_frequency"], settings["start_preconditioning_step"]
    turns = range(frequency) if settings["stagger_refresh"] else (None,)
    schedule = settings["refresh_schedule"]
    total = sum(num_refreshes(steps, frequency=frequency, start=start, turn=t, schedule=schedule) for t in turns)
    return total / len(turns)


def num_refreshes(steps: int, *, frequency: int, start: float, turn: int | None, schedule: str) -> int:
    """Returns at how many of the first `steps` steps `refresh_due` is true."""
    if start == math.inf:
        return 0
    if schedule == "doubling":
        late = _first_late(frequency, turn)
        if steps >= late:
            return late.bit_length() + (steps - late) // frequency
        last = late >> (late.bit_length() - steps.bit_length())
        return steps.bit_length() - (last > steps)
    if turn is None:
        return 0 if steps < start else 1 + steps // frequency - int(start) // frequency
    first = int(start) + 1 - frequency + turn % frequency
    if first >= 1:
        return 0 if steps < first else 1 + (steps - first) // frequency
    return 0 if steps < start else 1 + (steps - first) // frequency - (int(start) - first) // frequency


def statistics_span(step: int, settings: dict[str, Any]) -> int:
    """Returns the number of steps that the products taken at `step` represent; 0 means none are taken.

    They are taken every `statistics_frequency` steps. With "doubling" they are taken at every step early on, while
    factor matrices change fast. If these are sums (beta2 of 1), which change ever more slowly, the interval later grows
    with the steps, but not above `precondition_frequency`.
    """
    every = [interval for start, interval in _statistics_intervals(settings) if start < step][-1]
    return every if (step - 1) % every == 0 else 0


def statistics_seen(step: int, settings: dict[str, Any]) -> int:
    """Returns the number of steps that all products up to `step` represent."""
    every = [interval for start, interval in _statistics_intervals(settings) if start < step][-1]
    return every * ((step - 1) // every + 1)


def num_statistics(steps: int, settings: dict[str, Any]) -> int:
    """Returns the number of updates of factor matrices in the first `steps` steps of a group."""
    intervals = _statistics_intervals(settings)
    ends = [*(start for start, _ in intervals[1:]), steps]
    return sum(
        -(-(min(end, steps) - start) // every)
        for (start, every), end in zip(intervals, ends, strict=True)
        if start < steps
    )


def _statistics_intervals(settings: dict[str, Any]) -> list[tuple[int, int]]:
    """Returns (number of steps before it, interval) of each part of training.

    An interval divides the numbers of steps before it and after it, so that every step is represented once.
    """
    frequency = settings["statistics_frequency"]
    if settings["refresh_schedule"] != "doubling":
        return [(0, frequency)]
    intervals = [(0, 1), (_DENSE_INTERVALS * frequency, frequency)]
    longer = 2 * frequency
    while settings["betas"][1] == 1 and longer <= settings["precondition_frequency"]:
        intervals.append((_LONGER_AFTER * longer, longer))
        longer *= 2
    return intervals
