"""Estimates of the remaining time, without the first piece of work, which is the slowest."""

import time
from collections.abc import Callable

from dlrmctl.console.text import duration

_SECONDS, _PIECES = 3.0, 3  # needed after the first piece for an estimate


class TimeLeft:
    """Estimates the remaining time from the speed after the first piece of work.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: int | None = None
        self._pieces = 0
        self._first = (0.0, 0)  # time at the end of the first piece, and its amount

    def seconds(self, done: int, total: int) -> float | None:
        """Returns the remaining seconds; None if they are unknown or no work is left.

        Args:
            done: amount of work done so far; must not decrease between calls.
            total: amount of work; 0 if unknown.
        """
        now = self._clock()
        if self._seen is not None and done != self._seen:
            self._pieces += 1
            if self._pieces == 1:
                self._first = now, done
        self._seen = done
        then, before = self._first
        if self._pieces <= _PIECES or now - then < _SECONDS or done >= total:
            return None
        return (total - done) * (now - then) / (done - before)

    def text(self, done: int, total: int) -> str:
        """A string such as "3 min 20 s left"; empty if unknown."""
        seconds = self.seconds(done, total)
        return "" if seconds is None else f"{duration(seconds)} left"
