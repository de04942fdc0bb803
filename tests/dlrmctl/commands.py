"""Runs commands in this process or in a new one."""

import io
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrmctl.cli import main as entry

COMMAND = [sys.executable, "-P", "-m", "dlrmctl"]

# A model that trains in seconds.
SMALL = [
    *("--dataset", "synthetic", "--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8"),
    *("--batch-size", "256", "--epochs", "1", "--log-every", "10"),
    *("--shampoo-frequency", "5", "--qr-threshold", "200"),
]


@dataclass
class Done:
    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def in_process(*arguments: str | Path) -> Done:
    """Runs a command here; fast, for what needs no ranks of its own."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = entry.run_command([str(a) for a in arguments])
    return Done(status, out.getvalue(), err.getvalue())


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | changes


def start(*arguments: str | Path, cwd: Path, **changes: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(**changes),
    )


def wait_for_checkpoint(run_dir: Path, process: "subprocess.Popen[str]", name: str = "step-*[0-9]") -> None:
    """Returns once a training process has finished a checkpoint of this name."""
    deadline = time.monotonic() + 60
    while not list(run_dir.glob(f"checkpoints/{name}")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def run(*arguments: str | Path, cwd: Path, **changes: str) -> Done:
    """Runs a command in a process of its own."""
    process = start(*arguments, cwd=cwd, **changes)
    out, err = process.communicate(timeout=200)
    return Done(process.returncode, out, err)
