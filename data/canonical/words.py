"""The canonical words of many values at once, from columns of any type. N values, K distinct ones."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from hashlib import blake2b

import numpy as np
import polars as pl

from dlrmctl.data.canonical.texts import FORMS, INTEGER, canonical_text, is_integer
from dlrmctl.data.hashed_texts import HashedTexts

_WHOLE_FLOAT = r"^(-?[1-9][0-9]*|0)\.0+$"
_FRACTION = r"^-?(?:0|[1-9][0-9]*)\.[0-9]*[1-9]$"  # is canonical as it is

_WordsOf = Callable[[pl.Series], np.ndarray]
_MOSTLY_DIFFERENT = 0.75  # of the values: above it, hashing all is faster than finding equal ones
_EXACT: dict[type[pl.DataType], int] = {pl.Float64: 1 << 53, pl.Float32: 1 << 24}  # smaller integers are exact


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
    words_K = words_of(_texts(values_K))
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


def _texts(values_K: pl.Series) -> pl.Series:
    """Returns values as strings: a float as its shortest decimal."""
    if values_K.dtype == pl.Time:  # a cast would lose its fraction
        return values_K.dt.to_string("%H:%M:%S%.9f")
    texts_K = values_K.cast(pl.String)
    if values_K.dtype != pl.Float16:
        return texts_K
    # The cast shows the digits of a float32, which are those of whole numbers and infinity.
    pairs = zip(values_K.to_numpy(), texts_K, strict=True)
    shown = [text if value == np.round(value) else np.format_float_positional(value) for value, text in pairs]
    return pl.Series(shown, dtype=pl.String)


def are_integers(series: pl.Series) -> np.ndarray:
    """Returns bool [N]: whether the value is an integer of at most 64 bits, signed or unsigned; False for null."""
    if series.dtype.is_integer() or series.dtype == pl.Boolean:
        return series.is_not_null().to_numpy()
    values_K = series.drop_nulls().unique()
    whole_K = [is_integer(text) for text in values_K.cast(pl.String)]
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
    return _either(texts_K, texts_K.str.contains(FORMS), partial(_formed_words, hashed=hashed), hashed)


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
    return texts_K.set(~texts_K.str.contains(INTEGER), None).cast(pl.Int64, strict=False)


def _hash(texts_K: pl.Series, found: list[HashedTexts] | None = None) -> np.ndarray:
    contents = texts_K.cast(pl.Binary).to_list()
    digests = b"".join([blake2b(content, digest_size=8).digest() for content in contents])
    words_K = np.frombuffer(digests, dtype="<u8")
    if found is not None and contents:
        found.append(HashedTexts.pack(words_K, contents))
    return words_K
