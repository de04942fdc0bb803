"""Assigns rows to values in bounded memory: counts values, then ranks them by descending count.

`ValueCounter` counts. What does not fit into memory is written to disk as sorted runs, which are merged by ranges of
values. `rank_values` assigns the rows, by descending count, and by ascending value for equal counts. It reads the
values in ascending order, in pieces: the number of values with each count gives the first row of that count, so a
second pass gives every value its row. `write_counts` writes the counts of rows, if rows were counted and not values. K
distinct values of an array or a piece, ascending.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlrmctl.data.files import io_errors, read_array
from dlrmctl.data.schema import MISSING_ROW, RARE_ROW, RESERVED_ROWS

MOST_IN_MEMORY = 1 << 22  # distinct values: about 0.2 GiB while they are merged
_MERGE_AT = 1 << 18  # the least number of values that are merged at once
_WINDOW = 1 << 20  # rows of the table that are written at once
_COUNT = np.dtype("<u8")  # in a run
_Counted = tuple[np.ndarray, np.ndarray]  # values_K, counts_K
_Ranges = Callable[[], Iterator[_Counted]]
_Place = tuple[int, int]  # in a run: from, to


class ValueCounter:
    """Counts the values of a column.

    Args:
        dtype: uint32 or uint64.
        directory: for runs, and nothing else; made when the first is written.
        limit: the most distinct values in memory; it does not affect results.
    """

    def __init__(self, dtype: np.dtype, directory: Path, limit: int = MOST_IN_MEMORY) -> None:
        self._dtype, self._directory, self._limit = np.dtype(dtype), directory, limit
        self._waiting: list[_Counted] = [(np.empty(0, self._dtype), np.empty(0, np.int64))]  # the merged one first
        self._num_waiting = 0
        self._run_sizes: list[int] = []

    def add(self, values_K: np.ndarray, counts_K: np.ndarray) -> None:
        """Counts the distinct values of a piece, as returned by `np.unique`."""
        self._waiting.append((values_K, counts_K))
        self._num_waiting += len(values_K)
        merged = len(self._waiting[0][0])
        # Merging when as much waits as is already merged keeps the total work at n log n.
        if self._num_waiting >= max(_MERGE_AT, merged) or merged + self._num_waiting >= self._limit:
            self._merge()
            if 2 * len(self._waiting[0][0]) >= self._limit:
                self._spill()

    def ranges(self) -> Iterator[_Counted]:
        """Yields all distinct values and their counts (int64), ascending, in pieces of at most `limit`.

        May be called repeatedly, until more is counted.

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
        """Yields the places of ranges of values in the runs: ranges of at most `limit` entries, or of a single value.

        Args:
            runs: the values of the runs.
            places: the places of the values from `low` to `high` in each.
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
    """Returns the distinct values of all, ascending, and the sums of their counts (int64)."""
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


@dataclass(frozen=True)
class Ranked:
    """The result of a ranking.

    Attributes:
        distinct: number of distinct values.
        kept: number of values with their own row.
        total, kept_total: sums of the counts of all values, and of those kept.
        last: count and value of the last one that was kept, if any.
    """

    distinct: int
    kept: int
    total: int
    kept_total: int
    last: tuple[int, int] | None = None


class _Levels:
    """The counts that occur, the highest first, and the first row of the values of each."""

    def __init__(self, ranges: _Ranges, min_count: int, most: int | None) -> None:
        number: dict[int, int] = {}
        for _, counts_K in ranges():
            for count, values in zip(*(a.tolist() for a in np.unique(counts_K, return_counts=True)), strict=True):
                number[count] = number.get(count, 0) + values
        self.distinct = sum(number.values())
        self.total = sum(count * values for count, values in number.items())
        counts = sorted((count for count in number if count >= min_count), reverse=True)
        sizes = np.array([number[count] for count in counts], dtype=np.int64)
        firsts = np.cumsum(sizes) - sizes
        self.kept = int(sizes.sum()) if most is None else min(int(sizes.sum()), most)
        some = firsts < self.kept
        self.counts = np.array(counts, dtype=np.int64)[some]
        self.next_place = firsts[some]
        taken = np.minimum(sizes[some], self.kept - self.next_place)
        self.kept_total = int(self.counts @ taken)


def rank_values(
    ranges: _Ranges, values_file: Path, counts_file: Path, *, count_type: np.dtype, min_count: int, most: int | None
) -> Ranked:
    """Writes the values that have their own row, and their counts, in the order of their rows.

    The counts have room for those of the reserved rows at the beginning. Both files are complete, but not flushed.

    Args:
        ranges: yields all values (ascending) and their counts (int64), in pieces; the same each time.
        values_file: value i has row i + 2.
        counts_file: entry i is the count of row i.
        count_type: of its entries.
        min_count: values with a smaller count have no row.
        most: the most values with a row.

    Raises:
        DataError: if the disk is full.
    """
    levels = _Levels(ranges, min_count, most)
    with (
        io_errors(values_file, "write"),
        values_file.open("wb") as values_out,
        counts_file.open("wb") as counts_out,
    ):
        counts_out.write(np.zeros(RESERVED_ROWS, count_type).data)
        for values_K, counts_K in ranges():
            if not levels.kept:
                break
            values_type = values_K.dtype
            enough = counts_K >= levels.counts[-1]
            order = _by_falling_count(counts_K[enough])
            values_K, counts_K = values_K[enough][order], counts_K[enough][order]
            places_K = _take_places(levels, counts_K)
            inside = places_K < levels.kept
            values_K, counts_K, places_K = values_K[inside], counts_K[inside], places_K[inside]
            for start, stop in _consecutive(places_K):
                place = int(places_K[start])
                _write_at(values_out.fileno(), values_K[start:stop], place)
                _write_at(counts_out.fileno(), counts_K[start:stop].astype(count_type), RESERVED_ROWS + place)
    last = None
    if levels.kept:
        value = read_array(values_file, values_type, 1, (levels.kept - 1) * values_type.itemsize)
        last = int(levels.counts[-1]), int(value[0])
    return Ranked(levels.distinct, levels.kept, levels.total, levels.kept_total, last)


def _by_falling_count(counts_K: np.ndarray) -> np.ndarray:
    """Returns `np.argsort(-counts_K, kind="stable")`, by a faster sort if the counts allow it."""
    highest = int(counts_K.max(initial=0))
    if highest >= 1 << 32 or len(counts_K) >= 1 << 32:
        return np.argsort(-counts_K, kind="stable")
    packed = (highest - counts_K).view(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.arange(len(counts_K), dtype=np.uint64)
    packed.sort()
    return (packed & np.uint64(0xFFFFFFFF)).view(np.int64)


def _take_places(levels: _Levels, counts_K: np.ndarray) -> np.ndarray:
    """Returns the place of each value, after all with a higher count and earlier ones with the same count.

    Args:
        levels: its `next_place` is advanced.
        counts_K: descending.
    """
    starts = np.concatenate(([0], np.flatnonzero(counts_K[1:] != counts_K[:-1]) + 1))[: len(counts_K)]
    sizes = np.diff(starts, append=len(counts_K))
    level = np.searchsorted(-levels.counts, -counts_K[starts])
    firsts = levels.next_place[level]
    levels.next_place[level] += sizes
    return np.repeat(firsts - starts, sizes) + np.arange(len(counts_K))


def _consecutive(places_K: np.ndarray) -> Iterator[tuple[int, int]]:
    """Returns start and stop of each run of places without a gap."""
    if len(places_K) == 0:
        return
    cuts = [0, *(np.flatnonzero(np.diff(places_K) != 1) + 1).tolist(), len(places_K)]
    yield from itertools.pairwise(cuts)


def _write_at(descriptor: int, array: np.ndarray, place: int) -> None:
    content, at = array.view(np.uint8).data, place * array.itemsize
    while content:
        written = os.pwrite(descriptor, content, at)
        content, at = content[written:], at + written


def write_rare(ranges: _Ranges, files: tuple[Path, Path], count_type: np.dtype, last: _Place | None) -> None:
    """Writes the values that `rank_values` gave no row, ascending, and their counts.

    Args:
        ranges: as in `rank_values`.
        files: the new files, of values and counts.
        count_type: of a count; larger ones become the largest it has.
        last: the last value that has a row, as its count and the value; None if there is none.

    Raises:
        DataError: if the disk is full.
    """
    values_file, counts_file = files
    most = int(np.iinfo(count_type).max)
    with io_errors(values_file, "write"), values_file.open("wb") as values_out, counts_file.open("wb") as counts_out:
        for values_K, counts_K in ranges():
            if last is not None:
                count, value = last
                rare_K = (counts_K < count) | ((counts_K == count) & (values_K > values_K.dtype.type(value)))
                values_K, counts_K = values_K[rare_K], counts_K[rare_K]
            values_out.write(np.ascontiguousarray(values_K).data)
            counts_out.write(np.minimum(counts_K, most).astype(count_type).data)


def start_counts(path: Path, dtype: np.dtype, missing: int, rare: int) -> None:
    """Sets the counts of the reserved rows in a file that has those of the others."""
    reserved = np.zeros(2, dtype)
    reserved[[MISSING_ROW, RARE_ROW]] = missing, rare
    with io_errors(path, "write"), path.open("r+b") as file:
        file.write(reserved.data)


def write_counts(path: Path, dtype: np.dtype, num_rows: int, counted: Iterable[_Counted]) -> None:
    """Writes the counts of all rows.

    Args:
        path: the new file.
        dtype: type of a count.
        num_rows: rows of the table.
        counted: yields rows that occur, ascending over all pieces, and their counts.

    Raises:
        DataError: if the disk is full.
    """
    with io_errors(path, "write"):
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            for rows, counts in counted:
                cuts = (np.flatnonzero(np.diff(rows // rows.dtype.type(min(_WINDOW, num_rows)))) + 1).tolist()
                for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
                    if start == stop:
                        continue
                    first = int(rows[start])
                    window = np.zeros(int(rows[stop - 1]) - first + 1, dtype)
                    window[(rows[start:stop] - rows[start]).astype(np.int64)] = counts[start:stop]
                    file.seek(first * dtype.itemsize)
                    file.write(window.data)
            file.truncate(num_rows * dtype.itemsize)
