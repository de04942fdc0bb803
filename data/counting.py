"""Counts values in bounded memory: what does not fit goes to disk as sorted runs, and is merged by ranges of values.

K different values of an array, rising.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.files import io_errors, read_array

MOST_IN_MEMORY = 1 << 22  # different values: about 0.2 GiB while they are merged
_COUNT = np.dtype("<u8")
_MERGE_AT = 1 << 18  # values that wait before they are merged, at least
_Counted = tuple[np.ndarray, np.ndarray]  # values_K, counts_K
_Place = tuple[int, int]  # in a run: from, to


class ValueCounter:
    """Counts the values of a column.

    Args:
        dtype: uint32 or uint64.
        directory: for runs, and nothing else; made when the first is written.
        limit: different values in memory at most; every result is the same whatever it is.
    """

    def __init__(self, dtype: np.dtype, directory: Path, limit: int = MOST_IN_MEMORY) -> None:
        self._dtype, self._directory, self._limit = np.dtype(dtype), directory, limit
        self._waiting: list[_Counted] = [(np.empty(0, self._dtype), np.empty(0, np.int64))]  # the merged one first
        self._num_waiting = 0
        self._run_sizes: list[int] = []

    def add(self, values_K: np.ndarray, counts_K: np.ndarray) -> None:
        """Counts the different values of a piece, as `np.unique` gives them."""
        self._waiting.append((values_K, counts_K))
        self._num_waiting += len(values_K)
        merged = len(self._waiting[0][0])
        # Merging when as much waits as is merged already keeps the whole work at n log n.
        if self._num_waiting >= max(_MERGE_AT, merged) or merged + self._num_waiting >= self._limit:
            self._merge()
            if 2 * len(self._waiting[0][0]) >= self._limit:
                self._spill()

    def ranges(self) -> Iterator[_Counted]:
        """All different values and how often each was counted (int64), rising, in pieces of `limit` at most.

        May be asked again and again, until something more is counted.

        Raises:
            DataError: if the disk is full.
        """
        self._merge()
        if not self._run_sizes:
            yield self._waiting[0]
            return
        if len(self._waiting[0][0]):
            self._spill()
        with io_errors(self._directory, "read"):
            runs = [np.asarray(np.memmap(self._files(run)[0], self._dtype, "r")) for run in range(len(self._run_sizes))]
        places = [(0, size) for size in self._run_sizes]
        for cut in self._cut(runs, places, 0, int(np.iinfo(self._dtype).max)):
            yield merge_counts([self._read(run, *place) for run, place in enumerate(cut) if place[0] < place[1]])

    def close(self) -> None:
        """Removes the runs."""
        if self._run_sizes:
            self._clear()

    def _clear(self) -> None:
        with io_errors(self._directory, "write"):
            if self._directory.exists():
                shutil.rmtree(self._directory)

    def _merge(self) -> None:
        if len(self._waiting) > 1:
            self._waiting, self._num_waiting = [merge_counts(self._waiting)], 0

    def _spill(self) -> None:
        values, counts = self._waiting[0]
        if not self._run_sizes:
            self._clear()
        files = self._files(len(self._run_sizes))
        for path, array in zip(files, (values, counts.astype(_COUNT)), strict=True):
            with io_errors(path, "write"):
                self._directory.mkdir(parents=True, exist_ok=True)
                path.write_bytes(array.data)
        self._run_sizes.append(len(values))
        self._waiting = [(values[:0].copy(), counts[:0].copy())]

    def _files(self, run: int) -> tuple[Path, Path]:
        return self._directory / f"{run}.values", self._directory / f"{run}.counts"

    def _cut(self, runs: list[np.ndarray], places: list[_Place], low: int, high: int) -> Iterator[list[_Place]]:
        """Where ranges of values lie in the runs: ranges of `limit` entries at most, or of a single value.

        Args:
            runs: their values.
            places: where the values from `low` to `high` lie in each.
            low, high: both included.
        """
        entries = sum(stop - start for start, stop in places)
        if entries == 0:
            return
        if entries <= self._limit or low == high:
            yield places
            return
        middle = (low + high) // 2
        value = self._dtype.type(middle)
        cuts = [
            start + int(np.searchsorted(run[start:stop], value, side="right"))
            for run, (start, stop) in zip(runs, places, strict=True)
        ]
        below = [(start, cut) for (start, _), cut in zip(places, cuts, strict=True)]
        yield from self._cut(runs, below, low, middle)
        yield from self._cut(runs, [(cut, stop) for (_, stop), cut in zip(places, cuts, strict=True)], middle + 1, high)

    def _read(self, run: int, start: int, stop: int) -> _Counted:
        values, counts = self._files(run)
        width = self._dtype.itemsize
        return (
            read_array(values, self._dtype, stop - start, start * width),
            read_array(counts, _COUNT, stop - start, start * _COUNT.itemsize).astype(np.int64),
        )


def merge_counts(counted: Sequence[_Counted]) -> _Counted:
    """The different values of all, rising, and the sums of their counts (int64)."""
    values = np.concatenate([values for values, _ in counted])
    if len(values) == 0:
        return values, np.empty(0, np.int64)
    counts = np.concatenate([counts for _, counts in counted]).astype(np.int64, copy=False)
    if values.dtype.itemsize <= 4 and int(counts.max()) < 1 << 32:
        # Sorting value and count as one number is several times as fast as sorting places.
        packed = values.astype(np.uint64)
        packed <<= np.uint64(32)
        packed |= counts.view(np.uint64)
        packed.sort()
        counts = (packed & np.uint64(0xFFFFFFFF)).view(np.int64)
        packed >>= np.uint64(32)
        values = packed.astype(values.dtype)
    else:
        order = np.argsort(values)
        values, counts = values[order], counts[order]
    starts = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))
    return values[starts], np.add.reduceat(counts, starts)
