"""Parsed rows on disk, one file per column, between the passes of a preparation.

I dense features, F <= 32 sparse features, N rows.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from data.files import io_errors
from data.raw import RawPiece
from data.vocabulary import Encoder

PIECE_ROWS = 1 << 20
_LABEL_TYPE, _DENSE_TYPE, _PRESENT_TYPE, _VALUE_TYPE = (np.dtype(code) for code in ("u1", "<f2", "<u4", "<u4"))


class ColumnFiles:
    """Appended to row by row, then read and rewritten column by column.

    Args:
        path: a new directory.
        dense, sparse: names of the columns.
    """

    def __init__(self, path: Path, dense: Sequence[str], sparse: Sequence[str]) -> None:
        assert len(sparse) <= 8 * _PRESENT_TYPE.itemsize
        self.path, self.dense, self.sparse, self.rows = path, tuple(dense), tuple(sparse), 0
        with io_errors(path, "write"):
            path.mkdir()
            names = ("label", "present", *self.dense, *self.sparse)
            self._files: dict[str, BinaryIO] = {name: (path / name).open("wb") for name in names}

    def append(self, rows: RawPiece) -> None:
        """Adds rows to every column."""
        bits = np.left_shift(np.uint32(1), np.arange(len(self.sparse), dtype=np.uint32))
        present_FN = np.stack([column.present_N for column in rows.sparse if column.present_N is not None])
        self._write("label", rows.labels_N.astype(_LABEL_TYPE))
        self._write("present", np.bitwise_or.reduce(present_FN * bits[:, None], axis=0).astype(_PRESENT_TYPE))
        for name, dense_N in zip(self.dense, rows.dense_IN, strict=True):
            self._write(name, dense_N.astype(_DENSE_TYPE))
        for name, column in zip(self.sparse, rows.sparse, strict=True):
            self._write(name, column.values.astype(_VALUE_TYPE))
        self.rows += len(rows.labels_N)

    def close(self) -> None:
        """Ends appending."""
        for name, file in self._files.items():
            with io_errors(self.path / name, "write"):
                file.close()

    def present_values(self, name: str, num_rows: int) -> Iterator[np.ndarray]:
        """The values of a sparse column that are not missing, among the first `num_rows` rows, in pieces."""
        for start in range(0, num_rows, PIECE_ROWS):
            count = min(PIECE_ROWS, num_rows - start)
            yield self._read(name, _VALUE_TYPE, start, count)[self._present(name, start, count)]

    def encode(self, name: str, encoder: Encoder) -> Iterator[np.ndarray]:
        """Replaces the values of a sparse column by rows, in place; gives every piece of rows, uint32."""
        with io_errors(self.path / name, "write"), (self.path / name).open("r+b") as file:
            for start in range(0, self.rows, PIECE_ROWS):
                count = min(PIECE_ROWS, self.rows - start)
                values = self._read(name, _VALUE_TYPE, start, count)
                rows = encoder.encode(values, self._present(name, start, count))
                file.seek(start * _VALUE_TYPE.itemsize)
                file.write(rows.astype(_VALUE_TYPE, copy=False).data)
                yield rows

    def dense_rows(self, start: int, count: int) -> np.ndarray:
        """float16 [I, count]."""
        return np.stack([self._read(name, _DENSE_TYPE, start, count) for name in self.dense])

    def sparse_rows(self, start: int, count: int) -> list[np.ndarray]:
        """F arrays of uint32 [count]."""
        return [self._read(name, _VALUE_TYPE, start, count) for name in self.sparse]

    def labels(self, start: int, count: int) -> np.ndarray:
        """uint8 [count]."""
        return self._read("label", _LABEL_TYPE, start, count)

    def _present(self, name: str, start: int, count: int) -> np.ndarray:
        bit = np.uint32(1 << self.sparse.index(name))
        return (self._read("present", _PRESENT_TYPE, start, count) & bit) != 0

    def _read(self, name: str, dtype: np.dtype, start: int, count: int) -> np.ndarray:
        with io_errors(self.path / name, "read"):
            return np.fromfile(self.path / name, dtype=dtype, count=count, offset=start * dtype.itemsize)

    def _write(self, name: str, column: np.ndarray) -> None:
        with io_errors(self.path / name, "write"):
            self._files[name].write(np.ascontiguousarray(column).data)

    def __enter__(self) -> "ColumnFiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for file in self._files.values():
            try:
                file.close()
            except OSError:  # the directory is thrown away, and the error on its way out says more
                continue
        shutil.rmtree(self.path, ignore_errors=True)
