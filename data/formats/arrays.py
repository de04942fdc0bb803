"""NumPy arrays as the input of a preparation: TorchRec's triplets of files, and MLPerf's multi-hot archives.

A triplet has NAME_dense.npy [N, I], NAME_labels.npy [N, 1] and the ids: NAME_sparse.npy [N, F], or
NAME_sparse_multi_hot.npz with an array [N, K] for each feature under the keys 0, 1, 2, ... Archives are not unpacked to
disk. N examples, I dense features, F sparse features, K ids of a feature in every example.
"""

import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors, refuse_url
from dlrmctl.data.formats.raw import (
    LABEL_NOT_BINARY,
    BadLine,
    KeptColumns,
    Position,
    RawColumn,
    RawFeature,
    RawPiece,
    SourceFile,
    Task,
)
from dlrmctl.data.formats.sources import expand_sources, natural
from dlrmctl.data.formats.streams import damage
from dlrmctl.data.formats.transforms import NONE, DenseTransform
from dlrmctl.data.remote.files import file_identity
from dlrmctl.data.schema import LARGEST_DENSE

_DENSE, _LABELS, _ONE_HOT, _MULTI_HOT = "_dense.npy", "_labels.npy", "_sparse.npy", "_sparse_multi_hot.npz"
_SUFFIXES = (_DENSE, _LABELS, _ONE_HOT, _MULTI_HOT)
_NAMES = "NAME_dense.npy, NAME_labels.npy and NAME_sparse.npy (or NAME_sparse_multi_hot.npz)"
PIECE_ROWS = 1 << 16
READER_VERSION = 1
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: its name and extra fields follow, of these lengths


@dataclass(frozen=True)
class ArrayFile:
    """An array on disk, row by row.

    Attributes:
        name: its name in messages.
        path: of the file.
        shape, dtype: of the array.
        start: offset of its first row in the file; -1 if it is packed.
        member: its name in an archive; None outside one.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    member: str | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Reads a range of rows of an array that is not packed.

        Raises:
            DataError: if the file is cut short.
        """
        row_items = int(np.prod(self.shape[1:]))
        row_bytes, count = row_items * self.dtype.itemsize, (stop - start) * row_items
        with io_errors(self.path, "read"):
            # Read, not mapped: mapped pages count as this process's memory, and a truncated file would end it.
            values = np.fromfile(self.path, self.dtype, count, offset=self.start + start * row_bytes)
        if len(values) < count:
            raise DataError(
                f"{self.name}: the file is cut short after row {start + len(values) // max(row_items, 1):,}"
            )
        return values.reshape(stop - start, *self.shape[1:])

    @contextmanager
    def unpacked(self) -> Iterator[IO[bytes]]:
        """Yields the values of a packed array in order."""
        assert self.member is not None
        with damage(str(self.path), "npz"), zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            _read_header(self.name, stream)
            yield stream


def open_npy(path: Path) -> ArrayFile:
    """Opens the array of a .npy file.

    Raises:
        DataError: if it is not an array, or has objects or column-major order.
    """
    with io_errors(path, "read"), path.open("rb") as file:
        shape, dtype = _read_header(str(path), file)
        return ArrayFile(str(path), path, shape, dtype, file.tell())


def open_npz(path: Path) -> dict[str, ArrayFile]:
    """Opens the arrays of a .npz file by their keys.

    Raises:
        DataError: if it is not a .npz file, or as `open_npy`.
    """
    arrays = {}
    with io_errors(path, "read"), damage(str(path), "npz"), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            key, name = entry.filename.removesuffix(".npy"), f"{path}, array {entry.filename.removesuffix('.npy')}"
            with archive.open(entry) as member:
                shape, dtype = _read_header(name, member)
                header = member.tell()
            start = -1
            if entry.compress_type == zipfile.ZIP_STORED:
                file.seek(entry.header_offset)
                lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                start = entry.header_offset + _LOCAL_HEADER.size + sum(lengths) + header
            arrays[key] = ArrayFile(name, path, shape, dtype, start, entry.filename)
    return arrays


def _read_header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(file)
    except ValueError as error:
        raise DataError(f"{name}: not a NumPy array: {str(error).splitlines()[0][:100]}") from error
    if dtype.hasobject or dtype.names:
        raise DataError(f"{name}: an array of objects, expected numbers")
    if by_column and len(shape) > 1 and shape[1] > 1:
        raise DataError(f"{name}: the array is in column-major order", "save it with np.ascontiguousarray(array)")
    return shape, dtype


@dataclass(frozen=True)
class Triplet:
    """The arrays of one name, with one array of ids for all features, or one for each."""

    name: str
    dense: ArrayFile
    labels: ArrayFile
    ids: tuple[ArrayFile, ...]
    multi_hot: bool

    @property
    def rows(self) -> int:
        """N."""
        return self.labels.shape[0]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Bytes of the three files."""
        return (self.dense.path, self.ids[0].path, self.labels.path)

    @property
    def hot(self) -> tuple[int, ...]:
        """K of every feature."""
        return tuple(array.shape[1] for array in self.ids) if self.multi_hot else (1,) * self.ids[0].shape[1]


def open_triplets(sources: Sequence[str | Path]) -> list[Triplet]:
    """Finds the triplets of directories (all of them, day_2 before day_10) and of given files, in order.

    Raises:
        DataError: if there is none, a part is missing, or the shapes do not fit each other.
    """
    found: dict[Path, set[str]] = {}
    for name in expand_sources(sources):
        refuse_url(name)
        path = Path(name)
        files = sorted(path.iterdir(), key=lambda file: natural(file.name)) if path.is_dir() else [path]
        known = [file for file in files if file.name.endswith(_SUFFIXES)]
        if not known:
            raise DataError(f"{path}: {'no' if path.is_dir() else 'not a'} file of a triplet", f"these are {_NAMES}")
        for file in known:
            suffix = next(suffix for suffix in _SUFFIXES if file.name.endswith(suffix))
            found.setdefault(file.with_name(file.name.removesuffix(suffix)), set()).add(suffix)
    triplets = [_open(prefix, named) for prefix, named in found.items()]
    first = triplets[0]
    for other in triplets[1:]:
        if (other.dense.shape[1], other.hot) != (first.dense.shape[1], first.hot):
            raise DataError(f"{other.name}: {_features(other)}, but {first.name} has {_features(first)}")
    return triplets


def _open(prefix: Path, named: set[str]) -> Triplet:
    named_ids = named & {_ONE_HOT, _MULTI_HOT}
    if len(named_ids) == 2:
        one, other = (prefix.name + suffix for suffix in (_ONE_HOT, _MULTI_HOT))
        raise DataError(f"{prefix.parent}: both {one} and {other} have ids", "give the files instead of the directory")
    paths = {suffix: prefix.with_name(prefix.name + suffix) for suffix in _SUFFIXES}
    ids = next(iter(named_ids)) if named_ids else _MULTI_HOT if paths[_MULTI_HOT].exists() else _ONE_HOT
    for suffix in (_DENSE, ids, _LABELS):
        if not paths[suffix].exists():
            raise DataError(f"{paths[suffix]}: no such file, which {prefix.name}{min(named)} needs", f"of {_NAMES}")
    if not named_ids and paths[_ONE_HOT].exists() and paths[_MULTI_HOT].exists():
        raise DataError(f"{prefix}: both {_ONE_HOT} and {_MULTI_HOT} are there", "give the one with the ids")
    dense, labels = open_npy(paths[_DENSE]), open_npy(paths[_LABELS])
    arrays = _features_of(paths[ids]) if ids == _MULTI_HOT else (open_npy(paths[ids]),)
    triplet = Triplet(prefix.name, dense, labels, arrays, ids == _MULTI_HOT)
    _check(triplet)
    return triplet


def _features_of(path: Path) -> tuple[ArrayFile, ...]:
    arrays = open_npz(path)
    keys = [str(f) for f in range(len(arrays))]
    if not arrays or set(arrays) != set(keys):
        shown = ", ".join(sorted(arrays, key=natural)[:5])
        raise DataError(f"{path}: the keys are {shown or 'none'}", "one array for each feature: 0, 1, 2, ...")
    return tuple(arrays[key] for key in keys)


def _check(triplet: Triplet) -> None:
    labels, rows = triplet.labels, triplet.labels.shape[0] if triplet.labels.shape else 0
    if labels.shape not in ((rows,), (rows, 1)) or labels.dtype.kind not in "biuf":
        raise DataError(f"{labels.name}: {_described(labels)}, expected numbers of shape [N, 1]")
    for array, kinds, what in (
        (triplet.dense, "iuf", "numbers"),
        *((array, "iu", "integers") for array in triplet.ids),
    ):
        if len(array.shape) != 2 or array.dtype.kind not in kinds:
            raise DataError(f"{array.name}: {_described(array)}, expected {what} of two dimensions")
        if array.shape[0] != rows:
            raise DataError(f"{array.name}: {array.shape[0]:,} rows, but {labels.name} has {rows:,}")
    if 0 in triplet.hot or not triplet.hot:
        raise DataError(f"{triplet.ids[0].name}: {_described(triplet.ids[0])}, a feature without ids")


def _described(array: ArrayFile) -> str:
    return f"{array.dtype} of shape {list(array.shape)}"


def _features(triplet: Triplet) -> str:
    hot = f", {sum(triplet.hot)} ids" if triplet.multi_hot else ""
    return f"{triplet.dense.shape[1]} dense and {len(triplet.hot)} sparse features{hot}"


class NpyInput:
    """Triplets of arrays; dense values are not transformed.

    Args:
        sources: directories (all their triplets, day_2 before day_10), or files of the triplets, in the order of time.
        as_rows: whether ids already are rows of tables; otherwise they are values that get rows like any others.
        piece_rows: rows of a piece.

    Raises:
        DataError: if there is no triplet, a part is missing, or the shapes do not fit each other.
    """

    format = "npy"
    label = "label"
    dense_type = np.dtype(np.float32)
    dense_transform = DenseTransform(None, NONE.formula)
    table_schema = None
    keyed_by = None
    weight = group = None

    def __init__(self, sources: Sequence[str | Path], *, as_rows: bool = True, piece_rows: int = PIECE_ROWS) -> None:
        self._piece_rows, self._as_rows, self._raw = piece_rows, as_rows, False
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
        """Names, sizes and modification times of all files, and how they are read."""
        files = [{"name": str(path), **file_identity(path)} for day in self._days for path in day.paths]
        how = {"reader": READER_VERSION, "piece_rows": self._piece_rows, "as_rows": self._as_rows}
        return {"format": self.format, **how, "sources": files}

    def with_raw(self) -> "NpyInput":
        """Returns the same input, whose pieces keep the numbers and ids."""
        again = copy(self)
        again._raw = True
        return again

    def tasks(self, after: Position | None = None) -> Iterator[Task]:
        """Yields the pieces from a position on.

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

        bad(~np.isin(labels_N, (0, 1)), LABEL_NOT_BINARY, "the label is neither 0 nor 1")
        bad(np.any(~np.isfinite(dense_NI), axis=1), "dense value not finite", "a dense value is not a finite number")
        bad(np.any(np.abs(dense_NI) > LARGEST_DENSE, axis=1), "too large", f"a dense value is above {LARGEST_DENSE:g}")
        for feature, ids_NK in zip(self.sparse, ids_F, strict=True):
            if ids_NK.dtype.kind == "i":
                bad(np.any(ids_NK < 0, axis=1), "negative id", f"an id of {feature.name} is negative")
        good_N = np.ones(len(labels_N), dtype=bool)
        good_N[list(problems)] = False
        return RawPiece(
            lines_N=lines_N[good_N],
            labels_N=labels_N[good_N].astype(np.uint8),
            dense_IN=np.ascontiguousarray(dense_NI[good_N].T.astype(np.float32)),
            sparse=[_column(f, ids_NK[good_N]) for f, ids_NK in zip(self.sparse, ids_F, strict=True)],
            repaired={},
            bad=[problems[row] for row in sorted(problems)],
            kept=self._kept(lines_N[good_N], labels_N[good_N], dense_NI[good_N], [ids[good_N] for ids in ids_F])
            if self._raw
            else None,
        )

    def _kept(
        self, lines_N: np.ndarray, labels_N: np.ndarray, dense_NI: np.ndarray, ids_F: Sequence[np.ndarray]
    ) -> KeptColumns:
        columns = {self.label: labels_N.astype(np.uint8), **dict(zip(self.dense, dense_NI.T, strict=True))}
        for feature, ids_NK in zip(self.sparse, ids_F, strict=True):
            columns[feature.name] = ids_NK[:, 0] if feature.max_ids == 1 else ids_NK
        frame = pl.DataFrame(columns)
        lists = [pl.col(feature.name).arr.to_list() for feature in self.sparse if feature.max_ids > 1]
        return KeptColumns(lines_N, frame.with_columns(lists))


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
