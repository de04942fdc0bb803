"""Context managers that handle signals; outside the main thread, where Python allows no handlers, they do nothing."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from dlrmctl.errors import Interrupted

_IMPORTS = "<frozen importlib"  # prefix of the file names in frames of an import
_LOOK_AGAIN_SECONDS = 0.05
# Schedulers signal every process of a job, and launchers pass signals on; together they are one request.
REPEAT_SECONDS = 3.0
HEARD = "DLRMCTL_HEARD"  # environment variable: the file that a rank creates when it handles a request to stop


@contextmanager
def handling(*numbers: int, by: Callable[[int], None]) -> Iterator[None]:
    """Calls `by` with the number of each of these signals; restores the earlier handlers afterwards.

    Outside the main thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        by(number)

    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def patient_interrupts() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt, but not inside an import, which may turn it into another error.

    During an import, it is raised afterwards; pressed a second time, Ctrl-C ends the process at once.
    """
    waiting = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if not _is_importing(frame):
            raise KeyboardInterrupt
        if waiting:
            os._exit(128 + number)
        waiting = True
        signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_SECONDS, _LOOK_AGAIN_SECONDS)

    def look_again(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if not _is_importing(frame):
            waiting = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            taker = signal.getsignal(signal.SIGINT)  # training may have set another handler
            if callable(taker):
                taker(signal.SIGINT, frame)

    signal.signal(signal.SIGALRM, look_again)
    signal.signal(signal.SIGINT, interrupt)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTS):
            return True
        frame = frame.f_back
    return False


@contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGTERM raise an exception, as Ctrl-C does.

    Raises:
        Interrupted: on SIGTERM.
    """

    def stop(number: int) -> None:
        raise Interrupted(number)

    with handling(signal.SIGTERM, by=stop):
        yield


class StopRequest:
    """Records whether the process was asked to stop.

    Attributes:
        signal_number: the signal of the first request, else 0.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._since = 0.0

    def __call__(self, number: int) -> None:
        """Handles a signal: the first is a request, a later one ends the process at once."""
        if not self.signal_number:
            self.signal_number, self._since = number, time.monotonic()
            if HEARD in os.environ:
                with suppress(OSError):
                    Path(os.environ[HEARD]).touch()
        elif time.monotonic() - self._since > REPEAT_SECONDS:
            os._exit(128 + number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Treats SIGTERM and Ctrl-C as requests to finish the step, save and exit."""
    request = StopRequest()
    with handling(signal.SIGTERM, signal.SIGINT, by=request):
        yield request
