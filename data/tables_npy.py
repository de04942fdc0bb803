"""NumPy arrays as the input of a preparation: TorchRec's triplets of files, and MLPerf's multi-hot archives.

N examples, I dense features, F sparse features, K ids of a feature in every example.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.errors import DataError
from data.raw import BadLine, Position, RawColumn, RawFeature, RawPiece, SourceFile, Task
from data.tables_npz import ArrayFile
from data.tables_triplets import Triplet, open_triplets

PIECE_ROWS = 1 << 16
READER_VERSION = 1
_LARGEST = float(np.finfo(np.float16).max)


class NpyInput:
    """Triplets of arrays, one after another; dense values are taken as they are.

    Args:
        sources: directories (all their triplets, day_2 before day_10), or files of the triplets, in the order of time.
        as_rows: whether ids are rows of tables already; else they are values that get their rows like any others.
        piece_rows: of a piece.

    Raises:
        DataError: if there is no triplet, one lacks a part, or the shapes of the parts do not fit each other.
    """

    format = "npy"
    label = "label"
    dense_transform: Mapping[str, Any] = {"formula": "x", "missing": None, "type": "float16"}

    def __init__(self, sources: Sequence[str | Path], *, as_rows: bool = True, piece_rows: int = PIECE_ROWS) -> None:
        self._piece_rows, self._as_rows = piece_rows, as_rows
        self._days = open_triplets(sources)
        first = self._days[0]
        names = [f"cat_{f + 1}" for f in range(len(first.hot))]
        kinds = {array.dtype for day in self._days for array in day.ids}
        value_type = "<u4" if all(kind.itemsize <= 4 for kind in kinds) else "<u8"
        self.dense = tuple(f"int_{i + 1}" for i in range(first.dense.shape[1]))
        self.sparse = tuple(
            RawFeature(name, value_type, hot, as_rows) for name, hot in zip(names, first.hot, strict=True)
        )
        sizes = [sum(path.stat().st_size for path in day.paths) for day in self._days]
        self.sources = tuple(SourceFile(day.name, size) for day, size in zip(self._days, sizes, strict=True))

    def identity(self) -> Mapping[str, Any]:
        """Names, sizes and times of change of all files, and how they are read."""
        stats = [(path, path.stat()) for day in self._days for path in day.paths]
        files = [{"name": str(p), "bytes": s.st_size, "mtime_ns": s.st_mtime_ns} for p, s in stats]
        how = {"reader": READER_VERSION, "piece_rows": self._piece_rows, "as_rows": self._as_rows}
        return {"format": self.format, **how, "sources": files}

    def tasks(self, after: Position | None = None) -> Iterator[Task]:
        """The pieces from a position on.

        Raises:
            DataError: if a file cannot be read.
        """
        before = 0
        for number, source in enumerate(self.sources):
            if after is None or number >= after["source"]:
                skip = after["row"] if after and number == after["source"] else 0
                yield from self._day_tasks(number, before, skip)
            before += source.num_bytes

    def _day_tasks(self, number: int, before: int, skip: int) -> Iterator[Task]:
        day, size = self._days[number], self.sources[number].num_bytes
        with ExitStack() as stack:
            streams = [stack.enter_context(array.unpacked()) if array.start < 0 else None for array in day.ids]
            for array, stream in zip(day.ids, streams, strict=True):
                if stream is not None:
                    _skip(stream, skip * array.dtype.itemsize * array.shape[1])
            for start in range(skip, day.rows, self._piece_rows):
                stop = min(start + self._piece_rows, day.rows)
                unpacked = [
                    None if stream is None else _unpack(array, stream, stop - start)
                    for array, stream in zip(day.ids, streams, strict=True)
                ]
                read = partial(self._read, day, start, stop, unpacked)
                yield Task(number, {"source": number, "row": stop}, before + size * stop // day.rows, read)

    def _read(self, day: Triplet, start: int, stop: int, unpacked: list[np.ndarray | None]) -> RawPiece:
        dense_NI, labels_N = day.dense.rows(start, stop), day.labels.rows(start, stop).reshape(-1)
        ids = [
            array.rows(start, stop) if ids_NK is None else ids_NK
            for array, ids_NK in zip(day.ids, unpacked, strict=True)
        ]
        ids_F = ids if day.multi_hot else [ids[0][:, f : f + 1] for f in range(ids[0].shape[1])]
        lines_N = np.arange(start + 1, stop + 1)
        problems: dict[int, BadLine] = {}

        def bad(wrong_N: np.ndarray, reason: str, problem: str) -> None:
            for row in np.flatnonzero(wrong_N).tolist():
                problems.setdefault(row, BadLine(start + row + 1, reason, problem))

        bad(~np.isin(labels_N, (0, 1)), "label not 0 or 1", "the label is neither 0 nor 1")
        bad(np.any(~np.isfinite(dense_NI), axis=1), "dense value not finite", "a dense value is not a finite number")
        bad(np.any(np.abs(dense_NI) > _LARGEST, axis=1), "too large", f"a dense value is above {_LARGEST:.0f}")
        for feature, ids_NK in zip(self.sparse, ids_F, strict=True):
            if ids_NK.dtype.kind == "i":
                bad(np.any(ids_NK < 0, axis=1), "negative id", f"an id of {feature.name} is negative")
        good_N = np.ones(len(labels_N), dtype=bool)
        good_N[list(problems)] = False
        return RawPiece(
            lines_N=lines_N[good_N],
            labels_N=labels_N[good_N].astype(np.uint8),
            dense_IN=np.ascontiguousarray(dense_NI[good_N].T.astype(np.float16)),
            sparse=[_column(f, ids_NK[good_N]) for f, ids_NK in zip(self.sparse, ids_F, strict=True)],
            repaired={},
            bad=[problems[row] for row in sorted(problems)],
        )


def _column(feature: RawFeature, ids_NK: np.ndarray) -> RawColumn:
    values = ids_NK.reshape(-1).astype(feature.value_type)
    if feature.max_ids == 1:
        return RawColumn(values, present_N=np.ones(len(ids_NK), dtype=bool))
    return RawColumn(values, lengths_N=np.full(len(ids_NK), ids_NK.shape[1], dtype=np.int32))


def _unpack(array: ArrayFile, stream: IO[bytes], count: int) -> np.ndarray:
    size = count * array.shape[1] * array.dtype.itemsize
    content = stream.read(size)
    if len(content) < size:
        raise DataError(f"{array.name}: cut short")
    return np.frombuffer(content, dtype=array.dtype).reshape(count, -1)


def _skip(stream: IO[bytes], size: int) -> None:
    while size and (part := stream.read(min(size, 1 << 20))):
        size -= len(part)
