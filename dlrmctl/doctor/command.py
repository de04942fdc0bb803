"""Runs all checks and prints their findings; the last ones train for two steps on two ranks, and on the GPUs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from dlrmctl.console.console import output, print_json, say
from dlrmctl.data.errors import DataError
from dlrmctl.data.files import scratch_directory
from dlrmctl.doctor.finding import Finding, can_train, to_json
from dlrmctl.doctor.machine import check_machine, num_gpus
from dlrmctl.doctor.packages import check_packages

_MARKS = {"ok": ("ok      ", "green"), "warning": ("warning ", "yellow"), "problem": ("problem ", "bold red")}
AREA = "training"
SECONDS = 180
_WIDTH = len("disk for temporary files")  # the longest name of a finding
_RANKS = 2
_ARGUMENTS = [
    *("train", "--dataset", "synthetic", "--synthetic-rows", "4096", "--batch-size", "256", "--max-steps", "2"),
    *("--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--evaluations", "1", "--json"),
]


def examine(*, smoke: bool) -> Iterator[list[Finding]]:
    """Yields the findings, area by area.

    Args:
        smoke: also train for two steps on two CPU ranks, and on up to two GPUs.
    """
    yield check_packages()
    yield check_machine()
    if smoke:
        tries = [("cpu", _RANKS)]
        if gpus := num_gpus():
            tries.append(("cuda", min(_RANKS, gpus)))
        for device, ranks in tries:
            try:
                yield [check_training(device, ranks)]
            except DataError as problem:  # no place for temporary files
                yield [Finding(AREA, _name(device, ranks), "problem", problem.message, problem.hint)]


def doctor(*, smoke: bool, as_json: bool) -> int:
    """Runs the checks, prints the report, and returns the exit status: 1 if training cannot work."""
    findings: list[Finding] = []
    say("importing packages, checking the machine" + (", training on two ranks" if smoke else ""))
    for area in examine(smoke=smoke):
        findings += area
        if not as_json:
            _show(area)
    if as_json:
        print_json(to_json(findings))
    elif not can_train(findings):
        output.print(f"training cannot work: {_count(findings, 'problem')}")
    else:
        output.print(f"training can work here: {_count(findings, 'warning')}")
    return 0 if can_train(findings) else 1


def _count(findings: list[Finding], status: str) -> str:
    count = sum(finding.status == status for finding in findings)
    return f"{count or 'no'} {status}{'s'[: count != 1]}"


def _show(findings: list[Finding]) -> None:
    for finding in findings:
        mark, style = _MARKS[finding.status]
        output.print(f"{finding.name:<{_WIDTH}}  {finding.found}", label=mark, style=style)
        if finding.remedy:
            output.print(finding.remedy, label=f"{'':{len(mark)}}-> ")


def check_training(device: str, ranks: int) -> Finding:
    """Trains a tiny model on local ranks in a temporary directory, and checks its result.

    Args:
        device: "cpu" or "cuda".

    Raises:
        DataError: if there is no place for temporary files.
    """
    name = _name(device, ranks)
    with scratch_directory() as scratch:
        command = [sys.executable, "-P", "-m", "dlrmctl", *_ARGUMENTS, "--device", device]
        command += ["--nproc", str(ranks), "--run-dir", str(scratch / "run")]
        started = time.monotonic()
        # Without the variables of a launcher that started doctor itself.
        environment = {
            key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        }
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, cwd=scratch, env=environment
            )
        except subprocess.TimeoutExpired:
            found = f"two steps of training did not end within {SECONDS} s"
            alone = f"dlrmctl train --dataset synthetic --max-steps 2 --nproc 1 --device {device}"
            return Finding(AREA, name, "problem", found, alone)
        seconds = time.monotonic() - started
    if done.returncode == 0:
        loss = json.loads(done.stdout)["test"]["log_loss"]
        return Finding(AREA, name, "ok", f"two steps in {seconds:.0f} s with the start; test log loss {loss:.4f}")
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line] or lines or [f"exit status {done.returncode}"]
    remedy = "fix the problems above first" if lines else None
    return Finding(AREA, name, "problem", errors[-1].strip(), remedy)


def _name(device: str, ranks: int) -> str:
    if device == "cpu":
        return f"{ranks} ranks"
    return "1 GPU" if ranks == 1 else f"{ranks} GPUs"
