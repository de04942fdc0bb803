"""A user's own tables as the input of a preparation: text or Parquet files, one after another."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors
from dlrmctl.data.formats.raw import BadLine, KeptColumns, Position, RawFeature, RawPiece, SourceFile, Task
from dlrmctl.data.formats.sources import expand_sources
from dlrmctl.data.formats.table_parquet import check_types, count_rows, is_parquet, read_rows, read_types
from dlrmctl.data.formats.table_schema import TableSchema, nearest
from dlrmctl.data.formats.table_text import PIECE_BYTES, Dialect, Place, Records, read_header, read_records, to_frame
from dlrmctl.data.formats.table_values import to_piece
from dlrmctl.data.formats.texts import HEAD_BYTES, STANDARD_INPUT, is_tar, is_zip, refuse_others
from dlrmctl.data.formats.transforms import TRANSFORMS, ColumnTransform, DenseTransform

PIECE_ROWS = 1 << 16
READER_VERSION = 1  # another one reads other examples out of the same files
_TAB_SUFFIXES = (".tsv", ".tab", ".tsv.gz", ".tab.gz")
_SHOWN_COLUMNS = 12


@dataclass(frozen=True)
class _File:
    """A source: its path, and how many rows (Parquet) or which header (text) it has."""

    path: Path
    dialect: Dialect
    rows: int = 0
    header: tuple[str, ...] = ()


class TableInput:
    """Text or Parquet files of one schema.

    Args:
        schema: what the columns are.
        sources: in the order of time; what `expand_sources` takes.
        labelled: False for files without labels: the label column need not be there, and is not read.
        keep: columns that pieces hold as they are, besides what the schema makes of them.
        piece_bytes: of text in a piece.
        piece_rows: of Parquet in a piece.

    Raises:
        DataError: if there is no source, one cannot be read, or its columns are not those of the schema.
    """

    def __init__(
        self,
        schema: TableSchema,
        sources: Sequence[str | Path],
        *,
        labelled: bool = True,
        keep: Sequence[str] = (),
        piece_bytes: int = PIECE_BYTES,
        piece_rows: int = PIECE_ROWS,
    ) -> None:
        self.table_schema, self._labelled = schema, labelled
        self._piece_bytes, self._piece_rows = piece_bytes, piece_rows
        self._paths = paths = [check_file(name) for name in expand_sources(sources)]
        self.sources = tuple(SourceFile(path.name, path.stat().st_size) for path in paths)
        parquet = [is_parquet(path) for path in paths]
        if any(parquet) and not all(parquet):
            raise DataError(f"{paths[parquet.index(False)]}: not a Parquet file, as {paths[parquet.index(True)]} is")
        self.format = "parquet" if parquet[0] else "csv"
        self._names = schema.columns[0 if labelled else 1 :]
        self._kept: dict[str, pl.DataType] = dict.fromkeys(keep, pl.String())
        self._wanted = [*self._names, *(name for name in keep if name not in self._names)]
        self._files = [self._parquet_file(path) if parquet[0] else self._text_file(path) for path in paths]
        self.label = schema.label
        self.dense = tuple(column.name for column in schema.dense)
        self.sparse = tuple(RawFeature(column.name, "<u8", column.max_ids) for column in schema.sparse)

    @property
    def dense_transform(self) -> DenseTransform:
        """What was done to each column, and what a missing value becomes where that is the same for all."""
        columns = {
            column.name: ColumnTransform(TRANSFORMS[column.transform].formula, column.missing_value)
            for column in self.table_schema.dense
        }
        values = {column.missing_value for column in self.table_schema.dense}
        return DenseTransform(values.pop() if len(values) == 1 else None, columns=columns)

    def identity(self) -> Mapping[str, Any]:
        """The schema; names, sizes and times of change of the sources; and how they are read."""
        files = [
            {"name": str(file.path), "bytes": source.num_bytes, "mtime_ns": file.path.stat().st_mtime_ns}
            for file, source in zip(self._files, self.sources, strict=True)
        ]
        how = {"reader": READER_VERSION, "piece_bytes": self._piece_bytes, "piece_rows": self._piece_rows}
        schema = {**self.table_schema.to_dict(), "labelled": self._labelled}
        return {"format": self.format, **how, "schema": schema, "sources": files}

    def tasks(self, after: Position | None = None) -> Iterator[Task]:
        """The pieces from a position on.

        Raises:
            DataError: if a source cannot be read.
        """
        first = after["source"] if after else 0
        for number in range(first, len(self._files)):
            before = sum(source.num_bytes for source in self.sources[:number])
            place = after["place"] if after and number == first else None
            make = self._parquet_tasks if self.format == "parquet" else self._text_tasks
            yield from make(number, before, place)

    def _text_tasks(self, number: int, before: int, place: Mapping[str, Any] | None) -> Iterator[Task]:
        file = self._files[number]
        start = Place(**place) if place else None
        for records in read_records(file.path, file.dialect.quote, start, self._piece_bytes):
            position = {"source": number, "place": asdict(records.after)}
            yield Task(number, position, before + records.position, partial(self._read_text, file, records))

    def _read_text(self, file: _File, records: Records) -> RawPiece:
        frame, lines_N, bad = to_frame(records, file.header, self._wanted, file.dialect)
        return self._piece(frame, lines_N, bad)

    def _piece(self, frame: pl.DataFrame, lines_N: np.ndarray, bad: Sequence[BadLine] = ()) -> RawPiece:
        piece = to_piece(self.table_schema, frame, lines_N, bad, labelled=self._labelled)
        if not self._kept:
            return piece
        kept = frame.select(pl.col(name).cast(kind) for name, kind in self._kept.items())
        return replace(piece, kept=KeptColumns(lines_N, kept))

    @property
    def kept_types(self) -> Mapping[str, pl.DataType]:
        """The columns that pieces keep, and their types, the same in every piece."""
        return self._kept

    def _parquet_tasks(self, number: int, before: int, place: Mapping[str, Any] | None) -> Iterator[Task]:
        file, size = self._files[number], self.sources[number].num_bytes
        for start in range(place["row"] if place else 0, file.rows, self._piece_rows):
            stop = min(start + self._piece_rows, file.rows)
            position = {"source": number, "place": {"row": stop}}
            read = partial(self._read_parquet, file.path, start, stop - start)
            yield Task(number, position, before + size * stop // file.rows, read)

    def _read_parquet(self, path: Path, start: int, count: int) -> RawPiece:
        frame, lines_N = read_rows(path, self._wanted, start, count), np.arange(start + 1, start + count + 1)
        return self._piece(frame, lines_N)

    def _text_file(self, path: Path) -> _File:
        dialect = self._dialect(path)
        with io_errors(path, "read"), path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        refuse_others(str(path), head)
        if is_zip(head) or is_tar(head):
            raise DataError(f"{path}: an archive, expected a table", "unpack it first; .gz is read as it is")
        header = read_header(path, dialect)
        other = next((c for c in ",;\t|" if c in header[0]), None) if len(header) == 1 else None
        if other and header[0] not in self._names:
            raise DataError(
                f"{path}: the first line has one column, {header[0][:60]!r}",
                f"if {other!r} separates columns, say separator = {json.dumps(other)} in {self.table_schema.name}",
            )
        self._check_columns(path, header)
        return _File(path, dialect, header=tuple(header))

    def _dialect(self, path: Path) -> Dialect:
        by_name = "\t" if path.name.lower().endswith(_TAB_SUFFIXES) else ","
        return Dialect(self.table_schema.separator or by_name, self.table_schema.quote)

    def _parquet_file(self, path: Path) -> _File:
        types = read_types(path)
        self._check_columns(path, list(types))
        check_types(path, types, self.table_schema, labelled=self._labelled)
        self._keep_types(path, types)
        return _File(path, self._dialect(path), rows=count_rows(path))

    def _keep_types(self, path: Path, types: Mapping[str, pl.DataType]) -> None:
        """Columns of categories are kept as strings: every file has its own."""
        plain = {name: types[name] for name in self._kept}
        for name, kind in plain.items():
            if isinstance(kind, pl.Categorical | pl.Enum):
                plain[name] = pl.String()
        if path != self._paths[0]:
            for name, kind in plain.items():
                if kind != self._kept[name]:
                    raise DataError(
                        f"{path}: column {name!r} is of type {kind}, but {self._kept[name]} in {self._paths[0]}",
                        "a column that is kept has one type in all files",
                    )
        self._kept = plain

    def _check_columns(self, path: Path, header: list[str]) -> None:
        for name in self._wanted:
            if header.count(name) > 1:
                raise DataError(f"{path}: two columns are named {name!r}", "give every column a name of its own")
            if name not in header:
                shown = ", ".join(header[:_SHOWN_COLUMNS]) + (", ..." if len(header) > _SHOWN_COLUMNS else "")
                hint = nearest(name, header)
                named = f", which {self.table_schema.name} names" if name in self._names else " to keep"
                raise DataError(
                    f"{path}: no column {name!r}{named}",
                    f"{hint} " * bool(hint) + f"the columns are {shown}",
                    missing_column=name,
                )


def check_file(name: str) -> Path:
    """The path of a source.

    Raises:
        DataError: if it is not a file with something in it.
    """
    path = Path(name)
    if name == STANDARD_INPUT:
        raise DataError("tables cannot be read from standard input", "name files")
    with io_errors(path, "read"):
        if path.is_dir():
            raise DataError(f"{path}: a directory, expected a file", f"name the files inside it: '{path}/*'")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty")
    return path
