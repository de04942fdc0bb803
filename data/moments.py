"""Moments as numbers: microseconds since 1970 in UTC, and unsigned integers in their order.

A time is a date, a date with a time of day, or both with an offset, as ISO 8601 writes them. One without an offset is
taken as UTC. Numbers, such as seconds since 1970, have the same order as the times that they stand for. N values.
"""

import re
from datetime import UTC, date, datetime
from typing import Literal

import numpy as np

OrderKind = Literal["time", "number"]
ISO_FORM = (
    r"^(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ](?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?)?"
    r"(?:Z|(?P<sign>[+-])(?P<off_hour>[0-9]{2}):?(?P<off_minute>[0-9]{2})?)?)?$"
)
SECOND = 1_000_000
DAY = 86_400 * SECOND
_TOP = np.uint64(1 << 63)
EPOCHS = {"seconds": SECOND, "milliseconds": 1000, "microseconds": 1}  # microseconds of a unit
UNITS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400}  # seconds of a unit
PARTS = ("minute", "hour", "weekday", "day", "week", "month", "quarter", "year")  # weekdays are 1 (Monday) to 7
FIRST_MOMENT, LAST_MOMENT = -62_135_596_800 * SECOND, 253_402_300_800 * SECOND  # of the years 1 to 9999
EXPECTED = {"time": "a time such as 2026-01-31 or 2026-01-31T18:30:00", "number": "a number"}


def moment_of(text: str) -> int | None:
    """Returns the microseconds of a time as text; None if it is not one."""
    found = re.fullmatch(ISO_FORM, text)
    if found is None:
        return None
    fields = {name: int(found[name] or 0) for name in ("hour", "minute", "second", "off_hour", "off_minute")}
    if fields["hour"] > 23 or fields["off_hour"] > 23 or max(fields[n] for n in fields if n[-4:] != "hour") > 59:
        return None
    try:
        days = date.fromisoformat(found["date"]).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        return None
    offset = (fields["off_hour"] * 60 + fields["off_minute"]) * (-60 if found["sign"] == "-" else 60)
    clock = (fields["hour"] * 60 + fields["minute"]) * 60 + fields["second"]
    return days * DAY + (clock - offset) * SECOND + int((found["fraction"] or "").ljust(6, "0")[:6])


def year_of(moment: int) -> int:
    """Returns the year of a time in microseconds since 1970."""
    return date.fromordinal(moment // DAY + date(1970, 1, 1).toordinal()).year


def time_keys(microseconds_N: np.ndarray) -> np.ndarray:
    """Returns uint64 with the order of int64."""
    return microseconds_N.astype(np.int64).view(np.uint64) ^ _TOP


def number_keys(numbers_N: np.ndarray) -> np.ndarray:
    """Returns uint64 with the order of float64; both zeros have one key."""
    bits = (numbers_N.astype(np.float64) + 0.0).view(np.uint64)
    return np.where(bits >> np.uint64(63), ~bits, bits | _TOP)


def shown_key(key: int, kind: OrderKind) -> str:
    """Returns the time or number of a key as text."""
    if kind == "number":
        bits = np.array([key], np.uint64)
        bits = np.where(bits >= _TOP, bits ^ _TOP, ~bits)
        number = float(bits.view(np.float64)[0])
        return str(int(number)) if number.is_integer() and abs(number) < 1e18 else repr(number)
    moment = int(np.array([key], np.uint64).__xor__(_TOP).view(np.int64)[0])
    seconds, fraction = divmod(moment, SECOND)
    try:
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError, OSError):  # outside the years 1 to 9999
        return f"{seconds} seconds after 1970"
    text += f".{fraction:06}".rstrip("0") if fraction else ""
    return text.removesuffix("T00:00:00")


def parse_moment(text: str) -> tuple[int, OrderKind] | None:
    """Returns the key of a time or a number as text, and which it is; None if it is neither."""
    moment = moment_of(text.strip())
    if moment is not None:
        return int(time_keys(np.array([moment]))[0]), "time"
    try:
        number = float(text)
    except ValueError:
        return None
    return (int(number_keys(np.array([number]))[0]), "number") if np.isfinite(number) else None
