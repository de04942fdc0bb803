"""Rows in memory, as examples of a model: frames of polars, pandas and Arrow, and dictionaries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dlrmctl.data.features.encoders import Encoder
from dlrmctl.data.features.space import GENERATED, FeatureSpace
from dlrmctl.data.formats.criteo import DENSE, SPARSE, parse
from dlrmctl.data.formats.lines import Lines
from dlrmctl.data.formats.raw import BadLine, RawPiece
from dlrmctl.data.formats.table_columnar import check_texts, check_types
from dlrmctl.data.formats.table_json import to_json_frame
from dlrmctl.data.formats.table_schema import TableSchema
from dlrmctl.data.formats.table_values import to_piece
from dlrmctl.data.new_rows import encode_rows
from dlrmctl.data.source import Block
from dlrmctl.errors import UserError
from dlrmctl.serving.values import is_nothing

Frame = Any  # polars, pandas or Arrow, a mapping of columns, or a sequence of rows, each a mapping
_KINDS = "a polars or pandas DataFrame, an Arrow table, a dictionary of columns, or a list of dictionaries"
_ROWS = Path("rows")  # where rows in memory come from, for messages


def is_frame(value: Any) -> bool:
    """Whether a value is rows rather than names of files."""
    if isinstance(value, str | Path):
        return False
    if isinstance(value, Sequence):
        return bool(value) and all(isinstance(row, Mapping) for row in value)
    return True


def to_frame(rows: Frame) -> pl.DataFrame:
    """Converts rows to a frame of polars, whose data is shared where possible.

    Raises:
        UserError: if they are no rows, or a column has values of several types.
    """
    try:
        if isinstance(rows, pl.LazyFrame):
            return rows.collect()
        if isinstance(rows, pl.DataFrame):
            return rows
        if isinstance(rows, Mapping):
            return pl.DataFrame(dict(rows), strict=False)
        if isinstance(rows, Sequence) and is_frame(rows):
            return pl.from_dicts([dict(row) for row in rows], infer_schema_length=None, strict=False)
        if hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__"):
            return pl.DataFrame(rows)
        if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # pandas without Arrow
            return pl.DataFrame({str(name): rows[name].to_list() for name in rows.columns}, strict=False)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as problem:
        raise UserError(f"the rows cannot be converted: {str(problem).splitlines()[0]}", f"give {_KINDS}") from None
    raise UserError(f"rows are {_KINDS}, not {type(rows).__name__}")


@dataclass(frozen=True)
class FrameEncoder:
    """Makes examples of rows in memory.

    Args:
        features: those of the model.
        encoders: `features.encoders()`.

    Raises:
        UserError: if the model has no raw rows, or they are not known by names.
    """

    features: FeatureSpace
    encoders: Mapping[str, Encoder]

    @classmethod
    def of(cls, features: FeatureSpace) -> "FrameEncoder":
        """Opens the vocabularies of a model.

        Raises:
            UserError: if the model has no raw rows, or they have no columns with names.
            DataError: if a vocabulary is damaged.
        """
        if features.input == GENERATED:
            raise UserError("the model was trained on generated data, which has no raw rows", "evaluate() scores it")
        if features.input != "criteo" and features.table_schema is None:
            raise UserError(
                f"the model was trained on rows of format {features.input!r}, which have no columns with names",
                "`dlrmctl predict` scores files of that format",
            )
        return cls(features, features.encoders())

    def encode(self, rows: Frame) -> Block:
        """Converts rows to examples.

        Raises:
            UserError: naming a column that is missing or of a wrong type, or the first row with a wrong value.
            DataError: for a type that does not fit the schema.
        """
        schema = self.features.table_schema
        piece = _criteo_piece(rows) if schema is None else _table_piece(schema, self.features.input, rows)
        if piece.bad:
            first = piece.bad[0]
            raise UserError(f"row {first.line} of the rows, counted from 0: {first.problem}")
        return encode_rows(piece, self.encoders, self.features.schema)

    def columns_of(self, feature: str) -> tuple[str, ...]:
        """Returns the columns that a sparse feature is made of."""
        schema = self.features.table_schema
        if schema is None:
            return (feature,)
        column = next(column for column in schema.sparse if column.name == feature)
        if column.cross is None:
            return (column.source,)
        return tuple(one for name in column.cross for one in self.columns_of(name))

    def ids_of(self, feature: str, values: Sequence[Any]) -> np.ndarray:
        """Returns the id of each of some values of a feature, [N].

        Raises:
            UserError: if the feature is made of several columns, or a value is wrong.
        """
        columns = self.columns_of(feature)
        if len(columns) > 1:
            raise UserError(f"{feature} is made of {' and '.join(columns)}, and has no single values")
        names = [*DENSE, *SPARSE] if self.features.table_schema is None else self.features.table_schema.columns[1:]
        block = self._unweighted().encode([dict.fromkeys(names) | {columns[0]: value} for value in values])
        return block.ids_F[self.features.schema.keys.index(feature)].astype(np.int64)

    def _unweighted(self) -> "FrameEncoder":
        """The same encoder for rows whose lists have no weights."""
        schema, table = self.features.schema, self.features.table_schema
        if table is None or not any(column.weights for column in table.sparse):
            return self
        schema = replace(schema, sparse=tuple(replace(feature, weights=None) for feature in schema.sparse))
        table = replace(table, sparse=tuple(replace(column, weights=None) for column in table.sparse))
        return replace(self, features=replace(self.features, schema=schema, table_schema=table))


def _table_piece(schema: TableSchema, format: str | None, rows: Frame) -> RawPiece:
    """Reads rows as the columns of a schema; those of a list of dictionaries are read as JSON lines are."""
    names = schema.columns[1:]
    if isinstance(rows, Sequence) and is_frame(rows):
        lists = schema.lists
        absent = [name for name in names if not any(name in row for row in rows)]
        _refuse_absent(absent, names, sorted({str(key) for row in rows for key in row}))
        rows, numbers_N = [{name: _as_json(row.get(name)) for name in names} for row in rows], np.arange(len(rows))
        frame, good_N, wrong = to_json_frame(
            rows, numbers_N, {name: name in lists for name in names}, schema.list_separator
        )
        return to_piece(schema, frame, numbers_N[good_N], wrong, labelled=False)
    frame = to_frame(rows)
    _refuse_absent([name for name in names if name not in frame.columns], names, frame.columns)
    frame = frame.select(names)
    types = dict(zip(frame.columns, frame.dtypes, strict=True))
    check_types(_ROWS, types, schema, labelled=False)
    if format == "csv":
        check_texts(_ROWS, types, schema)
    return to_piece(schema, frame, np.arange(len(frame)), labelled=False)


def _as_json(value: Any) -> Any:
    """Converts a value to what JSON lines have, numbers and times as texts."""
    if is_nothing(value):
        return None
    if isinstance(value, np.datetime64):
        value = value.astype("M8[us]")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | bool):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int | Decimal):
        return str(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list | tuple | np.ndarray | pl.Series):
        return [_as_json(item) for item in value]
    return {"": str(value)}  # refused, with the row that has it


def _refuse_absent(absent: Sequence[str], names: Sequence[str], present: Sequence[str]) -> None:
    if absent:
        shown = ", ".join(present[:12]) + (", ..." if len(present) > 12 else "")
        raise UserError(
            f"the rows have no column {absent[0]!r}, which the model was trained with",
            f"their columns are {shown}" if present else f"the columns of the model are {', '.join(names[:12])}",
        )


def _criteo_piece(rows: Frame) -> RawPiece:
    """Reads rows as lines of Criteo's format."""
    names = [*DENSE, *SPARSE]
    frame = to_frame(rows)
    _refuse_absent([name for name in names if name not in frame.columns], names, frame.columns)
    texts = [frame[name].cast(pl.String, strict=False).fill_null("").to_list() for name in names]
    bad: list[BadLine] = []
    lines: list[str] = []
    for number, fields in enumerate(zip(*texts, strict=True)):
        broken = next((f for f in range(len(names)) if any(mark in fields[f] for mark in "\t\n\r")), None)
        if broken is not None:
            bad.append(BadLine(number, "wrong value", f"{names[broken]} is {fields[broken]!r}"))
        lines.append("\t".join(fields) if broken is None else "\t" * (len(names) - 1))
    if not lines:
        return parse(Lines(b"", first=0, ended=True), labelled=False)
    piece = parse(Lines(("\n".join(lines) + "\n").encode(), first=0, ended=True), labelled=False)
    return replace(piece, bad=sorted([*piece.bad, *bad], key=lambda line: line.line)) if bad else piece
