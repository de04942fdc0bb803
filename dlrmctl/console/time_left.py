"""How long work still takes, said once that means something: the first piece of it takes longest."""

import time
from collections.abc import Callable

from dlrmctl.console.text import duration

_SECONDS, _PIECES = 3.0, 3  # of work after its first piece, by which its speed is known


class TimeLeft:
    """Estimates the time that is left from the time that pieces took, without the first one.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: int | None = None
        self._pieces = 0
        self._first = (0.0, 0)  # when the first piece was done, and how much was done then

    def seconds(self, done: int, total: int) -> float | None:
        """The seconds that are left; None if that is not known, or nothing is left.

        Args:
            done: of the work so far; called again when more is done.
            total: 0 if it is not known.
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
        """Such as "3 min 20 s left"; empty if it is not known."""
        seconds = self.seconds(done, total)
        return "" if seconds is None else f"{duration(seconds)} left"
