"""What a long compression tells: a line per finished table, and how far it is within a large one."""

import time
from typing import TYPE_CHECKING, Any, Self

from dlrmctl.console.console import messages, say

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

INTERVAL_SECONDS = 10.0


class BarDisplay:
    """A live bar while the block lasts, where messages go to a terminal; `bar` is None where they do not.

    Args:
        columns: of the bar.
        total: of its only task, `task`.
        shown: False for a process that does not speak.
        fields: of the task.
    """

    def __init__(self, *columns: "ProgressColumn", total: float | None, shown: bool = True, **fields: Any) -> None:
        self.bar: Progress | None = None
        if shown and messages.is_terminal:
            from rich import progress  # not needed to start, nor in a file

            self.bar = progress.Progress(*columns, console=messages)
            self.task = self.bar.add_task("", total=total, **fields)

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar:
            self.bar.stop()


class Telling:
    """Says lines with the time since the start; passes over large tables are told at intervals."""

    def __init__(self) -> None:
        self.started = self.said = time.monotonic()

    def __call__(self, message: str) -> None:
        self.said = time.monotonic()
        say(f"{self.said - self.started:6.1f} s  {message}")

    @property
    def due(self) -> bool:
        """Whether nothing was said for a while."""
        return time.monotonic() - self.said > INTERVAL_SECONDS

    def rows(self, table: str, phase: str, done: int, total: int) -> None:
        """For fits: a pass over the rows of a table."""
        if self.due:
            self(f"{table}: {phase}, {done:,} of {total:,}")
