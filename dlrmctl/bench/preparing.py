"""Measures preparing raw rows: dlrmctl, polars parsing the text, and TorchRec's scripts, on the same file.

Each runs in its own process, to measure its peak memory; imports are not counted.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrmctl.bench import preparers
from dlrmctl.bench.timing import spread
from dlrmctl.errors import UserError


def measure_preparing(
    text: Path, rows: int, methods: Sequence[str], scratch: Path, *, rounds: int
) -> dict[str, dict[str, Any]]:
    """Times methods on one file, with one thread each, alternated.

    Args:
        text: rows in Criteo's format.
        rows: the number of rows.
        methods: some of those in `preparers`.
        scratch: directory for their output; the caller removes it.
        rounds: number of rounds, of which medians are taken.

    Returns:
        By method: nanoseconds of CPU per row, rows per CPU second and per second, and the bytes of the process: peak,
        and before its work.
    """
    seen: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for number in range(rounds):
        for method in methods:
            out = scratch / f"{number}-{len(seen[method])}-{methods.index(method)}-{rows}"
            out.mkdir()
            seen[method].append(_in_new_process(method, text, out))
    return {method: _summary(runs, rows) for method, runs in seen.items()}


def _summary(runs: Sequence[Mapping[str, float]], rows: int) -> dict[str, Any]:
    cpu = [run["cpu_seconds"] for run in runs]
    return {
        "rows": rows,
        "cpu_ns_per_row": spread([seconds / rows * 1e9 for seconds in cpu]),
        "rows_per_cpu_second": rows / statistics.median(cpu),
        "rows_per_second": rows / statistics.median(run["seconds"] for run in runs),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "bytes_before": max(run["bytes_before"] for run in runs),
    }


def _in_new_process(method: str, text: Path, out: Path) -> dict[str, float]:
    one_thread = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-P", "-m", preparers.__name__, method, str(text), str(out)]
    done = subprocess.run(command, env=os.environ | one_thread, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{method} failed on {text}: {' '.join(done.stderr.split())[-500:]}")
    measured: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return measured
