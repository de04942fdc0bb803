"""Converts columns of a table to raw examples: numbers are transformed, sparse values become 64-bit words.

`data.canonical` identifies values, or for stores of earlier versions the last functions here. N rows, I dense features,
F sparse features.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeGuard

import numpy as np
import polars as pl

from dlrmctl.data.canonical.words import are_integers, canonical_words, plain_words
from dlrmctl.data.formats.raw import (
    LABEL_WRONG,
    LIST_TOO_LONG,
    LISTS_DIFFER,
    NO_TIME,
    NOT_A_TIME,
    NOT_A_WEIGHT,
    BadLine,
    RawColumn,
    RawPiece,
    SplitKeys,
)
from dlrmctl.data.formats.table_schema import BY_TYPE, NOTHING, DenseColumn, SparseColumn, TableSchema
from dlrmctl.data.formats.transforms import TRANSFORMS
from dlrmctl.data.hashed_texts import HashedTexts
from dlrmctl.data.moments import EXPECTED, SECOND, UNITS, number_keys, time_keys
from dlrmctl.data.randomness import mix
from dlrmctl.data.schema import LARGEST_DENSE, NO_GROUP
from dlrmctl.data.times import part_of, read_times

_SHOWN = 40  # characters of a wrong value
_BY = " \N{MULTIPLICATION SIGN} "  # between the values of a pair
_TRUTHS = {"true": 1.0, "false": 0.0}
_COMPARE: Mapping[str, Callable[[np.ndarray, float], np.ndarray]] = {
    ">=": np.greater_equal,
    "<=": np.less_equal,
    ">": np.greater,
    "<": np.less,
}


@dataclass(frozen=True)
class KeyColumn:
    """The column that splits depend on, and what its values are."""

    name: str
    kind: Literal["time", "number", "group"]


@dataclass
class _Faults:
    """The first problem of each row."""

    frame: pl.DataFrame
    by_row: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, wrong_N: np.ndarray, name: str, reason: str, expected: str) -> None:
        for row in np.flatnonzero(wrong_N).tolist():
            if row not in self.by_row:
                value = self.frame[name][row]
                value = value.to_list() if isinstance(value, pl.Series) else value
                shown = repr(value)
                shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
                problem = f"{name} is missing" if value is None or value == "" else f"{name} is {shown}"
                self.by_row[row] = (reason, f"{problem}, expected {expected}")


def to_piece(
    schema: TableSchema,
    frame: pl.DataFrame,
    lines_N: np.ndarray,
    bad: Sequence[BadLine] = (),
    *,
    labelled: bool = True,
    by: KeyColumn | None = None,
) -> RawPiece:
    """Converts the good rows of a piece of a table, and describes the others.

    Args:
        schema: schema of the table.
        frame: its columns by name; strings if the table is text.
        lines_N: int64, the line or row of each.
        bad: lines that are already omitted, in order.
        labelled: whether there is a label.
        by: the column whose times or groups are the keys of the piece.
    """
    faults = _Faults(frame)
    labels_N = _labels(schema, frame, faults) if labelled else np.zeros(len(frame), dtype=np.uint8)
    dense_IN = np.empty((len(schema.dense), len(frame)), dtype=np.float32)
    for dense_N, column in zip(dense_IN, schema.dense, strict=True):
        dense_N[:] = _dense(schema, column, frame, faults)
    sparse: dict[str, RawColumn] = {}
    shortened = {}
    for feature in (column for column in schema.sparse if column.cross is None):
        series = frame[feature.source]
        if feature.part is not None:
            sparse[feature.name] = _part(schema, feature, series, faults)
        elif feature.buckets is not None:
            sparse[feature.name] = _numbers_of_buckets(feature, series, faults)
        elif feature.max_ids == 1:
            sparse[feature.name] = _single(schema, feature, series, faults)
        else:
            sparse[feature.name], short_N = _lists(schema, feature, frame, faults)
            if feature.truncate != "reject":
                shortened[f"{feature.name} cut to its {feature.truncate} {feature.max_ids} values"] = short_N
    keys = None if by is None else split_keys(schema, by, frame[by.name], faults)
    weights_N = _weights(schema.weight, frame, faults) if labelled and schema.weight is not None else None
    groups_N = _groups(schema, frame) if labelled and schema.group is not None else None
    good_N = np.ones(len(frame), dtype=bool)
    good_N[list(faults.by_row)] = False
    repairs = {reason: int((short_N & good_N).sum()) for reason, short_N in shortened.items()}
    wrong = [BadLine(int(lines_N[row]), *faults.by_row[row]) for row in sorted(faults.by_row)]
    piece = RawPiece(
        lines_N=lines_N,
        labels_N=labels_N,
        dense_IN=dense_IN,
        sparse=[
            sparse[feature.name] if feature.cross is None else _crossed(*(sparse[name] for name in feature.cross))
            for feature in schema.sparse
        ],
        repaired={reason: count for reason, count in repairs.items() if count},
        bad=sorted([*bad, *wrong], key=lambda line: line.line),
        keys=keys,
        weights_N=weights_N,
        groups_N=groups_N,
    )
    return piece if good_N.all() else piece.pick(np.flatnonzero(good_N))


def split_keys(schema: TableSchema, by: KeyColumn, series: pl.Series, faults: _Faults) -> SplitKeys:
    """Returns the times or groups in a column. A row without a time is bad."""
    feature = next((column for column in schema.sparse if column.name == by.name), SparseColumn(by.name))
    if by.kind == "group":
        values_N, given_N, wrong_N = words(schema, feature, series)
        return SplitKeys(values_N, given_N & ~wrong_N)
    if by.kind == "time":
        time = schema.time(by.name)
        moments_N, given_N, wrong_N = read_times(series, time.epoch, time.missing)
        keys_N, right_N = time_keys(moments_N), given_N & ~wrong_N
    else:
        numbers_N, given_N, wrong_N = numbers(series, (*feature.missing, *NOTHING))
        keys_N, right_N = number_keys(numbers_N), given_N & ~wrong_N
    faults.add(~right_N, by.name, NO_TIME, EXPECTED[by.kind])
    return SplitKeys(keys_N, right_N)


def _weights(name: str, frame: pl.DataFrame, faults: _Faults) -> np.ndarray:
    """Returns float32, 0 where wrong."""
    numbers_N, given_N, wrong_N = numbers(frame[name], ("NA", *NOTHING))
    right_N = given_N & ~wrong_N & (numbers_N >= 0) & (numbers_N <= np.finfo(np.float32).max)
    faults.add(~right_N, name, NOT_A_WEIGHT, "a weight of at least 0")
    return np.where(right_N, numbers_N, 0).astype(np.float32)


def _groups(schema: TableSchema, frame: pl.DataFrame) -> np.ndarray:
    """Returns uint64: hashes of the values, `NO_GROUP` where there is none."""
    feature = schema.grouping()
    words_N, given_N, wrong_N = words(schema, feature, frame[feature.name])
    return np.where(given_N & ~wrong_N, mix(words_N), np.uint64(NO_GROUP))


def _labels(schema: TableSchema, frame: pl.DataFrame, faults: _Faults) -> np.ndarray:
    """Returns uint8, 0 or 1; 0 where wrong."""
    series = frame[schema.label]
    if schema.positive is not None:
        words_N, given_N = canonical_words(series, ["", *NOTHING])
        faults.add(~given_N, schema.label, LABEL_WRONG, "a value")
        positive = canonical_words(pl.Series(schema.positive, dtype=pl.String))[0]
        return (given_N & np.isin(words_N, positive)).astype(np.uint8)
    if series.dtype == pl.Float32:  # as text it has the digits of a threshold
        series = series.cast(pl.String)
    numbers_N, given_N, wrong_N = numbers(series, NOTHING)
    if schema.threshold is not None:
        operator, bound = schema.threshold
        positive_N, expected = _COMPARE[operator](numbers_N, bound), "a number"
    else:
        positive_N, expected = numbers_N == 1, "0 or 1"
        wrong_N |= (numbers_N != 0) & (numbers_N != 1)
    faults.add(wrong_N | ~given_N, schema.label, LABEL_WRONG, expected)
    return (positive_N & given_N & ~wrong_N).astype(np.uint8)


def _dense(schema: TableSchema, column: DenseColumn, frame: pl.DataFrame, faults: _Faults) -> np.ndarray:
    """float64, transformed; NaN where missing."""
    source = column.sources[0]
    if column.since is not None:
        numbers_N, given_N = _elapsed(schema, column, frame, faults)
        wrong_N = np.zeros_like(given_N)
    else:
        numbers_N, given_N, wrong_N = numbers(frame[source], column.missing)
        faults.add(wrong_N, source, "not a number", "a number")
    if schema.values != BY_TYPE:  # a file of float32 gives what a text with its decimals gives
        with np.errstate(over="ignore"):
            short_N = numbers_N.astype(np.float32)
        numbers_N = np.where(np.isfinite(short_N), short_N, numbers_N)
    if column.clip is not None:
        numbers_N = np.clip(numbers_N, *column.clip)
    numbers_N = TRANSFORMS[column.transform].apply(numbers_N)
    large_N = given_N & ~wrong_N & (np.abs(numbers_N) > LARGEST_DENSE)
    faults.add(large_N, source, "too large", f"at most {LARGEST_DENSE:g}, or transform = 'log'")
    return np.where(given_N & ~large_N, numbers_N, np.nan)


def _moments(schema: TableSchema, name: str, series: pl.Series, faults: _Faults) -> tuple[np.ndarray, np.ndarray]:
    """Returns times in microseconds, and bool, False where there is none."""
    time = schema.time(name)
    moments_N, given_N, wrong_N = read_times(series, time.epoch, time.missing)
    faults.add(wrong_N, name, NOT_A_TIME, EXPECTED["time"] if time.epoch is None else f"{time.epoch} since 1970")
    return moments_N, given_N & ~wrong_N


def _elapsed(
    schema: TableSchema, column: DenseColumn, frame: pl.DataFrame, faults: _Faults
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the time between two times, float64 in the unit of the column, and bool, False where one is missing."""
    source = column.sources[0]
    moments_N, given_N = _moments(schema, source, frame[source], faults)
    reference = column.reference
    if reference is None:
        assert column.since is not None
        since_N, there_N = _moments(schema, column.since, frame[column.since], faults)
        moments_N, given_N = moments_N - since_N, given_N & there_N
    else:
        moments_N = moments_N - reference
    return np.where(given_N, moments_N / (UNITS[column.unit] * SECOND), 0.0), given_N


def _part(schema: TableSchema, feature: SparseColumn, series: pl.Series, faults: _Faults) -> RawColumn:
    assert feature.part is not None
    moments_N, given_N = _moments(schema, feature.source, series, faults)
    values_N = part_of(moments_N, feature.part).view(np.uint64)
    return RawColumn(np.where(given_N, values_N, np.uint64(0)), present_N=given_N)


def _numbers_of_buckets(feature: SparseColumn, series: pl.Series, faults: _Faults) -> RawColumn:
    """Returns numbers as the bits of float32; both zeros are one."""
    numbers_N, given_N, wrong_N = numbers(series, feature.missing)
    faults.add(wrong_N, feature.source, "not a number", "a number")
    limit = np.finfo(np.float32).max
    bits_N = (np.clip(numbers_N, -limit, limit).astype(np.float32) + np.float32(0)).view(np.uint32)
    return RawColumn(np.where(given_N, bits_N, np.uint32(0)), present_N=given_N)


def _crossed(first: RawColumn, second: RawColumn) -> RawColumn:
    """Returns the pairs of values of two columns, missing where one is missing; a word is a hash of two words."""
    assert first.present_N is not None
    assert second.present_N is not None
    given_N = first.present_N & second.present_N
    words_N = np.where(given_N, mix(mix(first.values) + second.values), np.uint64(0))
    words_K, places_K = np.unique(words_N[given_N], return_index=True)
    rows_K = np.flatnonzero(given_N)[places_K]
    texts = zip(_texts_of(first, rows_K), _texts_of(second, rows_K), strict=True)
    packed = HashedTexts.pack(words_K, [f"{one}{_BY}{other}".encode() for one, other in texts])
    return RawColumn(words_N, present_N=given_N, texts=[packed])


def _texts_of(column: RawColumn, rows_K: np.ndarray) -> list[str]:
    """Returns the values in some rows as texts."""
    known: dict[int, str] = {}
    for some in column.texts:
        ends = np.cumsum(some.lengths_K, dtype=np.int64).tolist()
        for word, start, end in zip(some.words_K.tolist(), [0, *ends], ends, strict=False):
            known[word] = some.content[start:end].decode()
    words_K = column.values[rows_K]
    pairs = zip(words_K.tolist(), words_K.view(np.int64).tolist(), strict=True)
    return [known.get(word) or str(number) for word, number in pairs]


def _single(schema: TableSchema, feature: SparseColumn, series: pl.Series, faults: _Faults) -> RawColumn:
    texts: list[HashedTexts] = []
    values_N, given_N, wrong_N = words(schema, feature, series, texts)
    faults.add(wrong_N, feature.name, "not an integer", "an integer")
    return RawColumn(np.where(given_N & ~wrong_N, values_N, np.uint64(0)), present_N=given_N, texts=texts)


def _lists(
    schema: TableSchema, feature: SparseColumn, frame: pl.DataFrame, faults: _Faults
) -> tuple[RawColumn, np.ndarray]:
    """Returns the lists, and which of them were cut."""
    series = _as_lists(schema, frame[feature.source])
    weights = None
    if feature.weights is not None:
        series, weights = _with_weights(schema, feature.weights, series, frame[feature.weights], faults)
    lengths_N = series.list.len().fill_null(0).to_numpy().astype(np.int64)
    texts: list[HashedTexts] = []
    values, given, wrong = words(schema, feature, series.filter(pl.Series(lengths_N > 0)).explode(), texts)
    owner = np.repeat(np.arange(len(series)), lengths_N)
    wrong_N = np.zeros(len(series), dtype=bool)
    wrong_N[owner[wrong]] = True
    faults.add(wrong_N, feature.name, "not an integer", "integers")
    values, owner = values[given], owner[given]  # an empty place in a list is a missing value
    weights = None if weights is None else weights[given]
    lengths_N = np.bincount(owner, minlength=len(series))
    long_N = lengths_N > feature.max_ids
    if long_N.any():
        if feature.truncate == "reject":
            faults.add(long_N, feature.name, LIST_TOO_LONG, f"at most {feature.max_ids} values")
        place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths_N) - lengths_N, lengths_N)
        first = place < feature.max_ids
        last = place >= np.repeat(lengths_N, lengths_N) - feature.max_ids
        values = values[last if feature.truncate == "last" else first]
        weights = None if weights is None else weights[last if feature.truncate == "last" else first]
        lengths_N = np.minimum(lengths_N, feature.max_ids)
    return RawColumn(values, lengths_N=lengths_N.astype(np.int32), texts=texts, weights=weights), long_N


def _as_lists(schema: TableSchema, series: pl.Series) -> pl.Series:
    if series.dtype == pl.Null:
        return series.cast(pl.List(pl.String))
    if series.dtype == pl.String:
        return series.str.split(schema.list_separator)
    return series.arr.to_list() if isinstance(series.dtype, pl.Array) else series


def _without_empty(series: pl.Series) -> pl.Series:
    """Returns lists without those of one empty text, which an empty field gives."""
    if series.dtype != pl.List(pl.String):
        return series
    is_empty = (series.list.len() == 1) & (series.list.first() == "")
    return pl.select(pl.when(~is_empty.fill_null(False)).then(series)).to_series()


def _with_weights(
    schema: TableSchema, name: str, series: pl.Series, weights: pl.Series, faults: _Faults
) -> tuple[pl.Series, np.ndarray]:
    """Returns the lists, empty where their weights are wrong, and the weights of all their values, float32."""
    weights, series = (_without_empty(column) for column in (_as_lists(schema, weights), series))
    counts_N, wanted_N = (column.list.len().fill_null(0).to_numpy().astype(np.int64) for column in (weights, series))
    numbers_K, given_K, wrong_K = numbers(weights.filter(pl.Series(counts_N > 0)).explode(), NOTHING)
    right_K = given_K & ~wrong_K & (np.abs(numbers_K) <= np.finfo(np.float32).max)
    owner_K = np.repeat(np.arange(len(series)), counts_N)
    bad_N = counts_N != wanted_N
    faults.add(bad_N, name, LISTS_DIFFER, "as many weights as values")
    not_numbers_N = np.zeros(len(series), dtype=bool)
    not_numbers_N[owner_K[~right_K]] = True
    faults.add(not_numbers_N, name, "not a number", "numbers")
    bad_N |= not_numbers_N
    if bad_N.any():
        series = pl.select(pl.when(pl.Series(~bad_N)).then(series)).to_series()
    return series, numbers_K[~bad_N[owner_K]].astype(np.float32)


def numbers(series: pl.Series, missing: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Converts a column to numbers; true is 1 and false is 0.

    Returns:
        float64 numbers, 0 where there is none; bool, False where missing; bool, True where not a number.
    """
    if series.dtype == pl.Null or isinstance(series.dtype, pl.Categorical | pl.Enum):
        series = series.cast(pl.String)
    given_N, parsed = series.is_not_null().to_numpy().copy(), series.cast(pl.Float64, strict=False)
    none_N = parsed.is_null().to_numpy() & given_N
    if none_N.any() and series.dtype == pl.String:
        texts = series.filter(pl.Series(none_N))
        given_N[none_N] = ~texts.is_in(["", *missing]).to_numpy()
        truths = texts.str.to_lowercase().replace_strict(
            {"true": 1.0, "false": 0.0}, default=None, return_dtype=pl.Float64
        )
        numbers_N = parsed.fill_null(0.0).to_numpy().copy()
        numbers_N[none_N] = truths.fill_null(np.nan).to_numpy()
    else:
        numbers_N = parsed.fill_null(0.0).to_numpy()
    standing = np.array([float(number) for word in missing if (number := _as_number(word)) is not None])
    if len(standing):
        given_N &= ~np.isin(numbers_N, standing)
    if np.isnan(standing).any():
        given_N &= ~np.isnan(parsed.fill_null(0.0).to_numpy())
    wrong_N = given_N & ~np.isfinite(numbers_N)
    return np.where(given_N & ~wrong_N, numbers_N, 0.0), given_N, wrong_N


def words(
    schema: TableSchema, feature: SparseColumn, series: pl.Series, texts: list[HashedTexts] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Converts sparse values to 64-bit words.

    Args:
        schema: schema of the table.
        feature, series: the column.
        texts: receives the texts of values whose words are hashes, unless the schema is of an earlier version.

    Returns:
        uint64 values, 0 where there is none; bool, False where missing; bool, True where a column of integers has
        another value.
    """
    if series.dtype == pl.Null or isinstance(series.dtype, pl.Categorical | pl.Enum):
        series = series.cast(pl.String)
    if schema.values == BY_TYPE:
        return _words_by_type(feature, series)
    if series.dtype.is_float():
        series = series.fill_nan(None)
    if feature.type == "string":
        values, given = plain_words(series.cast(pl.String), ["", *feature.missing], texts)
    else:
        values, given = canonical_words(series, ["", *feature.missing], texts)
    wrong = given & ~are_integers(series) if feature.type == "integer" else np.zeros(len(series), dtype=bool)
    return values, given, wrong


def _words_by_type(feature: SparseColumn, series: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `words` of earlier versions, by the type of the column: integers by value, strings by their hash."""
    if feature.type == "string":
        series = series.cast(pl.String)
    if series.dtype == pl.String and feature.type != "integer":
        values, given = plain_words(series, ["", *feature.missing])
        return values, given, np.zeros(len(series), dtype=bool)
    given = series.is_not_null().to_numpy()
    if series.dtype == pl.String:
        given = ~series.is_in(["", *feature.missing]).fill_null(True).to_numpy()
    if series.dtype.is_float():  # only integers stay equal
        series = pl.select(pl.when(series == series.round()).then(series)).to_series()
    signed = series.cast(pl.Int64, strict=False)
    unsigned = series.cast(pl.UInt64, strict=False)
    wrong = given & signed.is_null().to_numpy() & unsigned.is_null().to_numpy()
    values = np.where(
        signed.is_null().to_numpy(),
        unsigned.fill_null(0).to_numpy(),
        signed.fill_null(0).to_numpy().view(np.uint64),
    )
    if series.dtype != pl.String and feature.missing:
        standing = [int(number) % (1 << 64) for number in map(_as_number, feature.missing) if _is_whole(number)]
        given = given & ~np.isin(values, np.array(standing, dtype=np.uint64))
    return values, given, wrong & given


def _as_number(word: str) -> int | float | None:
    """Large integers stay exact."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return None


def _is_whole(number: int | float | None) -> TypeGuard[int | float]:
    return number is not None and math.isfinite(number) and number == int(number)
