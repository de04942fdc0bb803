"""Turns raw rows into the inputs of a model, with the same numbers as `dlrmctl predict` makes of them.

B rows, I dense features, F features with one id each, L ids of the longest list.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np

from dlrmctl.data.features.encoders import Encoder
from dlrmctl.data.formats.criteo_digits import MAX_DIGITS, read_integer, transform_dense
from dlrmctl.data.formats.table_schema import DenseColumn, SparseColumn, TableSchema
from dlrmctl.data.formats.transforms import TRANSFORMS
from dlrmctl.data.moments import SECOND, UNITS
from dlrmctl.data.schema import LARGEST_DENSE, Schema
from dlrmctl.data.store.layout import as_stored
from dlrmctl.serving.columns import IdColumn, Word, crossed, of_second
from dlrmctl.serving.errors import RowError, ValueProblem, shown
from dlrmctl.serving.values import JsonNumber, NumberReader, TimeReader, WordReader, part_of

_WORDS = np.dtype("<u8")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of a model.

    Attributes:
        dense_BI: float32, NaN where missing.
        ids_BF: int64, of the features with one id each, in their order.
        lists: int64 [B, L] by feature, padded with -1.
        weights: float32 [B, L] of the features whose values have weights, padded with 0.
    """

    dense_BI: np.ndarray
    ids_BF: np.ndarray
    lists: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.dense_BI)


def join(parts: Sequence[ModelInputs]) -> ModelInputs:
    """Returns the rows of several calls, one after another."""
    if len(parts) == 1:
        return parts[0]
    return ModelInputs(
        np.concatenate([part.dense_BI for part in parts]),
        np.concatenate([part.ids_BF for part in parts]),
        _joined([part.lists for part in parts], -1),
        _joined([part.weights for part in parts], 0),
    )


def _joined(parts: Sequence[Mapping[str, np.ndarray]], padding: int) -> dict[str, np.ndarray]:
    joined = {}
    for name in parts[0]:
        longest = max(part[name].shape[1] for part in parts)
        joined[name] = np.concatenate(
            [
                np.pad(part[name], ((0, 0), (0, longest - part[name].shape[1])), constant_values=padding)
                for part in parts
            ]
        )
    return joined


class DenseReader:
    """One dense feature: the columns that it reads, and how it reads a value of them.

    Attributes:
        sources: one column, or two whose difference it is.
        read: returns a number, NaN where missing; raises `ValueProblem`.
    """

    def __init__(self, sources: tuple[str, ...], read: Callable[[Any], float]) -> None:
        self.sources, self.read = sources, read

    def numbers(self, columns: "_RawColumns") -> list[float]:
        """Returns the numbers of all rows.

        Raises:
            RowError: for a wrong value.
        """
        values, read = columns.of(self.sources), self.read
        try:
            return [read(value) for value in values]
        except ValueProblem:
            for row, value in enumerate(values):
                try:
                    read(value)
                except ValueProblem as problem:
                    raise RowError(row, self.sources[problem.place], str(problem)) from None
            raise


class _RawColumns:
    """The values of rows by column.

    Raises:
        RowError: if a row is not a mapping.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise RowError(number, None, f"{shown(row)} is not an object with a value for each column")
        self._rows = rows

    def of(self, sources: tuple[str, ...]) -> Sequence[Any]:
        """Returns the values of a column, or pairs of values of two.

        Raises:
            RowError: if a row lacks the column.
        """
        found = [self._one(source) for source in sources]
        return found[0] if len(found) == 1 else list(zip(*found, strict=True))

    def _one(self, source: str) -> list[Any]:
        try:
            return [row[source] for row in self._rows]
        except KeyError:
            number = next(number for number, row in enumerate(self._rows) if source not in row)
            close = difflib.get_close_matches(source, [str(key) for key in self._rows[number]], n=1)
            hint = f"; the row has {close[0]!r}" if close else "; null is a missing value"
            raise RowError(number, source, f"the column is missing{hint}") from None


class RowReader:
    """Reads raw rows.

    Args:
        schema: of the model.
        dense: readers of the dense features.
        transform: maps numbers, float64 [I, B] with NaN where missing, to dense values; raises `RowError`.
        sparse: the sparse features.
    """

    def __init__(
        self,
        schema: Schema,
        dense: Sequence[DenseReader],
        transform: Callable[[np.ndarray], np.ndarray],
        sparse: Sequence[IdColumn],
    ) -> None:
        self._schema, self._dense, self._transform, self._sparse = schema, dense, transform, sparse

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        dense = (source for reader in self._dense for source in reader.sources)
        sparse = (source for column in self._sparse for source in column.all_sources)
        return tuple(dict.fromkeys((*dense, *sparse)))

    def read(self, rows: Sequence[Row]) -> ModelInputs:
        """Returns the inputs of at least one row.

        Raises:
            RowError: for the first problem that is found.
        """
        columns = _RawColumns(rows)
        numbers = [reader.numbers(columns) for reader in self._dense]
        dense_IB = self._transform(np.array(numbers, dtype=np.float64).reshape(len(numbers), len(rows)))
        dense_BI = np.ascontiguousarray(as_stored(self._schema, dense_IB).T, dtype=np.float32)
        ids, lists, weights = [], {}, {}
        for column in self._sparse:
            values = columns.of(column.sources)
            if column.max_ids == 1:
                ids.append(column.ids(values))
            elif column.weights is None:
                lists[column.name] = column.lists(values)
            else:
                lists[column.name], weights[column.name] = column.weighted_lists(values, columns.of((column.weights,)))
        ids_BF = np.stack(ids, 1) if ids else np.empty((len(rows), 0), np.int64)
        return ModelInputs(dense_BI, ids_BF, lists, weights)


def table_reader(schema: Schema, table: TableSchema, encoders: Mapping[str, Encoder]) -> RowReader:
    """Returns what reads the rows of a table."""
    dense = [_dense_reader(table, column) for column in table.dense]
    words: dict[str, tuple[tuple[str, ...], Word]] = {}
    for column in table.sparse:
        if column.cross is None:
            words[column.name] = (column.source,), _word(table, column)
    for column in table.sparse:
        if column.cross is not None:
            (first, one), (second, other) = (words[name] for name in column.cross)
            words[column.name] = (*first, *second), crossed(one, other)
    sparse = [
        IdColumn(
            column.name,
            *words[column.name],
            encoders[column.name],
            word_type=np.dtype("<u4") if column.buckets else _WORDS,
            max_ids=column.max_ids,
            truncate=column.truncate,
            weights=column.weights,
            separator=table.list_separator,
        )
        for column in table.sparse
    ]
    return RowReader(schema, dense, partial(_transformed, table.dense), sparse)


def _dense_reader(table: TableSchema, column: DenseColumn) -> DenseReader:
    if column.since is None:
        return DenseReader(column.sources, NumberReader(column.missing))
    times = [table.time(name) for name in (column.sources[0], column.since)]
    first = TimeReader(times[0].epoch, times[0].missing)
    unit, reference = UNITS[column.unit] * SECOND, column.reference
    if reference is not None:

        def since(value: Any) -> float:
            moment = first(value)
            return math.nan if moment is None else (moment - reference) / unit

        return DenseReader(column.sources, since)
    second = TimeReader(times[1].epoch, times[1].missing)

    def between(pair: tuple[Any, Any]) -> float:
        moment, start = first(pair[0]), of_second(second, pair[1])
        return math.nan if moment is None or start is None else (moment - start) / unit

    return DenseReader(column.sources, between)


def _word(table: TableSchema, column: SparseColumn) -> Word:
    if column.part is not None:
        time, part = table.time(column.source), column.part
        moment = TimeReader(time.epoch, time.missing)

        def read(value: Any) -> int | None:
            found = moment(value)
            return None if found is None else part_of(found, part)

        return read
    if column.buckets is not None:
        number, limit = NumberReader(column.missing), float(np.finfo(np.float32).max)

        def bits(value: Any) -> int | None:
            found = number(value)
            if math.isnan(found):
                return None
            return int((np.float32(min(max(found, -limit), limit)) + np.float32(0)).view(np.uint32))

        return bits
    return WordReader(column.missing, column.type)


def _transformed(columns: Sequence[DenseColumn], numbers_IB: np.ndarray) -> np.ndarray:
    """Returns the dense values of a table, as `table_values` makes them."""
    given_IB, raw_IB = ~np.isnan(numbers_IB), numbers_IB
    numbers_IB = np.where(given_IB, numbers_IB, 0.0)
    with np.errstate(over="ignore"):
        short_IB = numbers_IB.astype(np.float32)
    numbers_IB = np.where(np.isfinite(short_IB), short_IB, numbers_IB)
    for column, numbers_B in zip(columns, numbers_IB, strict=True):
        if column.clip is not None:
            np.clip(numbers_B, *column.clip, out=numbers_B)
    for name in {column.transform for column in columns}:
        rows = [place for place, column in enumerate(columns) if column.transform == name]
        numbers_IB[rows] = TRANSFORMS[name].apply(numbers_IB[rows])
    large_IB = given_IB & (np.abs(numbers_IB) > LARGEST_DENSE)
    if large_IB.any():
        feature, row = np.argwhere(large_IB)[0].tolist()
        raise RowError(
            row, columns[feature].sources[0], f"{raw_IB[feature, row]:.17g} is above {LARGEST_DENSE:g}, transformed"
        )
    return np.where(given_IB, numbers_IB, np.nan).astype(np.float32)


def criteo_reader(schema: Schema, encoders: Mapping[str, Encoder]) -> RowReader:
    """Returns what reads Criteo's rows: integers, and strings of hexadecimal digits."""

    def logarithms(numbers_IB: np.ndarray) -> np.ndarray:
        given_IB = ~np.isnan(numbers_IB)
        return transform_dense(np.where(given_IB, numbers_IB, 0.0), given_IB)

    dense = [DenseReader((name,), _integer) for name in schema.dense]
    sparse = [
        IdColumn(
            feature.name,
            (feature.name,),
            _hexadecimal,
            encoders[feature.name],
            word_type=np.dtype("<u4"),
            kept=(str,),
        )
        for feature in schema.sparse
    ]
    return RowReader(schema, dense, logarithms, sparse)


def _integer(value: Any) -> float:
    if value is None or value == "":
        return math.nan
    number: int | None = None
    if isinstance(value, str):
        number = read_integer(value.encode(errors="replace"))
    elif isinstance(value, Integral) and not isinstance(value, bool) and -(1 << 63) <= int(value) < 1 << 63:
        number = int(value)
    if number is None:
        raise ValueProblem(f"{shown(value)} is not an integer")
    return float(number)


_DIGITS = frozenset("0123456789abcdefABCDEF")


def _hexadecimal(value: Any) -> int | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or isinstance(value, JsonNumber):
        raise ValueProblem(f"{shown(value)} is not a string of hexadecimal digits")
    if len(value) > MAX_DIGITS or not _DIGITS.issuperset(value):
        raise ValueProblem(f"{shown(value)} is not at most {MAX_DIGITS} hexadecimal digits")
    return int(value, 16)


def array_reader(schema: Schema, encoders: Mapping[str, Encoder], word_types: Mapping[str, np.dtype]) -> RowReader:
    """Returns what reads the rows of arrays: finite numbers, and ids or lists of them."""
    dense = [DenseReader((name,), _finite) for name in schema.dense]
    sparse = [
        IdColumn(
            feature.name,
            (feature.name,),
            _whole,
            encoders[feature.name],
            word_type=word_types[feature.name],
            max_ids=feature.max_ids,
            missing=False,
            kept=(int, JsonNumber),
        )
        for feature in schema.sparse
    ]
    return RowReader(schema, dense, lambda numbers_IB: numbers_IB.astype(np.float32), sparse)


def _finite(value: Any) -> float:
    if isinstance(value, JsonNumber) or (isinstance(value, Real) and not isinstance(value, bool)):
        number = float(value)
    else:
        raise ValueProblem(f"{shown(value)} is not a number")
    if not abs(number) <= LARGEST_DENSE:  # nor NaN
        raise ValueProblem(f"{shown(value)} is not a number of at most {LARGEST_DENSE:g}")
    return number


def _whole(value: Any) -> int:
    if (isinstance(value, JsonNumber) and value.isdecimal()) or (
        isinstance(value, Integral) and not isinstance(value, bool)
    ):
        number = int(value)
    else:
        raise ValueProblem(f"{shown(value)} is not an integer")
    if not 0 <= number < 1 << 64:
        raise ValueProblem(f"{shown(value)} is not an id of at least 0")
    return number
