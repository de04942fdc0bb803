"""One form of a value whatever file it comes from, so that the same value is the same id.

The rule is called `canonical-1` in manifests; another rule needs another name.
A categorical value is told by its text, value for value and not by the type of its column:

- Numbers are equal by value: 13, 13.0, 13.00 and 1.3e+1 are `13`; 1.50 is `1.5`; -0.0 is `0`. A text is a number as
  programs write one: digits without a zero, a plus or a blank in front, a fraction, an exponent. An exponent needs a
  sign, or a point before it: 5e1 may be a code. `007` is a text. Floats are the shortest decimals that give them back.
- True and false are `1` and `0`, in letters of any case.
- Dates and times are ISO 8601: `2024-05-01`, `2024-05-01T09:30:00.5`. Midnight is the date alone, zeros at the end of
  a fraction do not count, and times with an offset are in UTC, with a `Z`.
- Infinity is the value `inf` or `-inf`. Null and NaN are no values.
- Every other text is itself.

The word of a value has 64 bits: an integer from -2**63 to 2**63 - 1 is its own (two's complement), everything else the
first 64 bits of BLAKE2b of its canonical text in UTF-8, little-endian. N values, K different ones.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from hashlib import blake2b

import numpy as np
import polars as pl

_INTEGER = r"^(?:0|-?[1-9][0-9]{0,18})$"  # its own word, if it fits
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_WHOLE_FLOAT = r"^(-?[1-9][0-9]*|0)\.0+$"
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:(?:[eE][+-]|[eE])[0-9]{1,3})?"
_TIME = r"[0-9]{2}:[0-9]{2}(?::[0-9]{2})?(?:\.[0-9]{1,9})?"
_FORMS = (
    rf"^(?:{_NUMBER}|(?i:true|false|[+-]?inf|[+-]?infinity)"
    rf"|{_TIME}|[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[T ]{_TIME}(?:Z|[+-][0-9]{{2}}:?[0-9]{{2}})?)$"
)
_CODE = re.compile(r"-?[0-9]+[eE][0-9]+")  # such as 5e1, which no program writes for a number
_IS_NUMBER = re.compile(_NUMBER, re.ASCII)
_IS_MOMENT = re.compile(r"(?:([0-9]{4}-[0-9]{2}-[0-9]{2})[T ])?([0-9:]+)(?:\.([0-9]{1,9}))?(Z|[+-][0-9:]+)?")

_EXACT: dict[type[pl.DataType], int] = {pl.Float64: 1 << 53, pl.Float32: 1 << 24}  # smaller whole numbers are exact


def canonical_text(text: str) -> str:
    """The canonical form of the value that a text shows."""
    if re.fullmatch(_FORMS[1:-1], text) is None:
        return text
    if _IS_NUMBER.fullmatch(text):
        return text if _CODE.fullmatch(text) else _number(text)
    word = text.lower()
    if word in ("true", "false"):
        return "1" if word == "true" else "0"
    if word.endswith(("inf", "infinity")):
        return "-inf" if word.startswith("-") else "inf"
    return _moment(text)


def _number(text: str) -> str:
    digits = format(Decimal(text), "f") if "e" in text.lower() else text
    digits = digits.rstrip("0").removesuffix(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


def _moment(text: str) -> str:
    """A date with a time, or a time alone."""
    match = _IS_MOMENT.fullmatch(text)
    assert match is not None, "the pattern of all forms is narrower"
    day, time, fraction, offset = match.groups()
    time = time if len(time) > 5 else f"{time}:00"
    fraction = (fraction or "").rstrip("0")
    try:
        moment = datetime.fromisoformat(f"{day or '2000-01-01'}T{time}{offset or ''}")
        moment = moment.astimezone(UTC) if offset else moment
    except (ValueError, OverflowError):
        return text
    rest = f".{fraction}"[: bool(fraction) * 10] + "Z"[: bool(offset)]
    if day is None:
        return f"{time}{rest}"
    clock = moment.strftime("%H:%M:%S")
    return moment.date().isoformat() + ("" if clock + rest == "00:00:00" else f"T{clock}{rest}")


def canonical_words(series: pl.Series, missing: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """The words of values of any type that a table may hold, but for lists.

    Args:
        series: of a text, number, Boolean or time.
        missing: texts of values that stand for none.

    Returns:
        uint64 [N], 0 where there is no value; bool [N], False there: for null, NaN and what is equal to `missing`.
    """
    kind = series.dtype
    if kind == pl.Boolean:
        series = series.cast(pl.UInt8)
    elif kind.is_float():
        series = series.fill_nan(None)
        whole = (series == series.round()) & (series.abs() < _EXACT.get(type(kind), 0))
        if whole.all():  # of those that are not null
            series = series.cast(pl.Int64)
    elif isinstance(kind, pl.Categorical | pl.Enum):
        series = series.cast(pl.String)
    if series.dtype.is_integer() and (series.cast(pl.Int64, strict=False).null_count() == series.null_count()):
        words_N = series.cast(pl.Int64).fill_null(0).to_numpy().view(np.uint64)
        given_N = series.is_not_null().to_numpy() & ~np.isin(words_N, _standing(tuple(missing)))
        return np.where(given_N, words_N, np.uint64(0)), given_N
    values_K = series.drop_nulls().unique()
    # To cast a time would lose its fraction.
    texts_K = values_K.dt.to_string("%H:%M:%S%.9f") if series.dtype == pl.Time else values_K.cast(pl.String)
    return _spread(series, values_K, _text_words(texts_K), _standing(tuple(missing)))


def plain_words(series: pl.Series, missing: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """As `canonical_words`, of texts as they are written, whatever they look like."""
    texts_K = series.drop_nulls().unique()
    return _spread(series, texts_K, _hash(texts_K), _hash(pl.Series(missing, dtype=pl.String)))


@cache
def _standing(missing: tuple[str, ...]) -> np.ndarray:
    return _text_words(pl.Series(missing, dtype=pl.String))


def _spread(
    series: pl.Series, values_K: pl.Series, words_K: np.ndarray, missing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The words of all values from those of the different ones."""
    absent_K = np.isin(words_K, missing)
    words = pl.Series(words_K, dtype=pl.UInt64)
    if absent_K.any():
        values_K, words = values_K.filter(~absent_K), words.filter(~absent_K)
    found = _looked_up(series, values_K, words)
    return found.fill_null(0).to_numpy(), found.is_not_null().to_numpy()


def are_integers(series: pl.Series) -> np.ndarray:
    """bool [N]: whether the value is an integer of at most 64 bits, with a sign or without; False for null."""
    if series.dtype.is_integer() or series.dtype == pl.Boolean:
        return series.is_not_null().to_numpy()
    values_K = series.drop_nulls().unique()
    texts_K = [canonical_text(text) for text in values_K.cast(pl.String)]
    whole_K = [bool(_WHOLE.fullmatch(text)) and -(1 << 63) <= int(text) < 1 << 64 for text in texts_K]
    return _looked_up(series, values_K, pl.Series(whole_K, dtype=pl.Boolean)).fill_null(False).to_numpy()


def _looked_up(series: pl.Series, values_K: pl.Series, found_K: pl.Series) -> pl.Series:
    """For each of all values what was found for it; null if nothing. Twice as fast as `replace_strict`."""
    table = pl.DataFrame({"value": values_K, "found": found_K})
    return pl.DataFrame({"value": series}).join(table, on="value", how="left", maintain_order="left")["found"]


def _text_words(texts_K: pl.Series) -> np.ndarray:
    """The words of texts; every different text is looked at once, and most are no more than hashed."""
    formed = texts_K.str.contains(_FORMS)
    if not formed.any():
        return _hash(texts_K)
    words_K = np.empty(len(texts_K), dtype=np.uint64)
    words_K[~formed.to_numpy()] = _hash(texts_K.filter(~formed))
    words_K[formed.to_numpy()] = _formed_words(texts_K.filter(formed))
    return words_K


def _formed_words(texts_K: pl.Series) -> np.ndarray:
    """The words of texts that look like numbers, truths or times."""
    integers = _integers(texts_K.str.replace(_WHOLE_FLOAT, "$1"))
    others = integers.is_null()
    words_K = integers.fill_null(0).to_numpy().view(np.uint64)
    if not others.any():
        return words_K
    forms = pl.Series([canonical_text(text) for text in texts_K.filter(others)], dtype=pl.String)
    integers, words_K = _integers(forms), words_K.copy()
    words_K[others.to_numpy()] = np.where(
        integers.is_null().to_numpy(), _hash(forms), integers.fill_null(0).to_numpy().view(np.uint64)
    )
    return words_K


def _integers(texts_K: pl.Series) -> pl.Series:
    """int64, null where the text is no canonical integer, or not one of 64 bits."""
    return texts_K.set(~texts_K.str.contains(_INTEGER), None).cast(pl.Int64, strict=False)


def _hash(texts_K: pl.Series) -> np.ndarray:
    digests = b"".join([blake2b(text, digest_size=8).digest() for text in texts_K.cast(pl.Binary)])
    return np.frombuffer(digests, dtype="<u8")
