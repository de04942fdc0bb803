"""Tables and lines fit the terminal, without broken numbers, names or words."""

import pytest

from dlrmctl.console.table import fitted
from dlrmctl.console.text import wrapped

COLUMNS = ["", "rows", "validation NE", "method"]
ROWS = [["cat_1", "10,131,227", "0.8123 ±0.0012", "qr"], ["cat_2", "3", "0.7000 ±0.0001", "full"]]


def test_without_a_limit_a_table_is_as_wide_as_it_must():
    assert fitted(COLUMNS, ROWS, None) == [
        "             rows   validation NE  method",
        "cat_1  10,131,227  0.8123 ±0.0012      qr",
        "cat_2           3  0.7000 ±0.0001    full",
    ]


def test_columns_are_omitted_in_their_order_and_named():
    assert fitted(COLUMNS, ROWS, 36, ["method", "rows"]) == [
        "             rows   validation NE",
        "cat_1  10,131,227  0.8123 ±0.0012",
        "cat_2           3  0.7000 ±0.0001",
        "omitted to fit the terminal: method",
    ]


def test_headings_are_broken_at_spaces():
    assert fitted(["", "validation NE"], [["a", "0.8123"]], 13) == [
        "   validation",
        "           NE",
        "a      0.8123",
    ]


def test_names_then_values_get_lines_of_their_own():
    name = "a/very/long/name/of/a/run"
    assert fitted(["", "step", "NE"], [[name, "1,200", "0.8123"]], 20) == [
        "   step      NE",
        name,
        "  1,200  0.8123",
    ]
    assert fitted(["", "step", "NE"], [[name, "1,200", "0.8123"]], 10) == [name, "  step  1,200", "  NE    0.8123"]


@pytest.mark.parametrize("width", range(5, 90))
def test_every_value_that_is_shown_is_whole(width: int):
    lines = fitted(COLUMNS, ROWS, width, ["method"])
    text = "\n".join(lines)
    assert all(value in text for row in ROWS for value in row[:3])
    assert all(len(line) <= width for line in lines) or width < 2 + len("validation NE  0.8123 ±0.0012")


def test_lines_are_broken_between_words_alone():
    text = "error: runs/2026-11-28/a-name-that-is-long: there is no checkpoint-of-this-name here"
    lines = wrapped(text, 30).split("\n")
    assert " ".join(line.strip() for line in lines) == text
    assert "  runs/2026-11-28/a-name-that-is-long:" in lines
    assert wrapped(text, None) == text
