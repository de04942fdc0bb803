"""The canonical form: a value has one word for all its types and texts, and distinct values have distinct words."""

import datetime as dt
import math
from decimal import Decimal
from hashlib import blake2b
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrmctl.data.canonical.texts import canonical_text
from dlrmctl.data.canonical.words import are_integers, canonical_words, plain_words

BERLIN = dt.timezone(dt.timedelta(hours=2))


def word(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


@pytest.mark.parametrize(
    ("texts", "form"),
    [
        (["13", "13.0", "13.000", "1.3e+1", "1.3E1", "130e-1"], "13"),
        (["-13", "-13.0"], "-13"),
        (["0", "0.0", "-0", "-0.0", "0e+5", "false", "False", "FALSE"], "0"),
        (["1", "1.0", "true", "True", "TRUE"], "1"),
        (["1.5", "1.50", "15e-1"], "1.5"),
        (["0.00001", "1e-05", "1e-5", "1.0E-5"], "0.00001"),
        (["10000000000000000", "1e+16", "1.0E16"], "10000000000000000"),
        (["340282366920938463463374607431768211456"], "340282366920938463463374607431768211456"),
        (["inf", "+inf", "Infinity", "INF"], "inf"),
        (["-inf", "-Infinity"], "-inf"),
        (["2024-05-01", "2024-05-01 00:00:00", "2024-05-01T00:00:00.000000", "2024-05-01 00:00"], "2024-05-01"),
        (
            ["2024-05-01 09:30:00.500", "2024-05-01T09:30:00.5", "2024-05-01T09:30:00.500000000"],
            "2024-05-01T09:30:00.5",
        ),
        (["2024-05-01 09:30", "2024-05-01T09:30:00"], "2024-05-01T09:30:00"),
        (["2024-05-01T02:00:00+02:00", "2024-05-01 00:00:00Z", "2024-05-01T00:00:00.000+0000"], "2024-05-01T00:00:00Z"),
        (["09:30:00.000000000", "09:30:00", "09:30"], "09:30:00"),
    ],
)
def test_texts_of_one_value_have_one_form(texts: list[str], form: str):
    assert {canonical_text(text) for text in texts} == {form}
    assert len(set(canonical_words(pl.Series(texts))[0].tolist())) == 1


@pytest.mark.parametrize(
    "text",
    [
        *["007", "+7", " 7", "7 ", "5e1", "12e45", "1_000", "1,5", ".5", "5.", "0x10", "--1", "-", "e5", "1.5.0"],
        *["infinite", "2024-5-1", "2024-13-01 10:00:00", "2024-05-01 24:30:00", "2024-05-01T", "99:99:99", "truth"],
        *["13\n", "\n13", "68fd1e64", "1e+1234", "\u0661\u0663", "a\n", "NaN", ""],
    ],
)
def test_every_other_text_is_itself(text: str):
    assert canonical_text(text) == text
    assert canonical_words(pl.Series([text]))[0].tolist() == [word(text)]


@pytest.mark.parametrize(
    ("series", "text"),
    [
        (pl.Series([7], dtype=pl.UInt8), "7"),
        (pl.Series([-7], dtype=pl.Int16), "-7"),
        (pl.Series([2**64 - 1], dtype=pl.UInt64), str(2**64 - 1)),
        (pl.Series([2**100], dtype=pl.Int128), str(2**100)),
        (pl.Series([True]), "1"),
        (pl.Series([13.0]), "13"),
        (pl.Series([0.1], dtype=pl.Float16), "0.1"),
        (pl.Series([-1e-5], dtype=pl.Float16), "-0.00001"),
        (pl.Series([65504.0], dtype=pl.Float16), "65504"),
        (pl.Series([math.inf], dtype=pl.Float16), "inf"),
        (pl.Series([0.1], dtype=pl.Float32), "0.1"),
        (pl.Series([2.0**60]), "1.152921504606847e+18"),
        (pl.Series([134217728.0], dtype=pl.Float32), "134217730"),
        (pl.Series([1e300]), "1e+300"),
        (pl.Series([float("-inf")]), "-inf"),
        (pl.Series([Decimal("1.50")], dtype=pl.Decimal(10, 2)), "1.5"),
        (pl.Series([Decimal("13.00")], dtype=pl.Decimal(10, 2)), "13"),
        (pl.Series([dt.date(2024, 5, 1)]), "2024-05-01"),
        (pl.Series([dt.datetime(2024, 5, 1)]), "2024-05-01"),
        (pl.Series([dt.datetime(2024, 5, 1, 9, 30, 0, 500)], dtype=pl.Datetime("ns")), "2024-05-01T09:30:00.0005"),
        (pl.Series([dt.datetime(2024, 5, 1, 9, tzinfo=BERLIN)]), "2024-05-01T07:00:00Z"),
        (pl.Series([dt.time(9, 30)]), "09:30:00"),
        (pl.Series(["x"], dtype=pl.Categorical), "x"),
        (pl.Series(["13.0"], dtype=pl.Enum(["13.0"])), "13"),
    ],
)
def test_a_value_of_any_type_has_the_word_of_its_text(series: pl.Series, text: str):
    typed, texts = (canonical_words(values)[0].tolist() for values in (series, pl.Series([text])))
    assert typed == texts
    # Also among other values of the type, which may take another code path.
    both = pl.concat([series, series.clear(1)])
    assert canonical_words(both)[0].tolist() == [*texts, 0]
    assert canonical_words(both)[1].tolist() == [True, False]


def test_nothing_and_nan_are_no_values_and_infinity_is_one():
    for series in (pl.Series([math.nan, None, 1.0, math.inf]), pl.Series([math.nan, None, 1.5, math.inf])):
        assert canonical_words(series)[1].tolist() == [False, False, True, True]
    words, given = canonical_words(pl.Series(["", "NA", "-999.0", "x"]), ["", "NA", "-999"])
    assert given.tolist() == [False, False, False, True]
    assert words.tolist() == [0, 0, 0, word("x")]
    assert canonical_words(pl.Series([-999, 3]), ["-999.0"])[1].tolist() == [False, True]


def test_plain_words_are_of_the_text_alone():
    assert plain_words(pl.Series(["1.10", "1.1", "1", None, "NA"]), ["NA"])[0].tolist() == [
        word("1.10"),
        word("1.1"),
        word("1"),
        0,
        0,
    ]


@given(st.lists(st.one_of(st.integers(-(2**70), 2**70), st.none()), min_size=1))
def test_different_integers_have_different_words_in_every_type(numbers: list[int | None]):
    texts = pl.Series([None if number is None else str(number) for number in numbers], dtype=pl.String)
    words, given_N = canonical_words(texts)
    typed, typed_given_N = canonical_words(pl.Series(numbers, dtype=pl.Int128))
    assert words.tolist() == typed.tolist()
    assert given_N.tolist() == typed_given_N.tolist() == [number is not None for number in numbers]
    there = {number for number in numbers if number is not None}
    assert len(set(words[given_N].tolist())) == len(there)
    assert are_integers(texts).tolist() == [n is not None and -(2**63) <= n < 2**64 for n in numbers]


@given(st.lists(st.floats(allow_nan=False, width=64), min_size=1))
def test_floats_have_the_words_of_their_decimals(numbers: list[float]):
    expected = canonical_words(pl.Series([repr(number) for number in numbers]))[0].tolist()
    assert canonical_words(pl.Series(numbers, dtype=pl.Float64))[0].tolist() == expected
    by_value = {number: canonical_words(pl.Series([number]))[0][0] for number in numbers}
    assert expected == [by_value[number] for number in numbers]
    assert len(set(by_value.values())) == len(by_value)


@given(st.datetimes(min_value=dt.datetime(1, 1, 3), max_value=dt.datetime(9999, 12, 29)))
def test_moments_have_the_words_of_their_texts(moment: dt.datetime):
    typed = canonical_words(pl.Series([moment], dtype=pl.Datetime("us")))[0][0]
    texts = [str(moment), moment.isoformat(), moment.isoformat(timespec="microseconds")]
    assert {*canonical_words(pl.Series(texts))[0].tolist()} == {typed}
    aware = moment.replace(tzinfo=BERLIN)
    texts = [str(aware), aware.isoformat(), aware.astimezone(dt.UTC).isoformat(timespec="microseconds")]
    found = {*canonical_words(pl.Series(texts))[0].tolist()}
    assert found == {*canonical_words(pl.Series([aware]))[0].tolist()}
    assert found != {typed}


TEXTS = st.one_of(
    st.text(), st.from_regex(r"\A[-+]?[0-9TZ:.eE -]{1,20}\Z"), st.floats().map(str), st.datetimes().map(str)
)


@given(st.lists(TEXTS, min_size=1))
def test_the_form_of_a_form_is_itself_and_columns_agree_with_single_texts(texts: list[str]):
    forms = [canonical_text(text) for text in texts]
    assert [canonical_text(form) for form in forms] == forms
    words = canonical_words(pl.Series(texts))[0]
    singles = [canonical_words(pl.Series([form]))[0][0] for form in forms]
    assert np.array_equal(words, singles)
    different: dict[str, Any] = dict(zip(forms, words.tolist(), strict=True))
    assert len(set(different.values())) == len(different)
