"""A user's own tables as the input of a preparation: CSV, JSON lines, Parquet or Arrow files."""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors
from dlrmctl.data.formats.raw import BadLine, KeptColumns, Position, RawFeature, RawPiece, SourceFile, Task
from dlrmctl.data.formats.sources import expand_sources
from dlrmctl.data.formats.table_columnar import (
    MAGICS,
    check_key_type,
    check_texts,
    check_types,
    columnar_format,
    count_rows,
    read_rows,
    read_types,
)
from dlrmctl.data.formats.table_json import SUFFIXES as JSON_SUFFIXES
from dlrmctl.data.formats.table_json import read_columns, read_objects
from dlrmctl.data.formats.table_schema import SparseColumn, TableSchema, nearest
from dlrmctl.data.formats.table_text import (
    PIECE_BYTES,
    Dialect,
    Place,
    TextPiece,
    read_header,
    read_pieces,
    read_records,
    to_frame,
)
from dlrmctl.data.formats.table_values import KeyColumn, to_piece
from dlrmctl.data.formats.texts import HEAD_BYTES, STANDARD_INPUT, is_regular, is_tar, is_zip, refuse_others
from dlrmctl.data.formats.transforms import ColumnTransform, DenseTransform
from dlrmctl.data.remote.files import RemoteFile, file_identity, locate
from dlrmctl.data.remote.urls import is_remote
from dlrmctl.data.splits import Split
from dlrmctl.data.times import doubt_of, order_kind, order_kind_of_texts

PIECE_ROWS = 1 << 16
READER_VERSION = 2  # changes if the same files give other examples
_TAB_SUFFIXES = (".tsv", ".tab", ".tsv.gz", ".tab.gz")
_SHOWN_COLUMNS = 12
_FIRST_BYTES, _FIRST_ROWS = 1 << 18, 1 << 12  # of each file, to recognize times
_KINDS = {"csv": "a text table", "jsonl": "JSON lines", "parquet": "a Parquet file", "ipc": "an Arrow file"}


@dataclass(frozen=True)
class _File:
    """A source: its path and format, and its number of rows (Parquet, Arrow) or header (CSV)."""

    path: Path | RemoteFile
    format: str
    dialect: Dialect
    rows: int = 0
    header: tuple[str, ...] = ()


class TableInput:
    """Files of one schema and one format: "csv", "jsonl", "parquet" or "ipc" (Arrow).

    Args:
        schema: schema of the columns.
        sources: in the order of time, as for `expand_sources`.
        labelled: False for files without labels: the label column may be missing, and is not read.
        keep: columns that pieces keep unchanged, in addition to the examples.
        split: if it depends on a column, pieces have the times or groups in it as their keys.
        trained_on: format of the training data of the model that scores the rows.
        piece_bytes: bytes of text in a piece.
        piece_rows: rows of Parquet and Arrow in a piece.

    Raises:
        DataError: if there is no source, one cannot be read, or its columns do not match the schema.
    """

    def __init__(
        self,
        schema: TableSchema,
        sources: Sequence[str | Path],
        *,
        labelled: bool = True,
        keep: Sequence[str] = (),
        split: Split | None = None,
        trained_on: str | None = None,
        piece_bytes: int = PIECE_BYTES,
        piece_rows: int = PIECE_ROWS,
    ) -> None:
        self.table_schema, self._labelled, self._trained_on = schema, labelled, trained_on
        self._piece_bytes, self._piece_rows = piece_bytes, piece_rows
        self._raw = False
        self._paths = paths = [check_file(name) for name in expand_sources(sources)]
        self.sources = tuple(SourceFile(path.name, path.stat().st_size) for path in paths)
        self._names = schema.columns[0 if labelled else 1 :]
        if labelled:
            self._names = tuple(dict.fromkeys((*self._names, *schema.of_examples)))
        self.weight, self.group = (schema.weight, schema.group) if labelled else (None, None)
        self._key = split.column if split else None
        if self._key is not None and self._key not in self._names:
            self._names = (*self._names, self._key)
        self._kept: dict[str, pl.DataType] = dict.fromkeys(keep, pl.String())
        self._wanted = [*self._names, *(name for name in keep if name not in self._names)]
        self._files = [self._open(path) for path in paths]
        self.format = self._files[0].format
        for file in self._files:
            if file.format != self.format:
                raise DataError(f"{file.path}: {_KINDS[file.format]}, but {paths[0]} is {_KINDS[self.format]}")
        timed = set(schema.moments) | ({str(self._key)} if split and split.by == "time" else set())
        first = [self._first_rows(file, sorted(timed)) for file in self._files] if timed else []
        self._by = KeyColumn(self._key, self._kind_of_keys(split, first)) if split and self._key is not None else None
        self.keyed_by = self._by.kind if self._by else None
        self.doubts = self._check_units(first)
        self.label = schema.label
        self.dense = tuple(column.name for column in schema.dense)
        self.dense_type = np.dtype(np.float32)
        self.sparse = tuple(_raw_feature(column, schema.shared) for column in schema.sparse)

    @property
    def dense_transform(self) -> DenseTransform:
        """What was done to each column, and the stand-in for a missing value where it is the same for all."""
        columns = {
            column.name: ColumnTransform(column.formula, column.missing_value) for column in self.table_schema.dense
        }
        values = {column.missing_value for column in self.table_schema.dense}
        return DenseTransform(values.pop() if len(values) == 1 else None, columns=columns)

    def identity(self) -> Mapping[str, Any]:
        """The schema; names, sizes and modification times of the sources; and how they are read."""
        files = [{"name": str(file.path), **file_identity(file.path)} for file in self._files]
        how = {"reader": READER_VERSION, "piece_bytes": self._piece_bytes, "piece_rows": self._piece_rows}
        schema = {**self.table_schema.to_dict(), "labelled": self._labelled}
        return {"format": self.format, **how, "schema": schema, "sources": files}

    def with_raw(self) -> "TableInput | None":
        """Returns the same input, whose pieces keep the columns that it reads."""
        again = copy(self)
        if self.format in MAGICS:
            again._kept = dict.fromkeys(self._names, pl.String())
            try:
                for file in self._files:
                    again._keep_types(file.path, read_types(file.path, file.format))
            except DataError:  # a column has several types
                return None
            return again
        lists = self.table_schema.lists if self.format == "jsonl" else ()
        again._raw = True
        again._kept = {name: pl.List(pl.String()) if name in lists else pl.String() for name in self._names}
        return again

    def tasks(self, after: Position | None = None) -> Iterator[Task]:
        """Yields the pieces from a position on.

        Raises:
            DataError: if a source cannot be read.
        """
        first = after["source"] if after else 0
        for number in range(first, len(self._files)):
            before = sum(source.num_bytes for source in self.sources[:number])
            place = after["place"] if after and number == first else None
            make = self._columnar_tasks if self.format in MAGICS else self._text_tasks
            yield from make(number, before, place)

    def _text_tasks(self, number: int, before: int, place: Mapping[str, Any] | None) -> Iterator[Task]:
        file = self._files[number]
        start = Place(**place) if place else None
        for piece in read_pieces(file.path, file.dialect.quote, start, self._piece_bytes):
            position = {"source": number, "place": asdict(piece.after)}
            elsewhere = None
            if isinstance(file.path, Path) and piece.offset is not None:
                there = replace(piece, content=b"")
                elsewhere = partial(self._read_text_at, file, there, len(piece.content))
            read = partial(self._read_text, file, piece)
            yield Task(number, position, before + piece.position, read, read_elsewhere=elsewhere)

    def _read_text_at(self, file: _File, piece: TextPiece, size: int) -> RawPiece:
        """As `_read_text`, for a piece whose content is still in the file."""
        assert piece.offset is not None
        with io_errors(file.path, "read"), file.path.open("rb") as stream:
            stream.seek(piece.offset)
            content = stream.read(size)
        if len(content) < size:
            raise DataError(f"{file.path}: the file has changed while it was read", "start again")
        return self._read_text(file, replace(piece, content=content))

    def _read_text(self, file: _File, piece: TextPiece) -> RawPiece:
        records = piece.records(file.dialect.quote)
        if file.format == "csv":
            frame, lines_N, bad = to_frame(records, file.header, self._wanted, file.dialect)
            return self._piece(frame, KeptColumns(lines_N, frame), lines_N, bad)
        lists, keep = self.table_schema.lists, () if self._raw else list(self._kept)
        wanted = {name: name in lists for name in self._names}
        frame, lines_N, bad, kept = read_columns(records, wanted, self.table_schema.list_separator, keep)
        return self._piece(frame, KeptColumns(lines_N, frame) if self._raw else kept, lines_N, bad)

    def _piece(
        self, frame: pl.DataFrame, kept: KeptColumns, lines_N: np.ndarray, bad: Sequence[BadLine] = ()
    ) -> RawPiece:
        piece = to_piece(self.table_schema, frame, lines_N, bad, labelled=self._labelled, by=self._by)
        if not self._kept:
            return piece
        columns = kept.frame.select(pl.col(name).cast(kind) for name, kind in self._kept.items())
        return replace(piece, kept=KeptColumns(kept.lines, columns))

    @property
    def kept_types(self) -> Mapping[str, pl.DataType]:
        """Returns the columns that pieces keep, and their types, the same in every piece."""
        return self._kept

    def _columnar_tasks(self, number: int, before: int, place: Mapping[str, Any] | None) -> Iterator[Task]:
        file, size = self._files[number], self.sources[number].num_bytes
        for start in range(place["row"] if place else 0, file.rows, self._piece_rows):
            stop = min(start + self._piece_rows, file.rows)
            position = {"source": number, "place": {"row": stop}}
            read = partial(self._read_columnar, file, start, stop - start)
            yield Task(number, position, before + size * stop // file.rows, read)

    def _read_columnar(self, file: _File, start: int, count: int) -> RawPiece:
        frame = read_rows(file.path, file.format, self._wanted, start, count)
        lines_N = np.arange(start + 1, start + count + 1)
        return self._piece(frame, KeptColumns(lines_N, frame), lines_N)

    def _open(self, path: Path | RemoteFile) -> _File:
        with io_errors(path, "read"), path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        format = columnar_format(path, head)
        if format is not None:
            types = read_types(path, format)
            self._check_columns(path, list(types))
            check_types(path, types, self.table_schema, labelled=self._labelled, format=format)
            if self._trained_on == "csv":
                check_texts(path, types, self.table_schema)
            self._keep_types(path, types)
            return _File(path, format, self._dialect(path), rows=count_rows(path, format))
        refuse_others(str(path), head)
        if is_zip(head) or is_tar(head):
            raise DataError(f"{path}: an archive, expected a table", "unpack it first; .gz is read as it is")
        if path.name.lower().endswith(JSON_SUFFIXES) or head.startswith(b"{"):
            self._check_keys(path)
            return _File(path, "jsonl", Dialect(separator=",", quote=""))
        return self._csv_file(path)

    def _kind_of_keys(self, split: Split, first: Sequence[pl.DataFrame]) -> Literal["time", "number", "group"]:
        """Returns what the column of a split holds: groups, or times or numbers, by the first rows of each file.

        Raises:
            DataError: if it has lists, or must have times and has neither times nor numbers.
        """
        assert self._key is not None
        lists = self.table_schema.lists
        file = self._files[0]
        kinds: list[pl.DataType] = [pl.String()]
        if file.format in MAGICS:
            kinds = [read_types(path, file.format)[self._key] for path in self._paths]
            for path, found in zip(self._paths, kinds, strict=True):
                check_key_type(path, self._key, found, split.by)
        if self._key in lists:
            raise DataError(f"{file.path}: column {self._key!r} has lists, rows are split by single values")
        if split.by == "group":
            return "group"
        if self.table_schema.time(self._key).epoch is not None:
            return "time"
        if file.format in MAGICS and len({order_kind(kind) for kind in kinds}) > 1:
            raise DataError(f"column {self._key!r} has times in some files and numbers in others", "use one type")
        texts = (frame[self._key].cast(pl.String) for frame in first)
        orders = {order_kind(kinds[0])} if order_kind(kinds[0]) else {order_kind_of_texts(some) for some in texts}
        orders -= {None}
        if len(orders) > 1:
            raise DataError(f"column {self._key!r} has times in some files and numbers in others", "use one form")
        kind = next(iter(orders), None)
        if kind is None:
            raise DataError(
                f"{file.path}: column {self._key!r} has neither times nor numbers in its first rows",
                "times are written as 2026-01-31 or 2026-01-31T18:30:00",
            )
        return kind

    def _check_units(self, first: Sequence[pl.DataFrame]) -> list[str]:
        """Returns warnings of columns whose times probably have another unit than the declared one.

        Each column is told once, for the first file in which it is in doubt.

        Args:
            first: the first rows of each file.

        Raises:
            DataError: if a column has numbers that are no times in its unit, or no unit.
        """
        names = list(self.table_schema.moments)
        if self.keyed_by == "time" and self._key not in names:
            names.append(str(self._key))
        doubts: dict[str, str] = {}
        for number, (file, rows) in enumerate(zip(self._files, first, strict=bool(names))):
            for name in names:
                time = self.table_schema.time(name)
                epoch, doubt = time.epoch, doubt_of(rows[name], time.epoch, time.missing)
                if doubt is None:
                    continue
                said = f"{name} has numbers such as {doubt.shown}"
                remedy = f"set epoch = {doubt.unit!r} under [columns.{name}] in {self.table_schema.name}"
                if number and name not in doubts:
                    remedy = f"give them in the unit of {self._files[0].path.name}"
                if not self._labelled or self._trained_on is not None:
                    remedy = f"give them in {epoch}, as in the training data"
                if doubt.unusable:
                    what = " without a unit" if epoch is None else ""
                    raise DataError(f"{file.path}: {said}{what}: probably {doubt.unit} since 1970", remedy)
                where = f"{file.path}: " if number else ""
                doubts.setdefault(name, f"{where}{said}: probably {doubt.unit} since 1970; {remedy}")
        return list(doubts.values())

    def _first_rows(self, file: _File, names: list[str]) -> pl.DataFrame:
        """Returns columns of the first rows of a file, as texts where the file has texts."""
        if file.format in MAGICS:
            return read_rows(file.path, file.format, names, 0, min(_FIRST_ROWS, self._piece_rows))
        piece_bytes = min(_FIRST_BYTES, self._piece_bytes)
        records = next(read_records(file.path, file.dialect.quote, piece_bytes=piece_bytes), None)
        if records is None:
            return pl.DataFrame(schema=dict.fromkeys(names, pl.String))
        if file.format == "csv":
            return to_frame(records, file.header, names, file.dialect)[0]
        return read_columns(records, dict.fromkeys(names, False), ",")[0]

    def _check_keys(self, path: Path | RemoteFile) -> None:
        """Checks the keys of the first piece. A key may be missing in all objects, unless they have a similar one.

        Raises:
            DataError: for such a key, for a label or a column to keep that no object has, or if all keys are missing.
        """
        wanted = list(dict.fromkeys((*self._wanted, *self.table_schema.id)))
        for piece_bytes in (min(_FIRST_BYTES, self._piece_bytes), self._piece_bytes):
            first = next(read_records(path, "", piece_bytes=piece_bytes), None)
            keys = list({key: None for fields in read_objects(first)[0] for key in fields} if first else {})
            absent = [name for name in wanted if name not in keys]
            if not absent:
                return
        others = [key for key in keys if key not in wanted]
        schema = self.table_schema
        always = [schema.label, self._key, *schema.of_examples, *schema.id, *self._kept]
        for name in absent if keys else []:
            if name in always or nearest(name, others) or len(absent) == len(wanted):
                raise self._no_column(path, name, keys)

    def _csv_file(self, path: Path | RemoteFile) -> _File:
        dialect = self._dialect(path)
        header = read_header(path, dialect)
        other = next((c for c in ",;\t|" if c in header[0]), None) if len(header) == 1 else None
        if other and header[0] not in self._names:
            raise DataError(
                f"{path}: the first line has one column, {header[0][:60]!r}",
                f"if {other!r} separates columns, set separator = {json.dumps(other)} in {self.table_schema.name}",
            )
        self._check_columns(path, header)
        return _File(path, "csv", dialect, header=tuple(header))

    def _dialect(self, path: Path | RemoteFile) -> Dialect:
        by_name = "\t" if path.name.lower().endswith(_TAB_SUFFIXES) else ","
        return Dialect(self.table_schema.separator or by_name, self.table_schema.quote)

    def _keep_types(self, path: Path | RemoteFile, types: Mapping[str, pl.DataType]) -> None:
        """Columns of categories are kept as strings, since every file has its own categories."""
        plain = {name: types[name] for name in self._kept}
        for name, kind in plain.items():
            if isinstance(kind, pl.Categorical | pl.Enum):
                plain[name] = pl.String()
        if path != self._paths[0]:
            for name, kind in plain.items():
                if kind != self._kept[name]:
                    raise DataError(
                        f"{path}: column {name!r} is of type {kind}, but {self._kept[name]} in {self._paths[0]}",
                        "a column that is kept must have one type in all files",
                    )
        self._kept = plain

    def _check_columns(self, path: Path | RemoteFile, header: list[str]) -> None:
        for name in (*self._wanted, *self.table_schema.id):
            if header.count(name) > 1:
                raise DataError(f"{path}: two columns are named {name!r}", "give every column its own name")
            if name not in header:
                raise self._no_column(path, name, header)

    def _no_column(self, path: Path | RemoteFile, name: str, header: list[str]) -> DataError:
        shown = ", ".join(header[:_SHOWN_COLUMNS]) + (", ..." if len(header) > _SHOWN_COLUMNS else "")
        hint = nearest(name, header)
        named = f", which {self.table_schema.name} names"
        if name not in (*self.table_schema.columns, *self.table_schema.of_examples, *self.table_schema.id):
            named = " to split by" if name == self._key else " to keep"
        return DataError(
            f"{path}: no column {name!r}{named}",
            f"{hint} " * bool(hint) + f"the columns are {shown}",
            missing_column=name,
        )


def _raw_feature(column: SparseColumn, shared: Set[str]) -> RawFeature:
    if column.buckets is not None:
        return RawFeature(column.name, "<u4", buckets=column.buckets)
    table = column.owner if column.owner in shared else None
    return RawFeature(
        column.name,
        "<u8",
        column.max_ids,
        has_texts=True,
        table=table,
        pooling=column.pooling,
        weights=column.weights,
    )


def check_file(name: str) -> Path | RemoteFile:
    """Checks the path of a source.

    Raises:
        DataError: if it is not a file, or empty, unless it is one of JSON lines: that has no rows.
    """
    path = locate(name) if is_remote(name) else Path(name)
    if name == STANDARD_INPUT:
        raise DataError("tables cannot be read from standard input", "give files")
    with io_errors(path, "read"):
        if path.is_dir():
            raise DataError(f"{path}: a directory, expected a file", f"give the files inside it: '{path}/*'")
        if isinstance(path, RemoteFile) and not path.ranges:
            raise DataError(f"{path}: the server cannot send parts of a file, which tables need", "download it first")
        if not is_regular(path):
            raise DataError(f"{path}: a pipe, expected a file: a table is read more than once", "write it to a file")
        if path.stat().st_size == 0 and not path.name.lower().endswith(JSON_SUFFIXES):
            raise DataError(f"{path}: the file is empty")
    return path
