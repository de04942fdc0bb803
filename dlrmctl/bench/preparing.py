"""Measures preparing raw rows: dlrmctl, polars parsing the text, and TorchRec's scripts, on the same file.

Each runs in its own process, this module with METHOD TEXT OUT, to measure its peak memory. Imports are not counted, and
only methods that need torch import it, since it takes memory.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrmctl.errors import UserError

_MODULE = "dlrmctl.bench.preparing"
OURS, PARSING, TORCHREC = "prepare", "polars, parsing alone", "torchrec"


def measure_preparing(
    text: Path, rows: int, methods: Sequence[str], scratch: Path, *, rounds: int
) -> dict[str, dict[str, Any]]:
    """Times methods on one file, with one thread each, alternated.

    Args:
        text: rows in Criteo's format.
        rows: the number of rows.
        methods: some of those above.
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
    from dlrmctl.bench.timing import spread

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
    command = [sys.executable, "-P", "-m", _MODULE, method, str(text), str(out)]
    done = subprocess.run(command, env=os.environ | one_thread, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{method} failed on {text}: {' '.join(done.stderr.split())[-500:]}")
    measured: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return measured


def _work(method: str, text: Path, out: Path) -> Callable[[], object]:
    """Returns the work of a method, after its imports."""
    if method == OURS:
        from dlrmctl.data.formats.criteo import CriteoInput
        from dlrmctl.data.preparation.prepare import prepare

        return lambda: prepare(CriteoInput([text]), out / "store", workers=1)
    if method == PARSING:
        import polars as pl

        columns = ["label", *(f"int_{i}" for i in range(1, 14)), *(f"cat_{f}" for f in range(1, 27))]
        schema = {name: pl.String if name.startswith("cat") else pl.Int32 for name in columns}
        return lambda: pl.read_csv(text, separator="\t", has_header=False, schema=schema)
    from torchrec.datasets.criteo import BinaryCriteoUtils

    def torchrec() -> None:
        dense, sparse, labels = (str(out / f"{name}.npy") for name in ("dense", "sparse", "labels"))
        BinaryCriteoUtils.tsv_to_npys(str(text), dense, sparse, labels, "criteo_kaggle")
        BinaryCriteoUtils.sparse_to_contiguous([sparse], str(out))

    return torchrec


def _bytes_of_process(name: str) -> float:
    """Reads `VmRSS`, or its peak `VmHWM`; getrusage would include the peak of the parent process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return float(line.split()[1]) * 1024
    raise AssertionError(f"no {name} in /proc/self/status")


def main() -> None:
    """Runs one method in this process; the last line of standard error reports time and memory."""
    method, text, out = sys.argv[1:]
    work = _work(method, Path(text), Path(out))
    before = _bytes_of_process("VmRSS")
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    del result
    measured = {
        "cpu_seconds": after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime,
        "seconds": seconds,
        "peak_bytes": _bytes_of_process("VmHWM"),
        "bytes_before": before,
    }
    sys.stderr.write("\n" + json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
