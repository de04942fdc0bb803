"""Signals request a stop once; outside the main thread the same code runs without handlers."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

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


_PROGRAM = """
import sys
from dlrmctl.cli.main import main
sys.argv = ["dlrmctl", "train", "--dataset", "synthetic", "--synthetic-rows", "20000000", "--run-dir", sys.argv[1]]
print("started", flush=True)
main()
"""


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.2, 0.5, 1.0, 2.0])
def test_an_interrupt_while_python_imports_is_130_without_a_word(tmp_path: Path, seconds: float):
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "error" not in err
