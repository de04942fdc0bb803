"""Runs commands in a terminal of 80 columns."""

import os
import pty
import re
import subprocess
import threading
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from dlrmctl.cli import main as entry
from tests.dlrmctl.commands import COMMAND, environment

WIDTH = 80
_SETTINGS = {"COLUMNS": str(WIDTH), "LINES": "40", "TERM": "xterm-256color"}
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Shown:
    """What a terminal was sent.

    Attributes:
        text: with its control sequences.
    """

    status: int
    text: str

    @property
    def lines(self) -> list[str]:
        """Every state of every line, without control sequences."""
        return [line for line in re.split(r"[\r\n]+", _CONTROL.sub("", self.text)) if line.strip()]


def in_terminal(*arguments: str | Path, cwd: Path, **changes: str) -> Shown:
    """Runs a command in a process of its own with all standard streams in a terminal of `WIDTH` columns."""
    with _Terminal() as terminal:
        settings = environment(**_SETTINGS, **changes)
        streams = {"stdin": terminal.theirs, "stdout": terminal.theirs, "stderr": terminal.theirs}
        process = subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=cwd, env=settings, **streams)
        status = process.wait(timeout=200)
    return Shown(status, terminal.text)


def in_terminal_here(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Runs a command in this process with standard output and error in such a terminal."""
    for name, value in _SETTINGS.items():
        monkeypatch.setenv(name, value)
    with _Terminal() as terminal, open(os.dup(terminal.theirs), "w") as stream:
        with redirect_stdout(stream), redirect_stderr(stream):
            status = entry.run_command([str(argument) for argument in arguments])
    return Shown(status, terminal.text)


class _Terminal:
    """A pair of ends of a terminal; what is written to `theirs` is read until the block ends."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self._pieces: list[bytes] = []
        self._reader = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.theirs)
        self._reader.join()
        os.close(self._ours)

    @property
    def text(self) -> str:
        return b"".join(self._pieces).decode()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._ours, 65536)
            except OSError:  # the other end is closed
                return
            if not piece:
                return
            self._pieces.append(piece)
