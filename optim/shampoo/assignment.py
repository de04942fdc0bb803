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

    Without a turn at `start` and then at every multiple of `frequency`. With a turn (0 <= turn < frequency) once in
    every `frequency` steps, for the first time in the last `frequency` steps up to `start`, so that no step has more
    to do than any other and no root in use is older than `frequency` steps. Where `start` leaves no room for that, the
    first time is `start`.
    """
    if turn is None:
        return step == start or (step > start and step % frequency == 0)
    first = start + 1 - frequency + turn % frequency
    if first < 1 and step <= start:
        return step == start
    return step >= first and (step - first) % frequency == 0
