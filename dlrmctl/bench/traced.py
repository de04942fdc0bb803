"""What one traced step shows: the memory it takes, and the collectives it waits for.

Tracing slows a step down, so this is apart from the timing.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

_BACKENDS = ("gloo:", "nccl:")


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """The most that torch held at once for `work`, above what it held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _hushed(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    assert trace.profiler is not None
    assert trace.profiler.kineto_results is not None
    changes = [(e.start_ns(), e.nbytes()) for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for _, count in sorted(changes, key=lambda change: change[0]):
        held += count
        most = max(most, held)
    return most


def collective_milliseconds(work: Callable[[], None], steps: int) -> dict[str, float]:
    """How long collectives were under way per step, by kind; backward goes on meanwhile.

    Args:
        work: takes so many `steps`.
    """
    with _hushed(), profile(activities=[ProfilerActivity.CPU]) as trace:
        work()
    total: dict[str, float] = defaultdict(float)
    for event in trace.events():
        if event.name.startswith(_BACKENDS):
            total[event.name.partition(":")[2].replace("_", " ")] += event.time_range.elapsed_us() / 1e3 / steps
    return dict(total)


@contextmanager
def _hushed() -> Iterator[None]:
    """Keeps what the profiler's C++ code tells itself off standard error."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
