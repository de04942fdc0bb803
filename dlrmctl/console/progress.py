"""Progress of long work: a live bar on a terminal; in a file a line now and then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from dlrmctl.console.console import end_notice, messages, say
from dlrmctl.console.time_left import TimeLeft

if TYPE_CHECKING:
    from dlrmctl.console.live_bar import LiveBar

INTERVAL_SECONDS = 10.0
_FIRST_SECONDS = 2.0  # before the first line in a file


class BarDisplay:
    """Shows work in phases while the block lasts: a live bar where messages go to a terminal, elsewhere lines.

    Args:
        shown: False for a process that does not speak.

    Attributes:
        bar: None where there is no terminal.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self.shown = shown
        self._since = time.monotonic()
        self._next_line = self._since + _FIRST_SECONDS
        self._what, self._done, self._total = "", 0, 0
        self.time_left = TimeLeft()
        self.bar: LiveBar | None = None
        if shown and messages.is_terminal:
            from dlrmctl.console import live_bar  # not needed to start, nor in a file

            self.bar = live_bar.LiveBar(messages.console)

    def __enter__(self) -> Self:
        if self.bar:
            end_notice()
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar:
            self.bar.stop()

    @property
    def seconds(self) -> float:
        """Since the start, the last phase or `restart`, pauses left out; above 0."""
        return max(time.monotonic() - self._since, 1e-9)

    def restart(self) -> None:
        """Counts `seconds` from now on."""
        self._since = time.monotonic()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside does not count as `seconds`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - started

    def begin(self, what: str, total: int = 0, done: int = 0) -> None:
        """Begins a phase.

        Args:
            what: what is done, such as "reading".
            total: of the work, in any unit; 0 if that is not known.
            done: what an earlier process did of it.
        """
        self._what, self._done, self._total = what, done, total
        self.time_left = TimeLeft()
        self.restart()
        self.show()

    def advance(self, amount: int = 1, about: str = "") -> None:
        """Counts work that is done; what `show` shows is said about it."""
        self._done += amount
        self.show(about)

    def advance_to(self, done: int, total: int, about: str = "") -> None:
        """Sets how much of the work is done."""
        self._total = total
        self.advance(done - self._done, about)

    def show(self, about: str = "", *, line: str | None = None, now: bool = False) -> None:
        """Updates the bar, or says a line if none was said for `INTERVAL_SECONDS`.

        Args:
            about: what else is known, below the bar.
            line: in a file; default: what is done, and `about`.
            now: says the line in any case.
        """
        if not self.shown:
            return
        left = self.time_left.text(self._done, self._total)
        if self.bar:
            self.bar.show(self._what, self._done, self._total, left, about)
        elif now or time.monotonic() >= self._next_line:
            share = f"{100 * self._done / self._total:.0f} %" if self._total and self._done else ""
            parts = [part for part in (share, about) if part]
            whole = line or ": ".join([self._what, *([", ".join(parts)] if parts else [])])
            say(whole + (f"  {left}" if left else ""))
            self._next_line = time.monotonic() + INTERVAL_SECONDS

    def rows(self, table: str, phase: str, done: int, total: int) -> None:
        """Shows how far a pass over the rows of a table is."""
        self.show(f"{table}: {phase}, {done:,} of {total:,}")
