"""Starts local ranks and waits for them. No torch here: the launcher itself stays light.

Ranks find each other through a file, so no port can be in use; torchrun and other launchers work as usual through
RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dlrmctl.console.console import show_error, warn
from dlrmctl.errors import UserError

RENDEZVOUS = "DLRMCTL_RENDEZVOUS"
GRACE_SECONDS = 15.0  # for the other ranks to notice, once one has failed


@dataclass(frozen=True)
class World:
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    from_launcher: bool


def world_from_environment() -> World:
    """Reads what torchrun or our launcher set; alone otherwise.

    Raises:
        UserError: if a variable is not a number.
    """
    from_launcher = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if not from_launcher:
        return World(0, 1, 0, 1, False)

    def number(name: str, default: int) -> int:
        text = os.environ.get(name, str(default))
        try:
            return int(text)
        except ValueError:
            raise UserError(f"{name} = {text!r} in the environment is not a whole number") from None

    rank, world_size = number("RANK", 0), number("WORLD_SIZE", 1)
    if not 0 <= rank < world_size:
        raise UserError(f"RANK = {rank} in the environment must be below WORLD_SIZE = {world_size}")
    return World(rank, world_size, number("LOCAL_RANK", rank), number("LOCAL_WORLD_SIZE", world_size), True)


def needs_launch(nproc: int) -> bool:
    """Whether this process should start `nproc` ranks instead of being one."""
    return nproc > 1 and not world_from_environment().from_launcher


def launch_local(nproc: int, arguments: Sequence[str]) -> int:
    """Runs `dlrmctl ARGUMENTS` on `nproc` ranks of this machine and returns the exit status.

    The status is that of the first rank to fail, or 0. SIGTERM and Ctrl-C go to every rank once.
    """
    cores = len(os.sched_getaffinity(0))
    if nproc > cores:
        warn(f"--nproc = {nproc} ranks on {cores} cores: they will wait for each other")
    with tempfile.TemporaryDirectory(prefix="dlrmctl-") as scratch:
        environment = os.environ | {
            "WORLD_SIZE": str(nproc),
            "LOCAL_WORLD_SIZE": str(nproc),
            RENDEZVOUS: f"file://{scratch}/rendezvous",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // nproc))),
            # Names of machines do not always resolve to themselves; local ranks meet on the loopback.
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        }
        # -P: a ./models.py in the user's directory must not shadow ours.
        command = [sys.executable, "-P", "-m", "dlrmctl", *arguments]
        ranks = [
            subprocess.Popen(
                command,
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                # Ctrl-C reaches a terminal's whole process group: apart, each rank gets it once, from us.
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent,
            )
            for rank in range(nproc)
        ]
        return _wait(ranks)


def _die_with_parent() -> None:
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    forwarded: set[int] = set()

    def forward(number: int, frame: FrameType | None) -> None:
        forwarded.add(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    failed: tuple[int, int] | None = None
    deadline = None
    try:
        while any(process.poll() is None for process in ranks):
            if deadline is None and (failed := _failed(ranks)):
                deadline = time.monotonic() + GRACE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                for process in ranks:
                    process.kill()
            time.sleep(0.05)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    failed = failed or _failed(ranks)
    if failed is None:
        return 0
    rank, code = failed
    if code > 0:
        return code
    if -code in forwarded:
        return 128 - code
    name = signal.Signals(-code).name
    show_error(f"rank {rank} was ended by {name}", "if memory ran out, dmesg says so; --resume goes on")
    return 128 - code


def _failed(ranks: list[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """A rank that ended with a failure, and its return code; one that a signal ended before one that only noticed."""
    codes = [(rank, process.returncode) for rank, process in enumerate(ranks) if process.returncode not in (None, 0)]
    return min(codes, key=lambda pair: pair[1], default=None)


def claim_report() -> bool:
    """True for the first rank of a launch that has an error to show; the others' errors only follow from it."""
    directory = _launch_directory()
    if directory is None:
        return True
    try:
        (directory / "dlrmctl-reported").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _launch_directory() -> Path | None:
    """A directory that the ranks of this launch on this machine share and that goes with it."""
    if RENDEZVOUS in os.environ:
        return Path(os.environ[RENDEZVOUS].removeprefix("file://")).parent
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # .../attempt_0/<local rank>/error.json
        return Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parent.parent
    return None
