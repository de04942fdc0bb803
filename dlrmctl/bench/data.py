"""Measures reading and preparing a store, and the machine's limits (`dlrmctl bench data`).

Rows are generated with Criteo Kaggle's cardinalities, as text; the text is prepared, and the store is read.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from dlrmctl.bench.preparing import OURS, PARSING, TORCHREC, measure_preparing
from dlrmctl.bench.reading import measure_disk, measure_first_read, measure_machine, measure_reading, write_multi_hot
from dlrmctl.console.console import output, print_table, say, warn
from dlrmctl.console.text import bytes_text, rate_text
from dlrmctl.data.files import scratch_directory
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.schema import Schema
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import STORE_BLOCK_ROWS
from dlrmctl.data.synthetic.cardinalities import SIZES
from dlrmctl.data.synthetic.criteo_text import chunk, chunk_edges
from dlrmctl.data.synthetic.synthetic import Synthetic


@dataclass(frozen=True)
class _Sizes:
    """Amounts to measure; TorchRec's scripts need a minute for a second's work of the others."""

    rows: int
    rows_for_torchrec: int
    rows_of_lists: int
    copied_bytes: int


_FULL = _Sizes(1_000_000, 100_000, 2 * STORE_BLOCK_ROWS, 1 << 28)
_QUICK = _Sizes(40_000, 2_000, 20_000, 1 << 25)


def bench_data(path: Path | None, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Measures reading and preparing generated rows, in a temporary directory.

    Args:
        path: a store to read instead of the generated one.
        rounds: number of rounds, of which medians are taken.
        quick: use few rows; the figures are rough.

    Returns:
        Plain values: "machine", "store", "first_read", "reading" by kind, and "preparing" by number of rows and method.
    """
    sizes = _QUICK if quick else _FULL
    few, many = sizes.rows_for_torchrec, sizes.rows
    given = None if path is None else Store(path, verify=False)
    say("measuring the machine")
    machine = measure_machine(rounds=rounds, copied_bytes=sizes.copied_bytes)
    with scratch_directory() as scratch:
        machine |= measure_disk(scratch, rounds=rounds, num_bytes=sizes.copied_bytes)
        say(f"generating {many:,} rows")
        texts = {few: scratch / "few.txt", many: scratch / "many.txt"}
        _write_texts(texts)
        if given is None:
            prepare(CriteoInput([texts[many]]), scratch / "store")
        store = given or Store(scratch / "store", verify=False)
        stores = {"one id" if store.schema.one_hot else "lists": store}
        if store.schema.one_hot:
            stores["lists"] = write_multi_hot(scratch / "lists", rows=sizes.rows_of_lists)
        say("reading")
        reading = measure_reading(stores, rounds=rounds)
        first_read = measure_first_read(store.path, rounds=rounds)
        say("preparing")
        peers = [PARSING, OURS]
        if find_spec("iopath") is None:
            warn("TorchRec's scripts are omitted: they need iopath (`pip install iopath`)")
        else:
            peers.append(TORCHREC)
        preparing = {
            str(few): measure_preparing(texts[few], few, peers, scratch, rounds=rounds),
            str(many): measure_preparing(texts[many], many, [PARSING, OURS], scratch, rounds=rounds),
        }
    return {
        "machine": machine,
        "store": {"data": "generated rows" if given is None else str(store.path.resolve()), **_describe(store)},
        "first_read": first_read,
        "reading": _beside_machine(reading, machine, stores),
        "preparing": {rows: _with_ratios(methods) for rows, methods in preparing.items()},
    }


def _write_texts(texts: dict[int, Path]) -> None:
    """Writes the same rows to files of the given lengths."""
    most = max(texts)
    source = Synthetic(0, most, 1, 1, cardinalities=SIZES["kaggle"])
    for rows, path in texts.items():
        with path.open("wb") as file:
            for start, stop in pairwise(chunk_edges(rows, [rows])):
                file.write(chunk(source, start, stop).text)


def _describe(store: Store) -> dict[str, Any]:
    entry = store.manifest.splits["train"]
    return {
        "train_examples": entry.examples,
        "bytes_per_row": entry.bytes / entry.examples,
        "block_rows": store.block_rows,
    }


def _beside_machine(
    reading: dict[str, Any], machine: dict[str, float], stores: dict[str, Store]
) -> dict[str, dict[str, Any]]:
    """Adds to every kind the ratio of its time to that of a bare gather of its values."""
    results = {}
    for kind, result in reading.items():
        store = stores[kind.split(",")[0]]
        values = _values_per_row(store)
        bare = values / machine["gather_values_per_second"] * 1e9
        times = result["cpu_ns_per_row"]["median"] / bare
        results[kind] = {**result, "values_per_row": values, "times_bare_gather": times}
    return results


def _values_per_row(store: Store) -> float:
    """Returns the dense values, ids and label of a mean row of the first training block."""
    schema: Schema = store.schema
    block = store.read_block("train", 0)
    return len(schema.dense) + 1 + sum(len(ids) for ids in block.ids_F) / len(block)


def _with_ratios(methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    ours = methods[OURS]["cpu_ns_per_row"]["median"]
    return {
        name: {**result, "times_ours": result["cpu_ns_per_row"]["median"] / ours} for name, result in methods.items()
    }


def show_bench_data(result: dict[str, Any]) -> None:
    """Prints the result."""
    machine, store, first = result["machine"], result["store"], result["first_read"]
    output.print(
        f"one core copies {rate_text(machine['copy_gigabytes_per_second'])} GB/s and gathers "
        f"{rate_text(machine['gather_values_per_second'] / 1e6)} million random values per second; "
        f"the disk writes {rate_text(machine['disk_write_gigabytes_per_second'])} GB/s and reads "
        f"{rate_text(machine['disk_read_gigabytes_per_second'])} GB/s"
    )
    output.print(
        f"store: {store['data']}, {store['train_examples']:,} training examples, "
        f"{store['bytes_per_row']:.0f} bytes per row, blocks of "
        f"{store['block_rows']:,}; checksums of the first read: "
        f"{rate_text(first['gigabytes_per_cpu_second'])} GB/s, "
        f"{rate_text(first['rows_per_cpu_second'] / 1e6)} million rows/s"
    )
    print_table(
        "reading, without checksums",
        [
            "",
            "values",
            "million rows / CPU s",
            "million rows/s",
            "CPU ns/row",
            "fastest",
            "slowest",
            "/ gather",
            "caller ms",
        ],
        [
            [
                kind,
                f"{row['values_per_row']:.0f}",
                rate_text(row["rows_per_cpu_second"] / 1e6),
                rate_text(row["rows_per_second"] / 1e6),
                *(f"{row['cpu_ns_per_row'][key]:.0f}" for key in ("median", "fastest", "slowest")),
                f"{row['times_bare_gather']:.2f}",
                f"{row['foreground_ms_per_batch']:.3f}",
            ]
            for kind, row in result["reading"].items()
        ],
    )
    for rows, methods in result["preparing"].items():
        print_table(
            f"preparing {int(rows):,} rows of text, one thread",
            [
                "",
                "thousand rows / CPU s",
                "thousand rows/s",
                "CPU us/row",
                "fastest",
                "slowest",
                "/ ours",
                "memory",
                "imports",
            ],
            [
                [
                    method,
                    rate_text(row["rows_per_cpu_second"] / 1e3),
                    rate_text(row["rows_per_second"] / 1e3),
                    *(f"{row['cpu_ns_per_row'][key] / 1e3:.2f}" for key in ("median", "fastest", "slowest")),
                    f"{row['times_ours']:.2f}",
                    bytes_text(row["peak_bytes"] - row["bytes_before"]),
                    bytes_text(row["bytes_before"]),
                ]
                for method, row in methods.items()
            ],
        )
