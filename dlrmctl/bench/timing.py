"""Measures works: time without warm-up, variants alternated, the device waited for; memory and collectives.

Memory and collectives are read from a trace. Tracing slows a step down, so it is separate from the timing.
"""

import math
import os
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_GLOO = "gloo:"
_NCCL_KERNEL = re.compile(r"nccl\w*?Kernel_([A-Za-z]+)")
_WARMUP_ROUNDS = 1


def now(device: torch.device) -> float:
    """Returns the seconds on a clock, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def alternate(works: Mapping[str, Callable[[], None]], *, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Returns the seconds of each work in each round; works alternate, so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(_WARMUP_ROUNDS + rounds):
        for name, work in works.items():
            started = now(device)
            work()
            if round_number >= _WARMUP_ROUNDS:
                seconds[name].append(now(device) - started)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Returns the median and range of times, or of ratios of times."""
    return {"median": statistics.median(values), "fastest": min(values), "slowest": max(values)}


def spread_of_rates(values: list[float]) -> dict[str, float]:
    """Returns the median and range of rates, of which the largest is the fastest."""
    return {"median": statistics.median(values), "fastest": max(values), "slowest": min(values)}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error; NaN with fewer than two values."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


class Laps:
    """Times the named parts of a step; on CUDA by events in the stream, so that the host does not wait."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str | None, Any]] = []

    def start(self) -> None:
        self._mark(None)

    def end(self, part: str) -> None:
        self._mark(part)

    def _mark(self, part: str | None) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def take(self, steps: int) -> dict[str, float]:
        """Returns milliseconds per step by part since the last call, the mean over all steps."""
        now(self.device)
        total: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            if part is not None:
                elapsed = before.elapsed_time(after) if self.device.type == "cuda" else (after - before) * 1e3
                total[part] += elapsed
        self._marks.clear()
        return {part: milliseconds / steps for part, milliseconds in total.items()}


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Returns the peak bytes that torch held for `work`, above what it held before."""
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
    """Returns milliseconds per step that collectives are in progress, by kind; backward continues meanwhile.

    Args:
        work: takes `steps` steps.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_initialized() else [])]
    with _hushed(), profile(activities=activities) as trace:
        work()
    total: dict[str, float] = defaultdict(float)
    for event in trace.events():
        kind = collective_kind(event.name, on_gpu=event.device_type == DeviceType.CUDA)
        if kind is not None:
            total[kind] += event.time_range.elapsed_us() / 1e3 / steps
    return dict(total)


def collective_kind(event: str, *, on_gpu: bool) -> str | None:
    """Returns the kind of collective that an event of a trace is, or None.

    NCCL's work is its kernels; the events of the same collectives on the host only start them.
    """
    if on_gpu:
        kernel = _NCCL_KERNEL.match(event)
        return None if kernel is None else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kernel[1]).lower()
    return event.removeprefix(_GLOO).replace("_", " ") if event.startswith(_GLOO) else None


@contextmanager
def _hushed() -> Iterator[None]:
    """Hides the log of the profiler's C++ code from standard error."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
