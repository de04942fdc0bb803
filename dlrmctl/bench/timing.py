"""Timing that can be trusted: warm-up dropped, variants alternated, the device waited for."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def alternate(
    works: Mapping[str, Callable[[], None]], *, rounds: int, device: torch.device, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each work in each round; one after the other within a round, so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(warmup + rounds):
        for name, work in works.items():
            started = now(device)
            work()
            if round_number >= warmup:
                seconds[name].append(now(device) - started)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and range of times, or of ratios of times."""
    return {"median": statistics.median(values), "fastest": min(values), "slowest": max(values)}


def spread_of_rates(values: list[float]) -> dict[str, float]:
    """As `spread`, for values of which the largest is the fastest."""
    return {"median": statistics.median(values), "fastest": max(values), "slowest": min(values)}


class Laps:
    """Times the named parts of a step; on CUDA by events in the stream, so that the host is not held up."""

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
        """Milliseconds per step by part since the last call: a part that runs on some steps only counts with all."""
        now(self.device)
        total: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            if part is not None:
                elapsed = before.elapsed_time(after) if self.device.type == "cuda" else (after - before) * 1e3
                total[part] += elapsed
        self._marks.clear()
        return {part: milliseconds / steps for part, milliseconds in total.items()}
