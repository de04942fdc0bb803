"""Progress of long work: a live bar on a terminal; in a file a line now and then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from dlrmctl.console.console import messages, say

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

INTERVAL_SECONDS = 10.0


class BarDisplay:
    """A live bar while the block lasts, where messages go to a terminal; elsewhere lines at intervals.

    Args:
        columns: of the bar.
        total: of its only task, `task`.
        shown: False for a process that does not speak.
        fields: of the task.

    Attributes:
        bar: None where there is no terminal.
    """

    def __init__(self, *columns: "ProgressColumn", total: float | None, shown: bool = True, **fields: Any) -> None:
        self.shown = shown
        self._since = self._said = time.monotonic()
        self.bar: Progress | None = None
        if shown and messages.is_terminal:
            from rich import progress  # not needed to start, nor in a file

            self.bar = progress.Progress(*columns, console=messages.console)
            self.task = self.bar.add_task("", total=total, **fields)

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar:
            self.bar.stop()

    @property
    def seconds(self) -> float:
        """Since the start or the last `restart`, pauses left out; above 0."""
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

    def show(self, line: str, *, now: bool = False, **fields: Any) -> None:
        """Updates the bar, or says the line if none was said for `INTERVAL_SECONDS`.

        Args:
            now: says the line in any case.
            fields: of the bar's task.
        """
        if self.bar:
            self.bar.update(self.task, **fields)
        elif self.shown and (now or time.monotonic() - self._said > INTERVAL_SECONDS):
            say(line)
            self._said = time.monotonic()


class TimedLines:
    """Says lines of progress with the seconds since the start."""

    def __init__(self) -> None:
        self._started = self._said = time.monotonic()

    def __call__(self, message: str) -> None:
        self._said = time.monotonic()
        say(f"{self._said - self._started:6.1f} s  {message}")

    @property
    def due(self) -> bool:
        """Whether nothing was said for `INTERVAL_SECONDS`."""
        return time.monotonic() - self._said > INTERVAL_SECONDS

    def rows(self, table: str, phase: str, done: int, total: int) -> None:
        """Says, at intervals, how far a pass over the rows of a table is."""
        if self.due:
            self(f"{table}: {phase}, {done:,} of {total:,}")
