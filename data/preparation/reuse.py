"""Reuses the encoders of another store, so that ids mean the same in both, or extends them by new values."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.columns import ColumnEntry, columns_fingerprint
from dlrmctl.data.features.dense import FittedDense
from dlrmctl.data.features.encoders import AsRows, Bucketing
from dlrmctl.data.features.kept_array import KeptArray
from dlrmctl.data.files import read_array
from dlrmctl.data.formats.raw import Input, RawFeature
from dlrmctl.data.formats.table_schema import TableSchema
from dlrmctl.data.schema import RESERVED_ROWS
from dlrmctl.data.store.manifest import PREPARE_AGAIN, read_manifest

_MOST = 1 << 22  # counts in memory at a time


class ReusedEncoders:
    """The encoders of a store.

    Args:
        path: the store.
        input: the input whose features are encoded.

    Raises:
        DataError: if there is no store, or its encoders do not fit the features.
    """

    def __init__(self, path: Path, input: Input) -> None:
        self._path = path
        self._manifest = read_manifest(path)
        preparation = self._manifest.preparation
        if preparation is None:
            raise DataError(f"{path} has no vocabulary: its rows were not made from raw values")
        self._columns = {column.name: column for column in preparation.columns}
        theirs, ours = ((schema.rule if schema else None) for schema in (preparation.table_schema, input.table_schema))
        if theirs != ours:
            raise DataError(
                f"{path}: its values are identified by another rule than those of {input.format}", PREPARE_AGAIN
            )
        self._values = ours
        _check_made(path, preparation.table_schema, input.table_schema)
        for feature in input.sparse:
            self._check(feature)

    def fingerprint(self) -> str:
        """Depends on everything that determines the rows of values."""
        return columns_fingerprint(self._columns.values(), self._values)

    def identity(self) -> str:
        """Depends on everything that is read from the store."""
        return self.fingerprint()

    def take(self, feature: RawFeature, largest: int, store: Path) -> ColumnEntry:
        """Returns the encoder of a feature; a vocabulary with its texts is copied into the new store.

        Args:
            feature: the feature of the input.
            largest: its largest value, if its values are rows.
            store: directory of the new store.

        Raises:
            DataError: if a value is outside its table, or the vocabulary was changed.
        """
        column = replace(self._columns[feature.name], counts=None, rare=None, unseen=None)
        encoder = column.encoder
        if isinstance(encoder, AsRows) and largest >= encoder.rows:
            raise DataError(f"{feature.name}: row {largest:,} is outside the {encoder.rows:,} of {self._path}")
        for kept in column.files:
            kept.copy(self._path, store)
        return column

    def _check(self, feature: RawFeature) -> None:
        entry = self._columns.get(feature.name)
        if entry is None:
            raise DataError(f"{self._path} has no feature {feature.name!r}, only {', '.join(self._columns)}")
        if feature.as_rows != isinstance(entry.encoder, AsRows):
            kinds = ("values", "rows of tables") if feature.as_rows else ("rows of tables", "values")
            raise DataError(f"{self._path}: {feature.name} holds {kinds[0]} there, and {kinds[1]} here")
        if (feature.buckets is not None) != isinstance(entry.encoder, Bucketing):
            kinds = ("values", "buckets") if feature.buckets is not None else ("buckets", "values")
            raise DataError(f"{self._path}: {feature.name} holds {kinds[0]} there, and {kinds[1]} here")
        here = np.dtype(feature.value_type)
        if isinstance(entry.encoder, KeptArray) and entry.encoder.dtype != here:
            widths = 8 * entry.encoder.dtype.itemsize, 8 * here.itemsize
            raise DataError(f"{self._path}: {feature.name} has values of {widths[0]} bits there, of {widths[1]} here")


class ExtendedEncoders(ReusedEncoders):
    """The encoders of a store that are extended by new values.

    Args:
        path: the store.
        input: the input whose features are encoded; they must be all of the store's, and transformed as there.

    Raises:
        DataError: as `ReusedEncoders`; or if the features are not the same.
    """

    def __init__(self, path: Path, input: Input) -> None:
        super().__init__(path, input)
        preparation, names = self._manifest.preparation, [feature.name for feature in input.sparse]
        assert preparation is not None
        if (missing := [name for name in self._columns if name not in names]) or names != list(self._columns):
            what = f"feature {missing[0]} is missing here" if missing else "its features have another order"
            raise DataError(f"{path} cannot be extended: {what}", f"its sparse features are {', '.join(self._columns)}")
        if self._manifest.schema.dense != tuple(input.dense):
            raise DataError(
                f"{path} cannot be extended: it has other dense features",
                f"they are {', '.join(self._manifest.schema.dense) or 'none'}, not {', '.join(input.dense) or 'none'}",
            )
        theirs, ours = preparation.dense_transform, input.dense_transform
        if (theirs.formula, theirs.columns) != (ours.formula, ours.columns):
            differ = [name for name, made in ours.columns.items() if theirs.columns.get(name) != made]
            which = f" of {differ[0]}" if differ else ""
            raise DataError(
                f"{path} cannot be extended: its dense values{which} were transformed differently",
                "transform them as there",
            )

    @property
    def dense(self) -> tuple[FittedDense, ...]:
        """The statistics of the store, which are those of the first one."""
        return self._manifest.dense

    def identity(self) -> str:
        described = [column.to_dict() for column in self._columns.values()]
        return f"{self.fingerprint()}:{hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]}"

    def column(self, name: str) -> ColumnEntry:
        """The column of the store."""
        return self._columns[name]

    def take(self, feature: RawFeature, largest: int, store: Path) -> ColumnEntry:
        """Returns the encoder of a feature without a vocabulary, with more rows if values are rows."""
        column = replace(self._columns[feature.name], counts=None)
        if isinstance(column.encoder, AsRows):
            return replace(column, encoder=AsRows(max(column.encoder.rows, largest + 1)))
        return column

    def copy(self, kept: KeptArray, file: Path) -> None:
        """Copies an array of a column to a new file.

        Raises:
            DataError: if it was changed, or cannot be written.
        """
        kept.copy_to(self._path, file)

    def pieces(self, kept: KeptArray, most: int) -> Iterator[np.ndarray]:
        """Yields an array of a column, in pieces of at most `most` values.

        Raises:
            DataError: if it was changed.
        """
        kept.check(self._path)
        width = kept.dtype.itemsize
        for start in range(0, kept.num_values, most):
            yield read_array(self._path / kept.file, kept.dtype, min(most, kept.num_values - start), start * width)

    def vocabulary(self, name: str, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the values of a vocabulary in the order of their rows, and their counts (int64), in pieces.

        Raises:
            DataError: if a file was changed.
        """
        column = self._columns[name]
        assert isinstance(column.encoder, KeptArray)
        counts = column.counts
        if counts is not None:
            counts.check(self._path)
        place = RESERVED_ROWS
        for values in self.pieces(column.encoder, most):
            counted = np.zeros(len(values), np.int64)
            if counts is not None:
                at = place * counts.dtype.itemsize
                counted = read_array(self._path / counts.file, counts.dtype, len(values), at).astype(np.int64)
            yield values, counted
            place += len(values)

    def unseen(self, name: str, start: int, count: int) -> np.ndarray:
        """Returns for how many stores some values did not occur, int64; 0 if that was not counted."""
        kept = self._columns[name].unseen
        if kept is None:
            return np.zeros(count, np.int64)
        if start == 0:
            kept.check(self._path)
        width = kept.dtype.itemsize
        return read_array(self._path / kept.file, kept.dtype, count, start * width).astype(np.int64)

    def reused(self, name: str) -> np.ndarray:
        """Returns the rows that belonged to other values in earlier stores."""
        kept = self._columns[name].reused
        return np.empty(0, np.uint64) if kept is None else kept.load(self._path)

    def texts_between(self, name: str, start: int, stop: int) -> tuple[np.ndarray, bytes]:
        """Returns the lengths and the content of the texts of a range of values; shorter if there are fewer."""
        texts = self._columns[name].texts
        if texts is None or texts.arrays is None:
            return np.empty(0, np.int64), b""
        content, ends = texts.arrays
        stop, first = min(stop, ends.num_values), max(start - 1, 0)
        if stop <= start:
            return np.empty(0, np.int64), b""
        found = read_array(self._path / ends.file, ends.dtype, stop - first, first * ends.dtype.itemsize)
        bounds = found.astype(np.int64) if start else np.concatenate(([0], found.astype(np.int64)))
        text = read_array(self._path / content.file, content.dtype, int(bounds[-1] - bounds[0]), int(bounds[0]))
        return np.diff(bounds), text.tobytes()

    def rare(self, name: str, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the values of a vocabulary without a row, ascending, and their counts (int64), in pieces; nothing if
        they were not kept.

        Raises:
            DataError: if a file was changed.
        """
        if (kept := self._columns[name].rare) is not None:
            for values, counts in zip(self.pieces(kept[0], most), self.pieces(kept[1], most), strict=True):
                yield values, counts.astype(np.int64)

    def total(self, name: str) -> int:
        """The sum of all counts of a vocabulary."""
        counts = self._columns[name].counts
        return 0 if counts is None else sum(int(piece.sum(dtype=np.uint64)) for piece in self.pieces(counts, _MOST))

    def reserved_counts(self, name: str) -> tuple[int, int]:
        """The counts of missing values, and of values without a row that were not kept."""
        counts = self._columns[name].counts
        if counts is None:
            return 0, 0
        missing, rare = next(self.pieces(counts, RESERVED_ROWS)).tolist()
        return missing, max(0, rare - sum(int(number.sum()) for _, number in self.rare(name, _MOST)))

    def counted(self, name: str, row_type: np.dtype, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields rows that occur, ascending, and their counts (int64), in pieces; nothing if they were not counted."""
        counts, place = self._columns[name].counts, 0
        for piece in self.pieces(counts, most) if counts else ():
            rows = np.flatnonzero(piece)
            yield (rows + place).astype(row_type), piece[rows].astype(np.int64)
            place += len(piece)

    def has_rare(self) -> bool:
        """Whether values without a row were kept for all vocabularies."""
        return all(c.rare is not None for c in self._columns.values() if isinstance(c.encoder, KeptArray))


def _check_made(path: Path, theirs: TableSchema | None, ours: TableSchema | None) -> None:
    """Checks that columns are made of the same others, and that their values are identified by the same type.

    A plain column may have another name in other files.
    """
    if theirs is None or ours is None:
        return
    before = {column.name: column for column in theirs.sparse}
    for column in ours.sparse:
        if (other := before.get(column.name)) is None:
            continue
        made = column.part is not None or column.buckets is not None
        for key in ("type", "part", "buckets", "cross", "table", *(("source",) if made else ())):
            there, here = getattr(other, key), getattr(column, key)
            if there != here:
                named = f"{'column' if key == 'source' else key} = "
                raise DataError(
                    f"{path}: {column.name} has {named}{_written(there)} there, and {named}{_written(here)} here",
                    "its ids would mean something else: make the column as there, or give it another name",
                )


def _written(value: object) -> str:
    return "none" if value is None else json.dumps(value)
