"""From counted values to the rows of a table: by falling count, and by rising value where counts are equal.

The values come in rising order, in pieces. How many values have each count says in which row each count begins, so a
second look at the pieces gives every value its row, and nothing needs to be in memory as a whole. K values of a piece.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files import io_errors
from data.schema import RESERVED_ROWS

_Ranges = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class Ranked:
    """What became of the counted values.

    Attributes:
        distinct: different values.
        kept: those with a row of their own.
        total, kept_total: how often all of them, and those kept, were counted.
    """

    distinct: int
    kept: int
    total: int
    kept_total: int


class _Levels:
    """The counts that occur, the highest first, and in which row the values of each begin."""

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
    """Writes the values that have a row of their own, and their counts, in the order of their rows.

    The counts leave room for those of the reserved rows in front. Both files are complete, but not on the disk yet.

    Args:
        ranges: gives all values (rising) and their counts (int64), in pieces; the same each time.
        values_file: value i has row i + 2.
        counts_file: entry i is the count of row i.
        count_type: of its entries.
        min_count: values counted less often have no row.
        most: values with a row at most.

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
    return Ranked(levels.distinct, levels.kept, levels.total, levels.kept_total)


def _by_falling_count(counts_K: np.ndarray) -> np.ndarray:
    """The order that `np.argsort(-counts_K, kind="stable")` gives, by a faster sort where the counts allow it."""
    highest = int(counts_K.max(initial=0))
    if highest >= 1 << 32 or len(counts_K) >= 1 << 32:
        return np.argsort(-counts_K, kind="stable")
    packed = (highest - counts_K).view(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.arange(len(counts_K), dtype=np.uint64)
    packed.sort()
    return (packed & np.uint64(0xFFFFFFFF)).view(np.int64)


def _take_places(levels: _Levels, counts_K: np.ndarray) -> np.ndarray:
    """The place of each value behind all of a higher count and those of its own that came before.

    Args:
        levels: its `next_place` moves on.
        counts_K: falling.
    """
    starts = np.concatenate(([0], np.flatnonzero(counts_K[1:] != counts_K[:-1]) + 1))[: len(counts_K)]
    sizes = np.diff(starts, append=len(counts_K))
    level = np.searchsorted(-levels.counts, -counts_K[starts])
    firsts = levels.next_place[level]
    levels.next_place[level] += sizes
    return np.repeat(firsts - starts, sizes) + np.arange(len(counts_K))


def _consecutive(places_K: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where runs of places without a gap begin and end."""
    if len(places_K) == 0:
        return
    cuts = [0, *(np.flatnonzero(np.diff(places_K) != 1) + 1).tolist(), len(places_K)]
    yield from itertools.pairwise(cuts)


def _write_at(descriptor: int, array: np.ndarray, place: int) -> None:
    content, at = array.view(np.uint8).data, place * array.itemsize
    while content:
        written = os.pwrite(descriptor, content, at)
        content, at = content[written:], at + written
