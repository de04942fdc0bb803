"""Runs a function on ranks: in this process, or in processes that it starts. A launcher does not import torch.

Ranks find each other through a file, so no port can be in use; torchrun and other launchers work as usual through
RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Function and arguments are passed as JSON in a private directory of the
launch, and so is the result or error.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrmctl.console.console import notice, warn
from dlrmctl.data.errors import DataError
from dlrmctl.data.files import scratch_directory
from dlrmctl.errors import Interrupted, UserError
from dlrmctl.ranks.cores import NUM_THREADS, usable_cores
from dlrmctl.ranks.signals import HEARD, REPEAT_SECONDS, handling

RENDEZVOUS = "DLRMCTL_RENDEZVOUS"
HEARING_SECONDS = 10.0  # for a rank to handle a signal that was passed on
GRACE_SECONDS = 15.0  # for the other ranks to end after one has failed
_REPORTED = 1  # status of a rank with a report
LOST = "lost"  # kind of a report: another rank is
# Files in the directory of a launch.
WORK, RESULT, REPORT, _HEARD = "work.json", "result.json", "dlrmctl-reported", "heard"


@dataclass(frozen=True)
class LaunchEnvironment:
    """This process among its ranks, as torchrun or our launcher set it in the environment.

    Attributes:
        rank, world_size: over all machines.
        local_rank, local_world_size: on this machine.
        from_launcher: False if nothing is set, so this process is the only rank.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    from_launcher: bool


class RankError(Exception):
    """Raised when a rank failed by a bug.

    Args:
        traceback: the rank's traceback.
    """

    def __init__(self, traceback: str) -> None:
        super().__init__(traceback)


class RankEnded(UserError):
    """Raised when a rank ended without an error message; `exit_status` is as in a shell."""

    def __init__(self, message: str, hint: str | None, exit_status: int) -> None:
        super().__init__(message, hint)
        self.exit_status = exit_status


def launch_environment() -> LaunchEnvironment:
    """Reads the environment of this process.

    Raises:
        UserError: if a variable is not a number.
    """
    from_launcher = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if not from_launcher:
        return LaunchEnvironment(0, 1, 0, 1, False)

    def number(name: str, default: int) -> int:
        text = os.environ.get(name, str(default))
        try:
            return int(text)
        except ValueError:
            raise UserError(f"{name} = {text!r} in the environment is not a whole number") from None

    rank, world_size = number("RANK", 0), number("WORLD_SIZE", 1)
    if not 0 <= rank < world_size:
        raise UserError(f"RANK = {rank} in the environment must be below WORLD_SIZE = {world_size}")
    return LaunchEnvironment(rank, world_size, number("LOCAL_RANK", rank), number("LOCAL_WORLD_SIZE", world_size), True)


def is_main() -> bool:
    """Returns whether this process is rank 0, which prints results; as `Ranks.is_main`, without torch."""
    return launch_environment().rank == 0


def needs_launch(nproc: int) -> bool:
    """Returns whether `nproc` ranks must be started, because this process is not one of them."""
    return nproc > 1 and not launch_environment().from_launcher


def run_on_ranks(function: str, arguments: Mapping[str, Any], nproc: int) -> Any:
    """Calls a function on `nproc` ranks of this machine; in this process if it already is a rank, or the only one.

    While started ranks run, SIGTERM and Ctrl-C are passed to each of them once, if this is the main thread. Ranks are
    killed if none handles the signal within `HEARING_SECONDS`, or if another follows after `REPEAT_SECONDS`.

    Args:
        function: "module:name"; it joins the others by `process_group`.
        arguments: arguments by name, plain values for JSON.

    Returns:
        The function's result, that of rank 0 on started ranks: plain values for JSON.

    Raises:
        UserError, DataError: what the first rank to fail raised. RankEnded: if a signal ended one.
        RankError: with the traceback of another error. Interrupted: if the ranks left because of a signal.
    """
    if not needs_launch(nproc):
        return imported(function)(**arguments)
    cores = usable_cores()
    if nproc > cores:
        warn(f"--nproc = {nproc} ranks on {cores} cores: they will wait for each other")
    with scratch_directory() as place:
        work = {"function": function, "arguments": dict(arguments), "launcher": os.getpid()}
        (place / WORK).write_text(json.dumps(work))
        failed = _wait(_start(place, nproc, threads=max(1, cores // nproc)), place / REPORT)
        if failed is not None:
            raise _failure(place, *failed)
        return json.loads((place / RESULT).read_text())


def imported(function: str) -> Any:
    """Returns the function "module:name"."""
    module, _, name = function.partition(":")
    if is_main():
        notice("loading PyTorch")
    return getattr(importlib.import_module(module), name)


def _start(place: Path, nproc: int, *, threads: int) -> list[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        RENDEZVOUS: f"file://{place}/rendezvous",
        HEARD: str(place / _HEARD),
        NUM_THREADS: os.environ.get(NUM_THREADS, str(threads)),
        # Host names do not always resolve; local ranks connect on the loopback.
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
    }
    return [
        subprocess.Popen(
            # -P: a ./models.py in the current directory must not shadow ours.
            [sys.executable, "-P", "-m", "dlrmctl.ranks.child", str(place)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            # Ctrl-C reaches the whole process group: in their own, ranks get it once, from here.
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        for rank in range(nproc)
    ]


def _wait(ranks: list[subprocess.Popen[bytes]], report: Path) -> tuple[int, int, bool] | None:
    """Waits for all ranks; after one has failed, at most `GRACE_SECONDS` for the others. If it says that a rank is
    lost, the others have nothing more to say, and the lost one cannot end.

    Args:
        report: the file in which the first rank to fail describes its error.

    Returns:
        The rank that failed, its return code, and whether that is a signal passed on here; None if none failed.
    """
    forwarded: dict[int, float] = {}
    deadline: float | None = None
    in_haste = False

    def forward(number: int) -> None:
        nonlocal in_haste
        now = time.monotonic()
        in_haste = any(now - then > REPEAT_SECONDS for then in forwarded.values())
        forwarded.setdefault(number, now)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    def nobody_hears() -> bool:
        # A rank that waits in a collective handles signals afterwards: never, if it waits for one that is stopped.
        waited = forwarded and time.monotonic() - min(forwarded.values()) > HEARING_SECONDS
        return bool(waited) and not (report.parent / _HEARD).exists()

    failed: tuple[int, int] | None = None
    try:
        with handling(signal.SIGINT, signal.SIGTERM, by=forward):
            while any(process.poll() is None for process in ranks):
                # A rank that has reported an error may wait for the others before it ends.
                if deadline is None and ((failed := _failed(ranks)) or report.exists()):
                    deadline = time.monotonic() + (0 if _names_a_lost_rank(report) else GRACE_SECONDS)
                if deadline is not None and time.monotonic() > deadline:
                    break
                if in_haste or nobody_hears():
                    failed = 0, -min(forwarded, key=lambda number: forwarded[number])
                    break
                time.sleep(0.05)
        failed = failed or _failed(ranks)
        if failed is None and deadline is not None:
            failed = 0, _REPORTED  # a rank reported an error, and none has ended
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return None if failed is None else (*failed, -failed[1] in forwarded)


def _names_a_lost_rank(report: Path) -> bool:
    try:
        return bool(json.loads(report.read_text())["kind"] == LOST)
    except (OSError, ValueError):  # there is none, or it is not whole yet
        return False


def _failed(ranks: list[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Returns a failed rank and its return code; one that a signal ended is preferred."""
    codes = [(rank, process.returncode) for rank, process in enumerate(ranks) if process.returncode not in (None, 0)]
    return min(codes, key=lambda pair: pair[1], default=None)


def _failure(place: Path, rank: int, code: int, forwarded: bool) -> Exception:
    """Returns the error that ranks ended with."""
    if forwarded:
        return Interrupted(-code)
    if code < 0:
        name = signal.Signals(-code).name
        hint = "see dmesg if memory ran out; --resume continues the run"
        return RankEnded(f"rank {rank} was ended by {name}", hint, 128 - code)
    if code > 128:
        return Interrupted(code - 128)
    text = (place / REPORT).read_text() if (place / REPORT).exists() else ""
    if not text:
        return RankEnded(f"rank {rank} ended with status {code}", None, code)
    report = json.loads(text)
    if report["kind"] == "bug":
        return RankError(report["message"])
    return (DataError if report["kind"] == "data" else UserError)(report["message"], report["hint"])


def claim_report(content: str = "") -> bool:
    """Returns True for the first failed rank of a launch; the others' errors only follow from its error.

    Args:
        content: written to the launch's directory for the launcher.
    """
    directory = _launch_directory()
    if directory is None:
        return True
    try:
        with (directory / REPORT).open("x") as file:
            file.write(content)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _launch_directory() -> Path | None:
    """Returns a directory that the ranks of this launch on this machine share; it is removed after the launch."""
    if RENDEZVOUS in os.environ:
        return Path(os.environ[RENDEZVOUS].removeprefix("file://")).parent
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # .../attempt_0/<local rank>/error.json
        return Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parent.parent
    return None
