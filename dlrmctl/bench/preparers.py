"""The preparations that `dlrmctl bench data` compares, each run as a process: METHOD TEXT OUT.

The last line of standard error reports time and memory. Only methods that need torch import it, since it takes memory.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

OURS, PARSING, TORCHREC = "prepare", "polars, parsing alone", "torchrec"


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
