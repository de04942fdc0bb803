"""Runs commands in a terminal of 80 columns."""

import os
import pty
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.dlrmctl.commands import COMMAND, environment

WIDTH = 80
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Shown:
    """What a terminal was sent.

    Attributes:
        text: with its control sequences.
        seconds_to_first: until the first character.
    """

    status: int
    text: str
    seconds_to_first: float

    @property
    def lines(self) -> list[str]:
        """Every state of every line, without control sequences."""
        return [line for line in re.split(r"[\r\n]+", _CONTROL.sub("", self.text)) if line.strip()]


def in_terminal(*arguments: str | Path, cwd: Path, **changes: str) -> Shown:
    """Runs a command with all standard streams in a terminal of `WIDTH` columns."""
    ours, theirs = pty.openpty()
    settings: Mapping[str, str] = environment(COLUMNS=str(WIDTH), LINES="40", TERM="xterm-256color", **changes)
    started = time.monotonic()
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=settings
    )
    os.close(theirs)
    pieces: list[bytes] = []
    first = float("inf")
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        first = min(first, time.monotonic() - started)
        pieces.append(piece)
    os.close(ours)
    return Shown(process.wait(timeout=200), b"".join(pieces).decode(), first)
