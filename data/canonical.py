"""The canonical form of a value, so that equal values of different file formats have the same id.

Manifests call the rule `canonical-1`; another rule needs another name.
A categorical value is identified by its own text, not by the type of its column:

- Numbers are equal by value: 13, 13.0, 13.00 and 1.3e+1 are `13`; 1.50 is `1.5`; -0.0 is `0`. A string is a number as
  programs write one: digits without a leading zero, plus or blank, a fraction, an exponent. An exponent needs a sign,
  or a decimal point before it: 5e1 may be a code. `007` is a string. Floats are the shortest decimals that convert back
  to them.
- True and false are `1` and `0`, in letters of any case.
- Dates and times are ISO 8601: `2024-05-01`, `2024-05-01T09:30:00.5`. Midnight is the date alone, trailing zeros of a
  fraction do not count, and times with an offset are in UTC, with a `Z`.
- Infinity is `inf` or `-inf`. Null and NaN are missing values.
- Every other string is unchanged.

The word of a value has 64 bits: an integer from -2**63 to 2**63 - 1 is its own word (two's complement); otherwise it is
the first 64 bits of BLAKE2b of the canonical text in UTF-8, little-endian. N values, K distinct ones.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache, partial
from hashlib import blake2b

import numpy as np
import polars as pl

from dlrmctl.data.hashed_texts import HashedTexts

_INTEGER = r"^(?:0|-?[1-9][0-9]{0,18})$"  # its own word, if it fits
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_WHOLE_FLOAT = r"^(-?[1-9][0-9]*|0)\.0+$"
_FRACTION = r"^-?(?:0|[1-9][0-9]*)\.[0-9]*[1-9]$"  # is canonical as it is
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:(?:[eE][+-]|[eE])[0-9]{1,3})?"
_TIME = r"[0-9]{2}:[0-9]{2}(?::[0-9]{2})?(?:\.[0-9]{1,9})?"
_FORMS = (
    rf"^(?:{_NUMBER}|(?i:true|false|[+-]?inf|[+-]?infinity)"
    rf"|{_TIME}|[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[T ]{_TIME}(?:Z|[+-][0-9]{{2}}:?[0-9]{{2}})?)$"
)
_CODE = re.compile(r"-?[0-9]+[eE][0-9]+")  # such as 5e1, which programs do not write for numbers
_IS_NUMBER = re.compile(_NUMBER, re.ASCII)
_IS_MOMENT = re.compile(r"(?:([0-9]{4}-[0-9]{2}-[0-9]{2})[T ])?([0-9:]+)(?:\.([0-9]{1,9}))?(Z|[+-][0-9:]+)?")

_WordsOf = Callable[[pl.Series], np.ndarray]
_MOSTLY_DIFFERENT = 0.75  # of the values: above it, hashing all is faster than finding equal ones
_EXACT: dict[type[pl.DataType], int] = {pl.Float64: 1 << 53, pl.Float32: 1 << 24}  # smaller integers are exact


def canonical_text(text: str) -> str:
    """Returns the canonical form of a string."""
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
    """Returns the canonical form of a date with a time, or of a time."""
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


def canonical_words(
    series: pl.Series, missing: Sequence[str] = (), texts: list[HashedTexts] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the words of values of any type of a table's columns, except lists.

    Args:
        series: of strings, numbers, Booleans or times.
        missing: texts of missing values.
        texts: receives the canonical texts of the values whose words are hashes.

    Returns:
        uint64 [N], 0 where missing; bool [N], False where missing: null, NaN and values in `missing`.
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
    return _by_different_values(series, lambda texts_K: _text_words(texts_K, texts), _standing(tuple(missing)))


def plain_words(
    series: pl.Series, missing: Sequence[str] = (), texts: list[HashedTexts] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `canonical_words`, for strings that are not converted."""
    standing = _hash(pl.Series(missing, dtype=pl.String))
    return _by_different_values(series, lambda texts_K: _hash(texts_K, texts), standing)


@cache
def _standing(missing: tuple[str, ...]) -> np.ndarray:
    return _text_words(pl.Series(missing, dtype=pl.String))


def _by_different_values(series: pl.Series, words_of: _WordsOf, standing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the words of all values from the texts of the distinct ones; 0 for missing values."""
    given = series.drop_nulls()
    values_K = given.unique()
    if len(values_K) > _MOSTLY_DIFFERENT * len(series):
        values_K = given
    # Casting a time would lose its fraction.
    texts_K = values_K.dt.to_string("%H:%M:%S%.9f") if series.dtype == pl.Time else values_K.cast(pl.String)
    words_K = words_of(texts_K)
    absent_K = np.isin(words_K, standing)
    if values_K is given:
        words_N, given_N = np.zeros(len(series), np.uint64), series.is_not_null().to_numpy()
        words_N[given_N] = np.where(absent_K, np.uint64(0), words_K)
        given_N = given_N.copy()
        given_N[given_N] = ~absent_K
        return words_N, given_N
    words = pl.Series(words_K, dtype=pl.UInt64)
    if absent_K.any():
        values_K, words = values_K.filter(~absent_K), words.filter(~absent_K)
    found = _looked_up(series, values_K, words)
    return found.fill_null(0).to_numpy(), found.is_not_null().to_numpy()


def are_integers(series: pl.Series) -> np.ndarray:
    """Returns bool [N]: whether the value is an integer of at most 64 bits, signed or unsigned; False for null."""
    if series.dtype.is_integer() or series.dtype == pl.Boolean:
        return series.is_not_null().to_numpy()
    values_K = series.drop_nulls().unique()
    texts_K = [canonical_text(text) for text in values_K.cast(pl.String)]
    whole_K = [bool(_WHOLE.fullmatch(text)) and -(1 << 63) <= int(text) < 1 << 64 for text in texts_K]
    return _looked_up(series, values_K, pl.Series(whole_K, dtype=pl.Boolean)).fill_null(False).to_numpy()


def _looked_up(series: pl.Series, values_K: pl.Series, found_K: pl.Series) -> pl.Series:
    """Maps each value to what was found for it, or null. Twice as fast as `replace_strict`."""
    table = pl.DataFrame({"value": values_K, "found": found_K})
    return pl.DataFrame({"value": series}).join(table, on="value", how="left", maintain_order="left")["found"]


def _text_words(texts_K: pl.Series, found: list[HashedTexts] | None = None) -> np.ndarray:
    """Returns the words of texts; every distinct text is examined once, and most are only hashed.

    Args:
        texts_K: texts of the values.
        found: receives the canonical texts that were hashed.
    """
    hashed = partial(_hash, found=found)
    return _either(texts_K, texts_K.str.contains(_FORMS), partial(_formed_words, hashed=hashed), hashed)


def _formed_words(texts_K: pl.Series, hashed: _WordsOf) -> np.ndarray:
    """Returns the words of texts that look like numbers, Booleans or times."""
    integers = _integers(texts_K.str.replace(_WHOLE_FLOAT, "$1"))
    words_K, others = integers.fill_null(0).to_numpy().view(np.uint64), integers.is_null()
    if others.any():
        texts = texts_K.filter(others)
        words_K = words_K.copy()
        words_K[others.to_numpy()] = _either(
            texts, texts.str.contains(_FRACTION), hashed, partial(_rewritten_words, hashed=hashed)
        )
    return words_K


def _rewritten_words(texts_K: pl.Series, hashed: _WordsOf) -> np.ndarray:
    """Returns the words of texts that may have another form."""
    forms = pl.Series([canonical_text(text) for text in texts_K], dtype=pl.String)
    integers = _integers(forms)
    words_K = integers.fill_null(0).to_numpy().view(np.uint64).copy()
    words_K[integers.is_null().to_numpy()] = hashed(forms.filter(integers.is_null()))
    return words_K


def _either(texts_K: pl.Series, chosen: pl.Series, words_of: _WordsOf, others: _WordsOf) -> np.ndarray:
    """Computes the words of the chosen texts in one way, and of the others in another."""
    if not chosen.any():
        return others(texts_K)
    words_K, chosen_K = np.empty(len(texts_K), dtype=np.uint64), chosen.to_numpy()
    words_K[chosen_K] = words_of(texts_K.filter(chosen))
    words_K[~chosen_K] = others(texts_K.filter(~chosen))
    return words_K


def _integers(texts_K: pl.Series) -> pl.Series:
    """Returns int64, null where the text is not a canonical integer of 64 bits."""
    return texts_K.set(~texts_K.str.contains(_INTEGER), None).cast(pl.Int64, strict=False)


def _hash(texts_K: pl.Series, found: list[HashedTexts] | None = None) -> np.ndarray:
    contents = texts_K.cast(pl.Binary).to_list()
    digests = b"".join([blake2b(content, digest_size=8).digest() for content in contents])
    words_K = np.frombuffer(digests, dtype="<u8")
    if found is not None and contents:
        found.append(HashedTexts.pack(words_K, contents))
    return words_K
