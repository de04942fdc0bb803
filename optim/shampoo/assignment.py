"""Which rank owns which block, and at which step a block's roots are due. Pure, deterministic, equal on every rank."""

from collections.abc import Sequence


def spread(costs: Sequence[float], num_bins: int, loads: list[float] | None = None) -> list[int]:
    """Puts each item into the least loaded bin, the largest cost first; ties go to the earlier item and bin.

    Args:
        costs: one per item.
        num_bins: ranks, or steps of a refresh cycle; >= 1.
        loads: what the bins already carry; changed in place.

    Returns:
        The bin of each item, in the order of `costs`. No bin carries more than the mean plus the largest item.
    """
    loads = [0.0] * num_bins if loads is None else loads
    bins = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        bins[item] = min(range(num_bins), key=lambda b: (loads[b], b))
        loads[bins[item]] += costs[item]
    return bins


def refresh_due(step: int, *, frequency: int, start: float, turn: int | None) -> bool:
    """Whether a block's roots are refreshed at `step` (counted from 1).

    Everything is refreshed at `start`. After that, without a turn at every multiple of `frequency`; with a turn
    (0 <= turn < frequency) once in every `frequency` steps, `turn` steps after the others begin.
    """
    if step <= start:
        return step == start
    if turn is None:
        return step % frequency == 0
    return (step - start - 1) % frequency == turn % frequency
