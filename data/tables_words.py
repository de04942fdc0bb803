"""Columns of a table as numbers, or as 64-bit words that stand for their values."""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeGuard

import numpy as np
import polars as pl

from data.tables_schema import SparseColumn


def numbers(series: pl.Series, missing: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A column as numbers.

    Returns:
        float64 numbers, 0 where there is none; bool, False where missing; bool, True where the value is no number.
    """
    given_N = _given(series, missing)
    parsed = series.cast(pl.Float64, strict=False)
    none_N = parsed.is_null().to_numpy()
    numbers_N = parsed.fill_null(0.0).to_numpy()
    if series.dtype != pl.String and missing:
        standing = np.array([float(number) for word in missing if (number := _as_number(word)) is not None])
        given_N = given_N & ~np.isin(numbers_N, standing)
        given_N &= ~(np.isnan(numbers_N) & np.isnan(standing).any())
    wrong_N = given_N & (none_N | ~np.isfinite(numbers_N))
    return np.where(given_N & ~wrong_N, numbers_N, 0.0), given_N, wrong_N


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


def _given(series: pl.Series, missing: Sequence[str]) -> np.ndarray:
    """bool, False for null, for no text, and for texts that stand for missing."""
    if series.dtype != pl.String:
        return series.is_not_null().to_numpy()
    nothing = series.is_in(["", *missing]) if missing else series == ""
    return ~nothing.fill_null(True).to_numpy()


def is_one_of(series: pl.Series, words: Sequence[str]) -> np.ndarray:
    """bool, True where the value is one of `words`."""
    if series.dtype == pl.String:
        return series.is_in(list(words)).fill_null(False).to_numpy()
    standing = [float(number) for word in words if (number := _as_number(word)) is not None]
    return np.isin(series.cast(pl.Float64).fill_null(np.nan).to_numpy(), standing)


def words(feature: SparseColumn, series: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sparse values as 64-bit words: integers by value (two's complement), strings by `hash_texts`.

    Returns:
        uint64 values, 0 where there is none; bool, False where missing; bool, True where the value is no integer.
    """
    if feature.type == "string" or isinstance(series.dtype, pl.Categorical | pl.Enum):
        series = series.cast(pl.String)
    given = _given(series, feature.missing)
    if series.dtype == pl.String and feature.type != "integer":
        return hash_texts(series), given, np.zeros(len(series), dtype=bool)
    if series.dtype in (pl.Float32, pl.Float64):  # only whole numbers survive
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


def hash_texts(series: pl.Series) -> np.ndarray:
    """The first 64 bits of BLAKE2b of each text in UTF-8, little-endian: the same in every program. uint64; 0 for null.

    Every different text is hashed once.
    """
    texts = series.drop_nulls().unique()
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    hashes = pl.Series(np.frombuffer(digests, dtype="<u8"), dtype=pl.UInt64)
    return series.replace_strict(texts, hashes, default=None, return_dtype=pl.UInt64).fill_null(0).to_numpy()
