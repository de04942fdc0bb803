"""Good lines become rows, certain losses are repaired, and everything else is named."""

import numpy as np
import pytest

from dlrmctl.data.formats.criteo import LOST_FIELDS, parse
from dlrmctl.data.formats.criteo_digits import transform_dense
from dlrmctl.data.formats.lines import MAX_LINE_BYTES, Lines
from dlrmctl.data.formats.raw import BadLine, RawPiece
from tests.data.criteo_files import Example, Row, as_text, make_rows, without_nan


def parse_text(text: bytes, **settings: bool) -> RawPiece:
    return parse(Lines(text if text.endswith(b"\n") else text + b"\n", 1, text.endswith(b"\n")), **settings)


def plain(row: Row) -> Example:
    """A row read the slow and obvious way."""
    dense = [float(np.float16(np.log(max(int(x), -2) + 3.0))) if x else None for x in row[1:14]]
    return int(row[0]), dense, [int(value, 16) if value else None for value in row[14:]]


def told(rows: RawPiece) -> list[Example]:
    out = []
    for n in range(len(rows.lines_N)):
        sparse = [int(c.values[n]) if c.present_N is not None and c.present_N[n] else None for c in rows.sparse]
        out.append((int(rows.labels_N[n]), without_nan(rows.dense_IN[:, n]), sparse))
    return out


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_are_what_a_plain_reading_gives(end: str) -> None:
    rows = make_rows(300)
    parsed = parse_text(as_text(rows, end))
    assert told(parsed) == [plain(row) for row in rows]
    assert parsed.lines_N.tolist() == list(range(1, 301))
    assert not parsed.bad
    assert not parsed.repaired


def test_a_missing_integer_is_apart_from_every_value() -> None:
    values = np.array([-(2**31), -3, -2, -1, 0, 1, 10**12])
    dense = transform_dense(values, np.ones(7, dtype=bool))
    assert dense[:3].tolist() == [0, 0, 0]
    assert (np.diff(dense[2:].astype(float)) > 0).all()
    assert np.isnan(transform_dense(values, np.zeros(7, dtype=bool))).all()


def test_lines_that_lost_empty_fields_at_their_end_are_repaired() -> None:
    rows = make_rows(6)
    for row, lost in zip(rows, (0, 1, 2, 11, 25, 0), strict=True):
        row[39 - lost] = "0badcafe"
        row[40 - lost :] = [""] * lost
    text = b"".join("\t".join(row).rstrip("\t").encode() + b"\n" for row in rows)
    parsed = parse_text(text)
    assert told(parsed) == [plain(row) for row in rows]
    assert parsed.repaired == {LOST_FIELDS: 4}
    assert not parsed.bad


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_what_was_lost_must_be_certain(end: bytes) -> None:
    (row,) = make_rows(1)
    row[1:] = ["7"] * 13 + ["0badcafe"] * 26
    doubtful = [
        row[:14],  # the last field is an integer
        [*row[:20], "0badcaf"],  # seven digits: perhaps cut
        [*row[:20], "0badcafg"],
        [row[0], "0badcafe", *row[2:30]],  # a field does not parse in its place
        [*row, "0badcafe"],
    ]
    counts = ["14", "21", "21", "30", "41"]
    bad = parse_text(b"".join("\t".join(r).encode() + end for r in doubtful)).bad
    assert [b.problem for b in bad] == [f"{count} fields, expected 40" for count in counts]
    assert [b.line for b in bad] == [1, 2, 3, 4, 5]
    assert {b.reason for b in bad} == {"wrong number of fields"}


def test_a_last_line_without_newline_is_kept_only_if_it_is_surely_whole() -> None:
    (row,) = make_rows(1)
    row[30] = "0badcafe"
    short = "\t".join(row[:31]).encode()
    assert parse_text(short + b"\n").repaired == {LOST_FIELDS: 1}
    assert parse_text(short).bad == [BadLine(1, "wrong number of fields", "31 fields, expected 40", extra_fields=-9)]
    row[39] = "0badcafe"
    assert told(parse_text("\t".join(row).encode())) == [plain(row)]
    for cut in (4, 8):
        (bad,) = parse_text("\t".join(row).encode()[:-cut]).bad
        assert bad.problem == "the last line has no newline and may be cut short"


@pytest.mark.parametrize(
    ("field", "value", "reason", "problem"),
    [
        (0, "2", "label not 0 or 1", "the label is '2', expected 0 or 1"),
        (0, "", "label not 0 or 1", "the label is missing"),
        (0, "label", "label not 0 or 1", "the label is 'label', expected 0 or 1"),
        (3, "1.5", "not an integer", "int_3 is '1.5', expected an integer"),
        (13, " 4", "not an integer", "int_13 is ' 4', expected an integer"),
        (14, "xyz", "not hexadecimal", "cat_1 is 'xyz', expected at most 8 hexadecimal digits"),
        (39, "100000000", "not hexadecimal", "cat_26 is '100000000', expected at most 8 hexadecimal digits"),
        (39, "-1", "not hexadecimal", "cat_26 is '-1', expected at most 8 hexadecimal digits"),
        (20, '"0badcafe"', "not hexadecimal", "cat_7 is '\"0badcafe\"', expected at most 8 hexadecimal digits"),
        (20, "é", "not hexadecimal", "cat_7 is 'é', expected at most 8 hexadecimal digits"),
        (20, "z" * 99, "not hexadecimal", f"cat_7 is '{'z' * 40}...', expected at most 8 hexadecimal digits"),
    ],
)
def test_a_wrong_value_is_named_and_its_neighbours_are_kept(field: int, value: str, reason: str, problem: str) -> None:
    rows = make_rows(5)
    rows[2][field] = value
    parsed = parse_text(as_text(rows))
    assert parsed.bad == [BadLine(3, reason, problem)]
    assert told(parsed) == [plain(row) for row in rows[:2] + rows[3:]]
    assert parsed.lines_N.tolist() == [1, 2, 4, 5]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ([0], ["0", "1"], ["+1", "-0", "01", "00", " 1", "1 ", "1.0", "true", "2", "-1", "257"]),
        (
            [1, 13],
            ["", "0", "-0", "-1", "007", "-9223372036854775808"],
            ["+5", "+0", "1e3", " 5", "5 ", "--5", "-", "0x5", "1_000", "5.", "٣", "9223372036854775808"],
        ),
        (
            [14, 39],
            ["", "0", "1a", "1A", "00000000", "ffffffff"],
            ["+1a", "0x1a", "-1", "-0", "+0", "-", " 1a", "1a ", "1_a", "000000001", "100000000", "g", "1.0"],
        ),
    ],
)
def test_only_plain_digits_are_numbers(fields: list[int], right: list[str], wrong: list[str], alone: bool) -> None:
    for field in fields:
        (row,) = make_rows(1)
        good, bad = ([[*row[:field], value, *row[field + 1 :]] for value in values] for values in (right, wrong))
        assert told(parse_text(as_text(good))) == [plain(row) for row in good]
        if alone:  # what one field needs must not hang on what another one holds
            assert [value for value, one in zip(wrong, bad, strict=True) if not parse_text(as_text([one])).bad] == []
        else:
            parsed = parse_text(as_text(good + bad))
            assert [line.line for line in parsed.bad] == list(range(len(good) + 1, len(good + bad) + 1))
            assert told(parsed) == [plain(row) for row in good]


def test_lines_that_are_not_text_blank_or_endless_are_named() -> None:
    good = as_text(make_rows(1))
    text = good + b"\n" + good + good.replace(b"\t", b"\t\xff", 1) + b"1" * (MAX_LINE_BYTES + 1) + b"\n" + good
    parsed = parse_text(text)
    assert [(bad.line, bad.reason) for bad in parsed.bad] == [(2, "blank"), (4, "not UTF-8"), (5, "too long")]
    assert parsed.bad[1].problem == "byte 3 of the line, 0xff, is not UTF-8"
    assert parsed.lines_N.tolist() == [1, 3, 6]


def test_nothing_good_is_no_rows() -> None:
    parsed = parse_text(b"PK\x03\x04\x00\xff\xfe\n\n")
    assert told(parsed) == []
    assert parsed.dense_IN.shape == (13, 0)
    assert [len(column.values) for column in parsed.sparse] == [0] * 26
    assert len(parsed.bad) == 2


def test_rows_without_labels_can_be_read() -> None:
    rows = make_rows(20)
    parsed = parse_text(as_text([row[1:] for row in rows]), labelled=False)
    assert [row[1:] for row in told(parsed)] == [plain(row)[1:] for row in rows]
    (bad,) = parse_text(as_text(rows[:1]), labelled=False).bad
    assert bad.problem == "40 fields, expected 39"
