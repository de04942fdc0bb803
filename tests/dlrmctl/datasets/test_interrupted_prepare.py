"""`dlrmctl prepare` reports a signal, and continues when it is run again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.criteo_files import make_rows, write

PREPARE = [sys.executable, "-P", "-m", "dlrmctl", "prepare", "criteo"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_work_and_the_same_command_goes_on(tmp_path: Path, number: int, status: int) -> None:
    path, out = write(tmp_path / "train.txt", make_rows(500) * 100), tmp_path / "store"
    command = [*PREPARE, str(path), "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (tmp_path / "store.partial" / "journal.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=200)
    assert process.returncode == status
    assert said.splitlines()[-1] == f"{out}.partial is kept: the same command continues from there"
    assert "Traceback" not in said
    assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "train.txt"]
