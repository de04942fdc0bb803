"""Measures the reader of a store, and the bare copying and gathering in it."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.bench.timing import spread
from dlrmctl.data.reader import Reader
from dlrmctl.data.source import Block
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import STORE_BLOCK_ROWS, StoreWriter
from dlrmctl.data.synthetic.synthetic import Synthetic

BATCH_SIZES = (2048, 8192)
_MOST_ROWS = 2_000_000  # of one measurement
_MAX_IDS = 5


def measure_reading(stores: Mapping[str, Store], *, rounds: int) -> dict[str, Any]:
    """Times epochs, or their first rows, of every kind, alternated, after a round that warms the page cache.

    Args:
        stores: stores by the name of the measurement; checksums are measured separately.
        rounds: number of rounds, of which medians are taken.

    Returns:
        By kind: rows, nanoseconds of CPU per row (all threads), rows per CPU second and per second, and milliseconds
        of the calling thread per batch.
    """
    kinds: dict[str, tuple[Reader, int]] = {}
    for name, store in stores.items():
        for shuffle in (False, True):
            for size in BATCH_SIZES:
                if size <= store.num_examples("train"):
                    order = "shuffled" if shuffle else "sequential"
                    reader = Reader(store, "train", batch_size=size, shuffle=shuffle)
                    batches = min(reader.num_batches, max(1, _MOST_ROWS // size))
                    kinds[f"{name}, {order}, batch {size:,}"] = reader, batches
    seen: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
    for number in range(rounds + 1):
        for kind, (reader, batches) in kinds.items():
            seconds = _read(reader, batches)
            if number > 0:
                seen[kind].append(seconds)
    results = {}
    for kind, (reader, batches) in kinds.items():
        rows = batches * reader.batch_size
        cpu, wall, foreground = zip(*seen[kind], strict=True)
        results[kind] = {
            "rows": rows,
            "cpu_ns_per_row": spread([seconds / rows * 1e9 for seconds in cpu]),
            "rows_per_cpu_second": rows / statistics.median(cpu),
            "rows_per_second": rows / statistics.median(wall),
            "foreground_ms_per_batch": statistics.median(foreground) / batches * 1e3,
        }
    return results


def _read(reader: Reader, batches: int) -> tuple[float, float, float]:
    """Returns seconds of all threads, of the clock, and of this thread, for the first batches of an epoch."""
    started = time.process_time(), time.perf_counter(), time.thread_time()
    with closing(reader.batches(epoch=0)) as stream:  # type: ignore[type-var]
        for _ in islice(stream, batches):
            pass
    ended = time.process_time(), time.perf_counter(), time.thread_time()
    cpu, wall, foreground = (b - a for a, b in zip(started, ended, strict=True))
    return cpu, wall, foreground


def measure_first_read(path: Path, *, rounds: int) -> dict[str, float]:
    """Measures the checksums of the first read: rows and bytes per CPU second."""
    rates = []
    for _ in range(rounds):
        store = Store(path)
        count = max(1, min(store.num_examples("train"), _MOST_ROWS) // store.block_rows)

        def read(store: Store = store, count: int = count) -> float:
            started = time.process_time()
            for index in range(count):
                store.read_block("train", index)
            return time.process_time() - started

        first, again = read(), read()
        rates.append(count / max(first - again, 1e-9))
    entry = store.manifest.splits["train"]
    blocks_per_second = statistics.median(rates)
    rows = min(store.block_rows, entry.examples)
    return {
        "rows_per_cpu_second": blocks_per_second * rows,
        "gigabytes_per_cpu_second": blocks_per_second * rows * entry.bytes / entry.examples / 1e9,
    }


def measure_machine(*, rounds: int, copied_bytes: int) -> dict[str, float]:
    """Measures limits of one core: gigabytes copied per second, and random values of a column gathered per second.

    Args:
        rounds: number of rounds, of which the fastest counts.
        copied_bytes: more than caches hold.
    """
    source, target = np.ones(copied_bytes, np.uint8), np.empty(copied_bytes, np.uint8)
    column = np.arange(STORE_BLOCK_ROWS, dtype=np.uint32)
    order = np.random.default_rng(0).permutation(STORE_BLOCK_ROWS)
    out = np.empty_like(column)
    copy = _best(lambda: np.copyto(target, source), rounds)
    repeats = 100

    def gather() -> None:
        for _ in range(repeats):
            column.take(order, out=out)

    return {
        "copy_gigabytes_per_second": copied_bytes / copy / 1e9,
        "gather_values_per_second": repeats * len(order) / _best(gather, rounds),
    }


def measure_disk(directory: Path, *, rounds: int, num_bytes: int) -> dict[str, float]:
    """Measures gigabytes per second written to the disk, and read from it without the page cache.

    Args:
        directory: on the disk, for a temporary file.
        rounds: number of rounds, of which the fastest counts.
        num_bytes: bytes of the file.
    """
    file, content = directory / "disk", np.random.default_rng(0).bytes(num_bytes)
    written, read = [], []
    for _ in range(rounds):
        with file.open("wb", buffering=0) as out:
            started = time.perf_counter()
            out.write(content)
            os.fsync(out.fileno())
            written.append(time.perf_counter() - started)
            os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        file.read_bytes()
        read.append(time.perf_counter() - started)
        file.unlink()
    return {
        "disk_write_gigabytes_per_second": num_bytes / min(written) / 1e9,
        "disk_read_gigabytes_per_second": num_bytes / min(read) / 1e9,
    }


def write_multi_hot(path: Path, *, rows: int) -> Store:
    """Makes a store of generated lists of 1 to 5 ids per feature, in blocks of the size that a preparation writes."""
    source = Synthetic(0, rows, 1, 1, max_ids=_MAX_IDS)
    path.mkdir()
    with StoreWriter(path, source.schema) as writer:
        per_block = STORE_BLOCK_ROWS // source.block_rows
        indices = list(range(-(-rows // source.block_rows)))
        for start in range(0, len(indices), per_block):
            writer.add("train", _joined([source.read_block("train", i) for i in indices[start : start + per_block]]))
        writer.finish()
    return Store(path, verify=False)


def _joined(blocks: list[Block]) -> Block:
    """Joins several blocks with lengths."""
    return Block(
        np.concatenate([block.dense_IN for block in blocks], axis=1),
        [np.concatenate(ids) for ids in zip(*(block.ids_F for block in blocks), strict=True)],
        np.concatenate([block.labels_N for block in blocks]),
        np.concatenate([block.lengths_FN for block in blocks if block.lengths_FN is not None], axis=1),
    )


def _best(work: Callable[[], None], rounds: int) -> float:
    """Returns the CPU seconds of the fastest round."""
    seconds = []
    for _ in range(rounds + 1):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)
