"""Reads one raw value of a table as the preparation reads a column of them; see `data.formats.table_values`.

Values are of JSON or of Python: strings, numbers, Booleans, dates, None. A string is read as a field of a text file is.
"""

import math
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np

from dlrmctl.data.canonical.texts import canonical_text, hashed_word, word_of
from dlrmctl.data.moments import DAY, EPOCHS, FIRST_MOMENT, LAST_MOMENT, SECOND, moment_of
from dlrmctl.serving.errors import ValueProblem, shown

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?i:inf|infinity|nan)")
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")  # Python refuses to convert thousands of digits
_TRUTHS = {"true": 1.0, "false": 0.0}
_EPOCH_DAY = date(1970, 1, 1).toordinal()


_OF_PANDAS = frozenset({"NAType", "NaTType"})  # its missing values; pandas is not imported


def is_nothing(value: Any) -> bool:
    """Returns whether a value of Python is a missing one: None, NaN, or those of pandas and NumPy."""
    if value is None or type(value).__name__ in _OF_PANDAS:
        return True
    return isinstance(value, Real | Decimal | np.datetime64) and bool(value != value)


class JsonNumber(str):
    """A number of JSON with its digits, so that integers of any size are exact."""

    __slots__ = ()


def number_of(text: str) -> float | None:
    """Returns the number that a text is; None if it is none."""
    return float(text) if _NUMBER.fullmatch(text) else None


def standing_numbers(missing: Iterable[str]) -> frozenset[float]:
    """Returns the numbers among the texts of missing values; NaN is not in a set, see `has_nan`."""
    found = (_python_number(text) for text in missing)
    return frozenset(number for number in found if number is not None and not math.isnan(number))


def has_nan(missing: Iterable[str]) -> bool:
    """Returns whether NaN stands for a missing value."""
    return any((number := _python_number(text)) is not None and math.isnan(number) for text in missing)


def _python_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class NumberReader:
    """Reads numbers.

    Args:
        missing: texts of missing values.
    """

    def __init__(self, missing: tuple[str, ...]) -> None:
        self._texts = frozenset(("", *missing))
        self._numbers, self._nan = standing_numbers(missing), has_nan(missing)

    def __call__(self, value: Any) -> float:
        """Returns a number, NaN where missing.

        Raises:
            ValueProblem: if it is not one.
        """
        if type(value) is float or type(value) is int:
            number = _as_float(value)
        elif value is None:
            return math.nan
        elif isinstance(value, str):
            found = number_of(value)
            if found is None:
                if value in self._texts:
                    return math.nan
                found = _TRUTHS.get(value.lower())
            if found is None:
                raise ValueProblem(f"{shown(value)} is not a number")
            number = found
        elif isinstance(value, Real | Decimal):  # Booleans, and numbers of NumPy
            number = float(value)
        elif is_nothing(value):
            return math.nan
        else:
            raise ValueProblem(f"{shown(value)} is not a number")
        if number in self._numbers or (self._nan and number != number):
            return math.nan
        if not math.isfinite(number):
            raise ValueProblem(f"{shown(value)} is not a finite number")
        return number


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def text_of(value: Any) -> str | None:
    """Returns a value as a text file has it; None where missing.

    Raises:
        ValueProblem: if it is not a single value.
    """
    if isinstance(value, str):
        return value
    if is_nothing(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Integral):
        try:
            return str(int(value))
        except ValueError:  # thousands of digits
            raise ValueProblem(f"{shown(value)} is too large") from None
    if isinstance(value, Real):
        return str(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, np.datetime64):
        value = value.astype("M8[us]").item()
    if isinstance(value, datetime):
        moment = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
        return moment.isoformat(sep=" ") + ("Z" if value.tzinfo else "")
    if isinstance(value, date | time):
        return value.isoformat()
    if type(value).__name__ == "bool_":  # of NumPy
        return "true" if value else "false"
    raise ValueProblem(f"{shown(value)} is not a string or a number")


class WordReader:
    """Reads categorical values.

    Args:
        missing: texts of missing values.
        kind: "string" if strings are not converted; "integer" if other values are mistakes; None.
    """

    def __init__(self, missing: tuple[str, ...], kind: str | None) -> None:
        self._word = hashed_word if kind == "string" else word_of
        self._missing = frozenset(map(self._word, ("", *missing)))
        self._integers = kind == "integer"

    def __call__(self, value: Any) -> int | None:
        """Returns a word of 64 bits, None where missing.

        Raises:
            ValueProblem: if it is not a single value, or not an integer in a column of integers.
        """
        text = text_of(value)
        if text is None:
            return None
        try:
            word = self._word(text)
        except UnicodeEncodeError:  # half a character
            raise ValueProblem(f"{shown(value)} is not valid Unicode") from None
        if word in self._missing:
            return None
        if self._integers and not _is_integer(text):
            raise ValueProblem(f"{shown(value)} is not an integer")
        return word


def _is_integer(text: str) -> bool:
    form = canonical_text(text)
    return bool(re.fullmatch(r"-?[0-9]{1,20}", form)) and -(1 << 63) <= int(form) < 1 << 64


class TimeReader:
    """Reads times.

    Args:
        epoch: the unit of numbers since 1970, a key of `EPOCHS`; None if numbers are no times.
        missing: texts of missing values.
    """

    def __init__(self, epoch: str | None, missing: tuple[str, ...]) -> None:
        self._unit = None if epoch is None else EPOCHS[epoch]
        self._missing = frozenset(("", *missing))
        self._expected = "a time such as 2026-01-31T18:30:00" if epoch is None else f"{epoch} since 1970"

    def __call__(self, value: Any) -> int | None:
        """Returns microseconds since 1970 in UTC, None where missing.

        Raises:
            ValueProblem: if it is not a time.
        """
        if (isinstance(value, str) and value in self._missing) or is_nothing(value):
            return None
        found = self._moment(value)
        if found is None or not FIRST_MOMENT <= found < LAST_MOMENT:
            raise ValueProblem(f"{shown(value)} is not {self._expected}")
        return found

    def _moment(self, value: Any) -> int | None:
        if isinstance(value, np.datetime64):
            value = value.astype("M8[us]").item()
        if isinstance(value, datetime):
            moment = value if value.tzinfo is None else value.astimezone(UTC)
            seconds = (moment.hour * 60 + moment.minute) * 60 + moment.second
            return (moment.toordinal() - _EPOCH_DAY) * DAY + seconds * SECOND + moment.microsecond
        if isinstance(value, date):
            return (value.toordinal() - _EPOCH_DAY) * DAY
        found = moment_of(value) if isinstance(value, str) else None
        if found is not None or self._unit is None:
            return found
        if isinstance(value, bool) or not isinstance(value, str | Real | Decimal):
            return None
        text = str(value)
        if _INTEGER.fullmatch(text) and abs(int(text)) <= LAST_MOMENT // self._unit:
            return int(text) * self._unit
        number = number_of(text)
        return round(number * self._unit) if number is not None and math.isfinite(number) else None


def part_of(moment: int, part: str) -> int:
    """Returns a part of a time in microseconds since 1970, one of `PARTS`."""
    days, rest = divmod(moment, DAY)
    if part == "minute":
        return rest // (60 * SECOND) % 60
    if part == "hour":
        return rest // (3600 * SECOND)
    day = date.fromordinal(days + _EPOCH_DAY)
    if part == "weekday":
        return day.isoweekday()
    if part == "week":
        return day.isocalendar()[1]
    if part == "quarter":
        return (day.month + 2) // 3
    return int(getattr(day, part))  # day, month, year
