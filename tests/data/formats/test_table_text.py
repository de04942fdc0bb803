"""Text tables: every record as Python's csv module reads it, in pieces of any size."""

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats import table_text as tables_records
from dlrmctl.data.formats.table_text import Dialect, read_header, read_records, to_frame

COMMA = Dialect(",", '"')
texts = st.text(alphabet='ab ,"\n\rß|', max_size=6)


def _read(path: Path, dialect: Dialect = COMMA, piece_bytes: int = 1 << 20):
    """All rows, their lines, and what is wrong with the others."""
    header = read_header(path, dialect)
    rows, lines, bad = [], [], []
    for records in read_records(path, dialect.quote, piece_bytes=piece_bytes):
        frame, lines_N, wrong = to_frame(records, header, header, dialect)
        rows += [tuple(value or "" for value in row) for row in frame.rows()]
        lines += lines_N.tolist()
        bad += wrong
    return rows, lines, bad


def _file(tmp_path: Path, content: bytes, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@given(rows=st.lists(st.tuples(texts, texts, texts), max_size=12), piece=st.integers(7, 60), crlf=st.booleans())
def test_records_are_those_of_pythons_csv(tmp_path_factory: pytest.TempPathFactory, rows, piece: int, crlf: bool):
    text = io.StringIO(newline="")
    # Python's writer leaves a lone carriage return without quotes, and its reader then ends the record there.
    quoting = csv.QUOTE_ALL if any("\r" in value for row in rows for value in row) else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator="\r\n" if crlf else "\n", quoting=quoting)
    writer.writerow(["a", "b", "c"])
    writer.writerows(rows)
    path = _file(tmp_path_factory.getbasetemp(), text.getvalue().encode())
    expected = list(csv.reader(io.StringIO(text.getvalue(), newline="")))[1:]
    found, lines, bad = _read(path, piece_bytes=piece)
    assert found == [tuple(row) for row in expected]
    assert not bad
    # A record stands on the line after those of the records before it.
    at = 2
    for row, line in zip(found, lines, strict=True):
        assert line == at
        at += 1 + sum(value.count("\n") for value in row)


@given(content=st.binary(max_size=60).map(lambda b: b"a,b\n" + b), piece=st.integers(5, 40))
def test_whatever_a_file_holds_the_pieces_agree(tmp_path_factory: pytest.TempPathFactory, content: bytes, piece: int):
    path = _file(tmp_path_factory.getbasetemp(), content)
    assert _read(path, piece_bytes=piece) == _read(path)


@given(st.text(alphabet='a,"\n', max_size=40).map(lambda t: "a,b\n" + t), st.integers(5, 40))
def test_whatever_quotes_do_every_line_is_in_a_record_or_bad(tmp_path_factory, content: str, piece: int):
    path = _file(tmp_path_factory.getbasetemp(), content.encode())
    rows, lines, bad = _read(path, piece_bytes=piece)
    assert lines == sorted(lines)
    assert len(rows) == len(lines)
    assert not {line.line for line in bad} & set(lines)


def test_reading_goes_on_at_any_place_with_the_same_pieces(tmp_path: Path):
    rows = [[f"{i}", 'x"y' if i % 3 else "new\nline"] for i in range(200)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["a", "b"], *rows])
    for name, content in (("t.csv", text.getvalue().encode()), ("t.csv.gz", gzip.compress(text.getvalue().encode()))):
        path = _file(tmp_path, content, name)
        pieces = list(read_records(path, '"', piece_bytes=97))
        assert len(pieces) > 20
        for at, piece in enumerate(pieces):
            again = list(read_records(path, '"', piece.after, piece_bytes=97))
            assert [p.content for p in again] == [p.content for p in pieces[at + 1 :]]
            assert [p.lines_R.tolist() for p in again] == [p.lines_R.tolist() for p in pieces[at + 1 :]]
            assert [p.after for p in again] == [p.after for p in pieces[at + 1 :]]
        assert pieces[-1].position == path.stat().st_size


def test_a_quote_that_is_never_closed_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables_records, "MAX_RECORD_BYTES", 100)
    lines = ["a,b", *(f'{i},"x"' for i in range(50)), '50,"y', *(f"{i},z" for i in range(51, 200))]
    for piece in (16, 64, 333, 1 << 20):
        rows, _, bad = _read(_file(tmp_path, "\n".join([*lines, ""]).encode()), piece_bytes=piece)
        assert [int(a) for a, _ in rows] == [i for i in range(200) if i != 50]
        assert [(b.line, b.reason) for b in bad] == [(52, "quote not closed")]


def test_a_quote_open_at_the_end_costs_one_line(tmp_path: Path):
    rows, _, bad = _read(_file(tmp_path, b'a,b\n1,2\n3,"4\n5,6\n'))
    assert rows == [("1", "2"), ("5", "6")]
    assert [(b.line, b.reason) for b in bad] == [(3, "quote not closed")]


@pytest.mark.parametrize("piece", [16, 64, 333, 1 << 20])
def test_a_line_that_is_too_long_is_one_bad_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int):
    monkeypatch.setattr(tables_records, "MAX_RECORD_BYTES", 100)
    content = b"a,b\n1,2\n3," + b"x" * 1000 + b"\n5,6\n7," + b"y" * 500
    rows, lines, bad = _read(_file(tmp_path, content), piece_bytes=piece)
    assert (rows, lines) == ([("1", "2"), ("5", "6")], [2, 4])
    assert [(b.line, b.reason) for b in bad] == [(3, "too long"), (5, "too long")]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"1", "wrong number of fields"),
        (b"1,2,3", "wrong number of fields"),
        (b"", "blank"),
        (b"\r", "blank"),
        (b"1,\xff", "not UTF-8"),
        (b'1,a"b"', "quote inside a field"),
        (b'1,"a"b', "quote inside a field"),
        (b'1,"a" "b"', "quote inside a field"),
    ],
)
def test_a_bad_record_is_left_out_with_its_line(tmp_path: Path, record: bytes, reason: str):
    rows, lines, bad = _read(_file(tmp_path, b'a,b\n"1\n1",2\n' + record + b"\n5,6\n"))
    assert (rows, lines) == ([("1\n1", "2"), ("5", "6")], [2, 5])
    assert [(b.line, b.reason) for b in bad] == [(4, reason)]


def test_without_a_quote_character_quotes_are_letters(tmp_path: Path):
    rows, _, bad = _read(_file(tmp_path, b'a\tb\n5" pipe\t"x\ny\t""\n'), Dialect("\t", ""))
    assert rows == [('5" pipe', '"x'), ("y", '""')]
    assert not bad


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path):
    path = _file(tmp_path, b"\xef\xbb\xbfa,b\n1,2\n")
    assert read_header(path, COMMA) == ["a", "b"]
    assert _read(path)[:2] == ([("1", "2")], [2])


def test_a_file_without_a_header_is_refused(tmp_path: Path):
    for content, word in ((b"\n1,2\n", "blank"), (b'"a,b\n1,2\n', "not closed"), (b"\xff,b\n", "UTF-8")):
        with pytest.raises(DataError, match=word):
            read_header(_file(tmp_path, content), COMMA)


def test_a_gzip_file_cut_short_is_refused(tmp_path: Path):
    whole = gzip.compress(b"a,b\n" + b"".join(b"%d,%d\n" % (i * 7919, i) for i in range(5000)))
    path = _file(tmp_path, whole[:-1000], "t.csv.gz")
    with pytest.raises(DataError, match="cut short"):
        list(read_records(path, '"'))
