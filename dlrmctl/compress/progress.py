"""What a long compression tells: a line per finished table, and how far it is within a large one."""

import time

from dlrmctl.console import say

INTERVAL_SECONDS = 10.0


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
