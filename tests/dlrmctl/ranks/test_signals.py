"""Signals ask once; off the main thread the same code runs without handlers."""

import os
import signal
import threading

import pytest

from dlrmctl.errors import Interrupted
from dlrmctl.ranks.signals import stop_requests, terminable


def test_a_signal_is_a_request_and_its_handler_goes_with_the_block():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as request:
        assert not request.signal_number
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # at once: the same request
        assert request.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_termination_is_an_exception():
    with pytest.raises(Interrupted) as caught, terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_status == 128 + signal.SIGTERM


def test_threads_run_without_handlers():
    seen: list[int] = []

    def work() -> None:
        with stop_requests() as request, terminable():
            seen.append(request.signal_number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]
