"""Writes the texts of a vocabulary in the order of its rows, in bounded memory. K texts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dlrmctl.data.features.kept_texts import CONTENT_TYPE, END_TYPE
from dlrmctl.data.files import io_errors, read_array
from dlrmctl.data.hashed_texts import LENGTH_TYPE, texts_at

MOST_WAITING = 1 << 26  # bytes of texts in memory
_WINDOW = 1 << 22  # bytes of texts that are sorted at a time


class _Run:
    """Texts of distinct values.

    Args:
        places_K: places of the values in the vocabulary, ascending.
        lengths_K: lengths of the texts.
        content: the concatenated texts.
    """

    def __init__(self, places_K: np.ndarray, lengths_K: np.ndarray, content: bytes) -> None:
        self._places_K, self._content = places_K, content
        self._ends_K = np.cumsum(lengths_K, dtype=np.int64)
        self._spilled: tuple[Path, int] | None = None

    def spill(self, path: Path) -> None:
        """Moves the content to the end of a file.

        Raises:
            DataError: if the disk is full.
        """
        with io_errors(path, "write"), path.open("ab") as file:
            self._spilled = path, file.tell()
            file.write(self._content)
        self._content = b""

    def between(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, bytes]:
        """Returns the texts of a range of places: places, lengths and content."""
        first, last = np.searchsorted(self._places_K, [start, stop]).tolist()
        begin, end = (int(self._ends_K[number - 1]) if number else 0 for number in (first, last))
        if self._spilled is None:
            content = self._content[begin:end]
        else:
            path, offset = self._spilled
            content = read_array(path, CONTENT_TYPE, end - begin, offset + begin).tobytes()
        return self._places_K[first:last], np.diff(self._ends_K[first:last], prepend=begin), content


class TextWriter:
    """Writes texts, one range of places in the vocabulary after another. In a range they can be added in any order.

    Args:
        content, ends: the files; new ones if `written` is None.
        spilled: file for what does not fit into memory.
        written: bytes of texts that the files have already; new ones follow them.
        most_waiting: bytes of texts in memory; affects only the speed.

    Raises:
        DataError: if they cannot be written.
    """

    def __init__(
        self, content: Path, ends: Path, spilled: Path, most_waiting: int = MOST_WAITING, *, written: int | None = None
    ) -> None:
        self._content, self._ends, self._spilled, self._most = content, ends, spilled, most_waiting
        self.num_bytes = written or 0
        for path in (content, ends) if written is None else ():
            with io_errors(path, "write"):
                path.write_bytes(b"")
        self.begin(0, 0)

    def begin(self, start: int, stop: int) -> None:
        """Begins the next range."""
        self._start, self._lengths = start, np.zeros(stop - start, LENGTH_TYPE)
        self._runs: list[_Run] = []
        self._waiting = 0
        self._spilled.unlink(missing_ok=True)

    def wanted(self, places_K: np.ndarray) -> np.ndarray:
        """Returns the numbers of texts that were not added yet, one for each place, by ascending place.

        Args:
            places_K: int64, places of some texts; outside the range if they have no row in it.
        """
        inside = np.flatnonzero((places_K >= self._start) & (places_K < self._start + len(self._lengths)))
        inside = inside[self._lengths[places_K[inside] - self._start] == 0]
        return inside[np.unique(places_K[inside], return_index=True)[1]]

    def add(self, places_K: np.ndarray, lengths_K: np.ndarray, content: bytes) -> None:
        """Adds texts that `wanted` returned.

        Raises:
            DataError: if the disk is full.
        """
        self._lengths[places_K - self._start] = lengths_K
        run = _Run(places_K, lengths_K, content)
        self._runs.append(run)
        if self._waiting + len(content) > self._most:
            run.spill(self._spilled)
        else:
            self._waiting += len(content)

    def end(self) -> None:
        """Writes the range.

        Raises:
            DataError: if the disk is full.
        """
        ends = np.cumsum(self._lengths, dtype=np.int64)
        with io_errors(self._content, "write"), self._content.open("ab") as file:
            for first, last in _windows(ends):
                found = [run.between(self._start + first, self._start + last) for run in self._runs]
                places, lengths = (np.concatenate([of_run[i] for of_run in found]) for i in (0, 1))
                content = b"".join([of_run[2] for of_run in found])
                file.write(texts_at(content, np.cumsum(lengths), np.argsort(places)))
        with io_errors(self._ends, "write"), self._ends.open("ab") as file:
            file.write((ends + self.num_bytes).astype(END_TYPE).data)
        self.num_bytes += int(self._lengths.sum(dtype=np.int64))
        self.begin(self._start + len(self._lengths), self._start + len(self._lengths))


def _windows(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Returns ranges of texts with about `_WINDOW` bytes each."""
    first, total = 0, int(ends[-1]) if len(ends) else 0
    for limit in range(_WINDOW, total + _WINDOW, _WINDOW) if total else ():
        last = int(np.searchsorted(ends, limit, side="right")) if limit < total else len(ends)
        if last > first:
            yield first, last
        first = last
