"""Parsing of numbers, fractions and lists, with one-line errors."""

from collections.abc import Callable
from typing import Any

import pytest

from dlrmctl.errors import UserError
from dlrmctl.settings.parse import names_of, positive_numbers, share, whole_number


@pytest.mark.parametrize(
    ("text", "number"), [("7", 7), ("1_000", 1000), ("20M", 20_000_000), ("1.5k", 1500), ("2g", 2 * 10**9)]
)
def test_whole_numbers_may_be_short(text: str, number: int):
    assert whole_number("--rows", text, at_least=1) == number


@pytest.mark.parametrize(("text", "value"), [("0.25", 0.25), ("25%", 0.25), (" 0.1 % ", 0.001), ("0", 0.0)])
def test_shares_may_be_in_per_cent(text: str, value: float):
    assert share("--share", text) == pytest.approx(value)


def test_ends_of_a_share_are_taken_where_they_make_sense():
    assert share("--share", "100%", one=True) == 1.0


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: whole_number("--n", "1.5", at_least=1), "--n = '1.5' is not a whole number"),
        (lambda: whole_number("--n", "1.0001k", at_least=1), "--n = '1.0001k' is not a whole number"),
        (lambda: whole_number("--n", "", at_least=1), "--n = '' is not a whole number"),
        (lambda: whole_number("--n", "2", at_least=1000), "--n = 2 must be at least 1,000"),
        (lambda: whole_number("--n", "9", at_least=1, at_most=8), "--n = 9 must be at most 8"),
        (lambda: share("--s", "1"), "--s = 1 must be at least 0 and below 1"),
        (lambda: share("--s", "0%", zero=False), "--s = 0% must be above 0 and below 1"),
        (lambda: share("--s", "half"), "--s = 'half' is not a number"),
        (lambda: names_of("--l", "a,,b"), "--l = 'a,,b' has an empty value"),
        (lambda: names_of("--l", "a,a"), "--l = 'a,a' names a twice"),
        (lambda: positive_numbers("--l", "1,0"), "--l = '1,0' must all be above 0"),
        (lambda: positive_numbers("--l", "0.1,1e-1"), "--l = '0.1,1e-1' names 0.1 twice"),
    ],
)
def test_mistakes_are_one_line(read: Callable[[], Any], message: str):
    with pytest.raises(UserError) as caught:
        read()
    assert str(caught.value) == message
