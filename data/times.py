"""Times in columns of tables, as microseconds since 1970 in UTC, given as texts or as an Arrow type. N values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from dlrmctl.data.moments import DAY, EPOCHS, FIRST_MOMENT, ISO_FORM, LAST_MOMENT, SECOND, OrderKind, year_of

_LIKELY = (315_532_800 * SECOND, 4_102_444_800 * SECOND)  # from 1980 to 2100


def is_moment(kind: pl.DataType) -> bool:
    """Returns whether a type is that of dates or of dates with times."""
    return isinstance(kind, pl.Datetime) or kind == pl.Date


def order_kind(kind: pl.DataType) -> OrderKind | None:
    """Returns what the values of a type are; None if only their texts say it."""
    if is_moment(kind):
        return "time"
    return "number" if kind.is_numeric() else None


def order_kind_of_texts(texts: pl.Series) -> OrderKind | None:
    """Returns what most of the texts are; None if none is a time or a number."""
    times = int(microseconds(texts)[1].sum())
    numbers = len(texts) - texts.cast(pl.Float64, strict=False).null_count()
    if not times and not numbers:
        return None
    return "time" if times >= numbers else "number"


def microseconds(series: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Converts times, given as texts or by their type.

    Returns:
        int64 microseconds since 1970 in UTC, 0 where there is no time; bool, whether there is one.
    """
    if is_moment(series.dtype):
        whole = series.cast(pl.Datetime("us")) if series.dtype == pl.Date else series.dt.cast_time_unit("us")
        found = whole.to_physical()
    else:
        found = _parsed(series.cast(pl.String))
    return found.fill_null(0).to_numpy().astype(np.int64, copy=False), found.is_not_null().to_numpy()


def read_times(
    series: pl.Series, epoch: str | None, missing: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Converts a column of times.

    Args:
        series: times by their type, texts, or numbers.
        epoch: the unit of numbers since 1970, a key of `EPOCHS`; None if numbers are no times.
        missing: texts of missing values.

    Returns:
        int64 microseconds since 1970 in UTC, 0 where there is none; bool, False where missing; bool, True where not a
        time.
    """
    if series.dtype == pl.Null or isinstance(series.dtype, pl.Categorical | pl.Enum):
        series = series.cast(pl.String)
    elif series.dtype.is_float():
        series = series.fill_nan(None)
    given_N = series.is_not_null().to_numpy()
    if series.dtype == pl.String:
        given_N = given_N & ~series.is_in(["", *missing]).fill_null(True).to_numpy()
    found_N, right_N = (np.zeros(len(series), np.int64), np.zeros(len(series), bool))
    if series.dtype == pl.String or is_moment(series.dtype):
        found_N, right_N = microseconds(series)
    if epoch is not None and not is_moment(series.dtype):
        scaled = _since_1970(series, EPOCHS[epoch])
        found_N = np.where(right_N, found_N, scaled.fill_null(0).to_numpy())
        right_N = right_N | scaled.is_not_null().to_numpy()
    right_N = right_N & (found_N >= FIRST_MOMENT) & (found_N < LAST_MOMENT)
    return np.where(given_N & right_N, found_N, 0), given_N, given_N & ~right_N


@dataclass(frozen=True)
class Doubt:
    """A number in a column of times whose unit is probably another one.

    Attributes:
        shown: the number, and for a declared unit what it is in that unit: "1700000000 (1970 in milliseconds)".
        unit: the key of `EPOCHS` in which it is a time from 1980 to 2100.
        unusable: whether the number is no time in the declared unit.
    """

    shown: str
    unit: str
    unusable: bool


def doubt_of(series: pl.Series, epoch: str | None, missing: Sequence[str] = ()) -> Doubt | None:
    """Checks the unit of a column of times by its median; None if it is likely, or none is likelier.

    Args:
        series: values of any type. Only numbers, also as texts, are looked at.
        epoch: the declared unit, a key of `EPOCHS`; None if there is none.
        missing: texts of missing values.
    """
    if is_moment(series.dtype) or series.dtype.is_nested():
        return None
    if series.dtype == pl.String:
        series = series.filter(~series.is_in(["", *missing]).fill_null(True))
    numbers_N = series.cast(pl.Float64, strict=False).to_numpy()
    numbers_N = numbers_N[np.isfinite(numbers_N)]
    if 2 * len(numbers_N) <= len(series) - series.null_count():
        return None
    middle = float(np.sort(numbers_N)[len(numbers_N) // 2]) if len(numbers_N) else 0.0
    unit = next((unit for unit, scale in EPOCHS.items() if _LIKELY[0] <= middle * scale < _LIKELY[1]), None)
    if unit is None or unit == epoch or (epoch and _LIKELY[0] <= middle * EPOCHS[epoch] < _LIKELY[1]):
        return None
    moment = round(middle * EPOCHS[epoch or unit])
    there = FIRST_MOMENT <= moment < LAST_MOMENT
    as_read = "" if epoch is None else f" ({year_of(moment) if there else 'beyond the year 9999'} in {epoch})"
    return Doubt(f"{middle:.16g}{as_read}", unit, not there or epoch is None)


def _since_1970(series: pl.Series, unit: int) -> pl.Series:
    """Returns numbers times `unit`, int64, null for what is not a number. Integers stay exact."""
    rounded = (series.cast(pl.Float64, strict=False) * unit).round().cast(pl.Int64, strict=False)
    if series.dtype.is_float():
        return rounded
    whole = series.cast(pl.Int64, strict=False)
    exact = whole.set((whole.abs() > LAST_MOMENT // unit).fill_null(True), None) * unit
    return pl.select(pl.coalesce(exact, rounded)).to_series()


def part_of(moments_N: np.ndarray, part: str) -> np.ndarray:
    """Returns a part of times, int64 [N]; `part` is one of `PARTS`."""
    series = pl.Series(moments_N).cast(pl.Datetime("us"))
    found: pl.Series = getattr(series.dt, part)()
    return found.cast(pl.Int64).to_numpy()


def _parsed(texts: pl.Series) -> pl.Series:
    """Returns int64, null for texts that are not times."""

    def number(name: str) -> pl.Expr:
        return pl.col(name).cast(pl.Int64).fill_null(0)

    fields = texts.str.extract_groups(ISO_FORM).struct.unnest()
    day = pl.col("date").str.to_date("%Y-%m-%d", strict=False)
    micro = pl.col("fraction").str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64).fill_null(0)
    clock = (number("hour") * 60 + number("minute")) * 60 + number("second")
    offset = (number("off_hour") * 60 + number("off_minute")) * 60
    offset = pl.when(pl.col("sign") == "-").then(-offset).otherwise(offset)
    right = (
        (number("hour") < 24)
        & (number("minute") < 60)
        & (number("second") < 60)
        & (number("off_hour") < 24)
        & (number("off_minute") < 60)
    )
    moment = day.cast(pl.Int32).cast(pl.Int64) * DAY + (clock - offset) * SECOND + micro
    return fields.select(pl.when(right).then(moment)).to_series()
