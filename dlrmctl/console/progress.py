"""Progress of long work: a live bar on a terminal, lines at intervals in a file."""

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
    """Shows the progress of work in phases: as a live bar on a terminal, otherwise as lines.

    Args:
        shown: False for a process that prints nothing.

    Attributes:
        bar: None if there is no terminal.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self.shown = shown
        self._since = time.monotonic()
        self._next_line = self._since + _FIRST_SECONDS
        self._what, self._done, self._total = "", 0, 0
        self.time_left = TimeLeft()
        self.bar: LiveBar | None = None
        if shown and messages.is_terminal:
            from dlrmctl.console import live_bar  # slow to load, and needed on terminals only

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
        """Seconds since the start, the last phase or `restart`, without pauses; above 0."""
        return max(time.monotonic() - self._since, 1e-9)

    def restart(self) -> None:
        """Restarts `seconds`."""
        self._since = time.monotonic()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the time of the block from `seconds`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - started

    def begin(self, what: str, total: int = 0, done: int = 0) -> None:
        """Begins a phase.

        Args:
            what: name of the phase, such as "reading".
            total: amount of work, in any unit; 0 if unknown.
            done: amount that an earlier process did.
        """
        self._what, self._done, self._total = what, done, total
        self.time_left = TimeLeft()
        self.restart()
        self.show()

    def advance(self, amount: int = 1, about: str = "") -> None:
        """Adds to the amount of work that is done; `about` is as for `show`."""
        self._done += amount
        self.show(about)

    def advance_to(self, done: int, total: int, about: str = "") -> None:
        """Sets the amount of work that is done."""
        self._total = total
        self.advance(done - self._done, about)

    def show(self, about: str = "", *, line: str | None = None, now: bool = False) -> None:
        """Updates the bar, or prints a line if none was printed for `INTERVAL_SECONDS`.

        Args:
            about: text below the bar.
            line: text for a file; default: the phase and `about`.
            now: prints the line in any case.
        """
        if not self.shown:
            return
        left = self._text_left()
        if self.bar:
            self.bar.show(self._what, self._done, self._total, left, about)
        elif now or time.monotonic() >= self._next_line:
            share = f"{100 * self._done / self._total:.0f} %" if self._total and self._done else ""
            parts = [part for part in (share, about) if part]
            whole = line or ": ".join([self._what, *([", ".join(parts)] if parts else [])])
            say(whole + (f"  {left}" if left else ""))
            self._next_line = time.monotonic() + INTERVAL_SECONDS

    def _text_left(self) -> str:
        """The remaining time, as text; empty if unknown."""
        return self.time_left.text(self._done, self._total)

    def rows(self, table: str, phase: str, done: int, total: int) -> None:
        """Shows the progress of a pass over the rows of a table."""
        self.show(f"{table}: {phase}, {done:,} of {total:,}")
