"""Ends this rank when another gives no sign of life, where a collective would wait for it for half an hour.

Every rank counts in the store that the ranks share, and watches the count of the next rank. The first to see one stand
still writes its name to the store, where all ranks read it.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from dlrmctl.console.console import show_error
from dlrmctl.errors import EXIT_USER_ERROR
from dlrmctl.ranks.launch import LOST, RENDEZVOUS, claim_report

_MOST_SECONDS = 5.0  # between two counts
_JOIN_SECONDS = 30.0  # Python aborts where a thread in C++ outlives it, as on a busy machine
_LEFT = "left"
_HINT = "see the machine of that rank; --resume continues the run from its last checkpoint"


@contextmanager
def watching(store: dist.Store, rank: int, world_size: int, timeout_seconds: float) -> Iterator[None]:
    """Context manager that watches the other ranks in the background.

    Args:
        store: shared by all ranks.
        timeout_seconds: time without a sign of life after which a rank is lost, and the others end with status 2.
    """
    # torch's stubs do not have `clone`.
    watch = _Watch(store.clone(), rank, world_size, timeout_seconds)  # type: ignore[attr-defined]
    threads = [threading.Thread(target=work, daemon=True) for work in (watch.count, watch.expect_answers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        watch.leave()
        for thread in threads:
            thread.join(_JOIN_SECONDS)  # the store may be gone


class _Watch:
    """The work of the threads of `watching`; the store has a connection of its own, as calls may block it."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout_seconds: float) -> None:
        self.store, self.rank, self.next = store, rank, (rank + 1) % world_size
        self.timeout, self.pause = timeout_seconds, min(_MOST_SECONDS, timeout_seconds / 5)
        self.left = threading.Event()
        self.answered = time.monotonic()

    def count(self) -> None:
        number, seen, since = 0, b"", time.monotonic()
        with suppress(Exception):  # the store has gone with its host: the collectives fail as well
            while not self.left.is_set():
                number += 1
                self.store.set(f"count-{self.rank}", f"{number} of {socket.gethostname()}")
                if self.store.check(["lost"]):
                    _end(self.store.get("lost").decode())
                if self.store.check([f"count-{self.next}"]):
                    now, found = time.monotonic(), self.store.get(f"count-{self.next}")
                    if found != seen:
                        seen, since = found, now
                    elif seen != _LEFT.encode() and now - since > self.timeout - 2 * self.pause:
                        host = seen.decode().partition(" of ")[2]
                        lost = f"rank {self.next} on {host} gave no sign of life for {now - since:.0f} s"
                        self.store.set("lost", lost)
                        _end(lost)
                self.answered = time.monotonic()
                self.left.wait(self.pause)

    def expect_answers(self) -> None:
        """Ends this rank if the store does not answer, as when the process that hosts it is stopped."""
        while not self.left.wait(self.pause):
            silence = time.monotonic() - self.answered
            if silence > self.timeout:
                address = os.environ.get("MASTER_ADDR", "this machine")
                _end(f"the rendezvous on {address} gave no answer for {silence:.0f} s")

    def leave(self) -> None:
        self.left.set()
        with suppress(Exception):
            self.store.set(f"count-{self.rank}", _LEFT)


def _end(lost: str) -> None:
    """Reports the error and ends the process, whose main thread waits in C++."""
    report = json.dumps({"kind": LOST, "message": lost, "hint": _HINT})
    if claim_report(report) and RENDEZVOUS not in os.environ:
        show_error(lost, _HINT)
    os._exit(EXIT_USER_ERROR)
