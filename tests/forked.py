"""Processes that begin with torch loaded: copies of a server process, where starting anew takes seconds each."""

import atexit
import multiprocessing
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["dlrmctl.cli.app", "dlrmctl.training.train"])  # without polars, which starts threads


class Forked:
    """A function in a process of its own; with the methods of `subprocess.Popen`.

    Args:
        work: a function of a module, called with `arguments`; it may exit.
        environment: replaces that of the process.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any, cwd: Path, environment: Mapping[str, str]) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="forked-")
        self._streams = [Path(self._place.name, name) for name in ("out", "err")]
        self._process = CONTEXT.Process(
            target=_begin, args=(work, arguments, str(cwd), dict(environment), [str(path) for path in self._streams])
        )
        self._process.start()
        self.pid = self._process.pid or 0
        atexit.register(self.kill)

    @property
    def returncode(self) -> int:
        """As of `Popen`, once the process has ended."""
        assert self._process.exitcode is not None
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end, and returns what was written to standard output and error."""
        self.wait(timeout)
        out, err = (path.read_text() for path in self._streams)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _begin(
    work: Callable[..., None], arguments: tuple[Any, ...], cwd: str, environment: dict[str, str], streams: list[str]
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    work(*arguments)
