"""Measures the compression of generated tables (`dlrmctl bench compression`)."""

import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrmctl.compress.compression import compress
from dlrmctl.compress.request import Request
from dlrmctl.console.console import output, print_table
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import bytes_text
from dlrmctl.rundir.stored_tables import TableShape

_ROWS_PER_CENTER = 1000
_NOISE = 0.8  # of a row around its center, relative to the spread of the centers


class GeneratedTables:
    """Tables of clustered rows, in memory; heights and numbers of lookups follow Zipf's law.

    Args:
        rows: of all tables together.
        tables: number of tables.
        dim: columns.
    """

    def __init__(self, rows: int, tables: int, dim: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shares = 1 / np.arange(1, tables + 1)
        heights = np.maximum(1, rows * shares / shares.sum()).astype(int).tolist()
        self.tables = [TableShape(f"table_{number + 1}", height, dim) for number, height in enumerate(heights)]
        self._weights: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        for table in self.tables:
            centers = torch.randn(4 + table.rows // _ROWS_PER_CENTER, dim, generator=generator)
            counts = (table.rows / torch.arange(1, table.rows + 1)).floor()
            rows_ND = torch.randn(table.rows, dim, generator=generator).mul_(_NOISE)
            rows_ND += centers[torch.randint(len(centers), (table.rows,), generator=generator)]
            # Rows that are rarely looked up stay near 0.
            self._weights[table.name] = rows_ND.mul_(0.1 * (counts / (counts + 3))[:, None])
            self._sums[table.name] = counts

    def weight(self, name: str) -> Tensor:
        return self._weights[name]

    def sums(self, name: str) -> Tensor:
        return self._sums[name]

    def describe(self) -> dict[str, Any]:
        return {"kind": "generated"}


def bench_compression(*, rows: int, tables: int, dim: int, ratio: float, rounds: int) -> dict[str, Any]:
    """Compresses generated tables to a ratio, several times.

    Returns:
        Plain values: wall clock and CPU seconds, number of threads, sizes, weighted relative error, and the number of
        tables by method.
    """
    source = GeneratedTables(rows, tables, dim)
    request = Request(None, ratio, None, 0.0, "*", 1, "auto")
    seconds, cpu_seconds = [], []
    for _ in range(rounds):
        started, cpu_started = time.monotonic(), time.process_time()
        with BarDisplay() as progress:
            done = compress(source, request, trial=None, counts=lambda table: None, progress=progress)
        seconds.append(time.monotonic() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    chosen = [table.options[index] for table, index in zip(done.tables, done.choice.indices, strict=True)]
    methods: dict[str, int] = {}
    for option in chosen:
        methods[option.method] = methods.get(option.method, 0) + 1
    norm = sum(
        float((source.weight(table.name).square().sum(1) * source.sums(table.name)).sum(dtype=torch.float64))
        for table in source.tables
    )
    return {
        "rows": sum(table.rows for table in source.tables),
        "tables": len(source.tables),
        "dim": dim,
        "threads": torch.get_num_threads(),
        "seconds": _spread(seconds),
        "cpu_seconds": _spread(cpu_seconds),
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
        "ratio": done.ratio,
        "weighted_relative_error": float((sum(option.proxy for option in chosen) / norm) ** 0.5),
        "methods": methods,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "fastest": min(values), "slowest": max(values)}


def show_bench_compression(result: dict[str, Any]) -> None:
    """Prints a result."""
    sizes = f"{bytes_text(result['bytes_before'])} of tables become {bytes_text(result['bytes_after'])}"
    output.print(
        f"{result['rows']:,} x {result['dim']} in {result['tables']} tables: {result['seconds']['median']:.1f} s, "
        f"{result['cpu_seconds']['median']:.1f} CPU s on {result['threads']} threads"
    )
    error = f"weighted relative error {result['weighted_relative_error']:.4f}"
    output.print(f"{sizes}, {result['ratio']:.1f} times smaller; {error}")
    print_table("methods", ["", "tables"], [[name, str(count)] for name, count in result["methods"].items()])
