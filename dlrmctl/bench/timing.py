"""Timing that can be trusted: warm-up dropped, variants alternated, the device waited for."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

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
    return {"median": statistics.median(values), "fastest": min(values), "slowest": max(values)}


class Laps:
    """Adds up the time of named parts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.last = 0.0

    def start(self) -> None:
        self.last = now(self.device)

    def end(self, part: str) -> None:
        moment = now(self.device)
        self.seconds[part].append(moment - self.last)
        self.last = moment

    def clear(self) -> None:
        self.seconds.clear()

    def milliseconds(self, steps: int) -> dict[str, float]:
        """Per step: a part that runs on some steps only counts with all of them."""
        return {part: sum(times) * 1e3 / steps for part, times in self.seconds.items()}
