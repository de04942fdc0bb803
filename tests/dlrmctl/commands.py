"""Runs commands in this process or in a new one."""

import atexit
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrmctl.cli import main as entry
from dlrmctl.ranks.launch import RENDEZVOUS
from tests.forked import Forked

COMMAND = [sys.executable, "-P", "-m", "dlrmctl"]

# A model that trains in seconds.
SMALL = [
    *("--dataset", "synthetic", "--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8"),
    *("--batch-size", "256", "--epochs", "1", "--log-every", "10"),
    *("--shampoo-frequency", "5", "--qr-threshold", "200", "--wide-start", "zero"),
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


def start(*arguments: str | Path, cwd: Path, **changes: str) -> Forked:
    """Starts a command in a process of its own that has loaded torch already."""
    return Forked(_command, [str(a) for a in arguments], cwd=cwd, environment=environment(**changes))


def _command(words: list[str]) -> None:
    sys.argv = ["dlrmctl", *words]
    entry.main()


def start_anew(*arguments: str | Path, cwd: Path) -> "subprocess.Popen[str]":
    """Starts a command as users do, which takes seconds of loading, with pipes for its output."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=cwd, env=environment(), **pipes)


def wait_for_checkpoint(run_dir: Path, process: Forked, name: str = "step-*[0-9]") -> None:
    """Returns once a training process has finished a checkpoint of this name."""
    deadline = time.monotonic() + 200
    while not list(run_dir.glob(f"checkpoints/{name}")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def run(*arguments: str | Path, cwd: Path, **changes: str) -> Done:
    """Runs a command in a process of its own."""
    return _done(start(*arguments, cwd=cwd, **changes))


def start_as_ranks(ranks: int, *arguments: str | Path, cwd: Path) -> list[Forked]:
    """Starts a command in each of `ranks` processes, as torchrun does; they have loaded torch already."""
    place = tempfile.mkdtemp(prefix="rendezvous-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    group = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), RENDEZVOUS: f"file://{place}/rendezvous"}
    return [start(*arguments, cwd=cwd, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(ranks)]


def run_as_ranks(ranks: int, *arguments: str | Path, cwd: Path) -> Done:
    """Runs a command as torchrun does.

    Returns:
        The output of rank 0, and the messages and the largest exit status of all.
    """
    return done_of_ranks(start_as_ranks(ranks, *arguments, cwd=cwd))


def done_of_ranks(ranks: list[Forked]) -> Done:
    """Waits for ranks; see `run_as_ranks`."""
    done = [_done(rank) for rank in ranks]
    return Done(max(rank.status for rank in done), done[0].out, "".join(rank.err for rank in done))


def _done(process: Forked) -> Done:
    out, err = process.communicate(timeout=200)
    return Done(process.returncode, out, err)
