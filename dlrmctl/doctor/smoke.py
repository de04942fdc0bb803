"""Trains for two steps on two ranks, as users do, and looks at what came out."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dlrmctl.doctor.finding import Finding

AREA = "training"
SECONDS = 180
_ARGUMENTS = [
    *("train", "--dataset", "synthetic", "--synthetic-rows", "4096", "--batch-size", "256", "--max-steps", "2"),
    *("--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--evaluations", "1", "--json"),
]


def check_training(ranks: int = 2) -> Finding:
    """A tiny training on `ranks` local ranks in a temporary directory."""
    name = f"{ranks} ranks"
    with tempfile.TemporaryDirectory(prefix="dlrmctl-doctor-") as scratch:
        command = [sys.executable, "-P", "-m", "dlrmctl", *_ARGUMENTS]
        command += ["--nproc", str(ranks), "--run-dir", str(Path(scratch) / "run")]
        started = time.monotonic()
        # The ranks of this test find each other alone, even if doctor itself was started by a launcher.
        environment = {
            key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        }
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, cwd=scratch, env=environment
            )
        except subprocess.TimeoutExpired:
            found = f"two steps of training did not end within {SECONDS} s"
            return Finding(AREA, name, "problem", found, "dlrmctl train --dataset synthetic --max-steps 2 --nproc 1")
        seconds = time.monotonic() - started
    if done.returncode == 0:
        loss = json.loads(done.stdout)["test"]["log_loss"]
        return Finding(AREA, name, "ok", f"two steps in {seconds:.0f} s, start included; test log loss {loss:.4f}")
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line] or lines or [f"exit status {done.returncode}"]
    remedy = "mend what is found above first" if lines else None
    return Finding(AREA, name, "problem", errors[-1].strip(), remedy)
