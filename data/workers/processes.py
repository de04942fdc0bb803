"""Runs calls in processes of this machine: each thread of the pool sends its calls to a process of its own."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any

from dlrmctl.data.workers.child import SIZE_BYTES
from dlrmctl.data.workers.pool import Workers, WorkersLost, unpacked

_TRIES = 3  # of a call whose process was killed


class ProcessWorkers(Workers):
    """A pool of processes. One that is killed is replaced, and its call repeated.

    Processes do not import the main program again, so that scripts need no guard.

    Args:
        number: number of processes.
    """

    apart = True

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._own, self._lock = threading.local(), threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()

    def _run(self, call: Callable[[], Any]) -> Any:
        content = pickle.dumps(call)
        for _ in range(_TRIES):
            try:
                return unpacked(_ask(self._child(), content))
            except (EOFError, BrokenPipeError):
                self._drop(self._own.child)
        raise WorkersLost(
            f"a worker process was killed {_TRIES} times at the same task, maybe for lack of memory",
            "use fewer of them: --workers N",
        )

    def _child(self) -> "subprocess.Popen[bytes]":
        """The process of this thread."""
        child: subprocess.Popen[bytes] | None = getattr(self._own, "child", None)
        with self._lock:
            if self._stopping:
                raise CancelledError
            if child is None or child not in self._children:
                child = self._own.child = _start()
                self._children.add(child)
        return child

    def _drop(self, child: "subprocess.Popen[bytes]") -> None:
        with self._lock:
            self._children.discard(child)
        _end(child)

    def _stop(self) -> None:
        with self._lock:
            super()._stop()
            for child in self._children:
                child.kill()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        super().__exit__(kind, error, _)
        for child in list(self._children):
            self._drop(child)


def _start() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "dlrmctl.data.workers.child", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _ask(child: "subprocess.Popen[bytes]", content: bytes) -> bytes:
    """Sends a call to a process, and returns its result.

    Raises:
        EOFError, BrokenPipeError: if the process has ended.
    """
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(len(content).to_bytes(SIZE_BYTES, "little"))
    child.stdin.write(content)
    child.stdin.flush()
    size = int.from_bytes(child.stdout.read(SIZE_BYTES), "little")
    result = child.stdout.read(size)
    if not size or len(result) < size:
        raise EOFError
    return result


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:  # what was not written yet is lost with the process
            continue
