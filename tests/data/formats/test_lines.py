"""Pieces hold whole lines, are the same wherever one starts, and are bounded whatever the text is."""

import io
import random

import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats import lines as lines_module
from dlrmctl.data.formats.lines import START, Lines, Mark, cut_lines, skip_text

TEXT = b"".join(b"x" * random.Random(n).randrange(40) + b"\n" for n in range(200))


def pieces_of(text: bytes, piece_bytes: int, start: Mark = START) -> list[Lines]:
    stream = io.BytesIO(text)
    stream.seek(start.offset)
    return list(cut_lines(stream, start, piece_bytes))


@pytest.mark.parametrize("ending", [b"", b"no newline", b"\n\n"])
@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 1000, 1 << 20])
def test_pieces_together_are_the_text(piece_bytes: int, ending: bytes) -> None:
    text = TEXT + ending
    pieces = pieces_of(text, piece_bytes)
    assert b"".join(piece.content for piece in pieces) == (text if text.endswith(b"\n") else text + b"\n")
    assert [piece.ended for piece in pieces[:-1]] == [True] * (len(pieces) - 1)
    assert pieces[-1].ended == text.endswith(b"\n")
    assert pieces[-1].end.offset == len(text)
    line = 1
    for piece in pieces:
        assert piece.first == line
        line += piece.content.count(b"\n")
        assert piece.end.line == line


@pytest.mark.parametrize("text", [TEXT, b"\xef\xbb\xbf" + TEXT + b"cut", TEXT + b"y" * 500 + b"\n" + TEXT, b"\n" * 90])
@pytest.mark.parametrize("piece_bytes", [13, 64, 333])
def test_pieces_are_the_same_from_wherever_one_starts(
    monkeypatch: pytest.MonkeyPatch, text: bytes, piece_bytes: int
) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 50)
    monkeypatch.setattr(lines_module, "PIECE_LINES", 8)
    pieces = pieces_of(text, piece_bytes)
    assert len(pieces) > 3
    for number, piece in enumerate(pieces):
        assert pieces_of(text, piece_bytes, piece.end) == pieces[number + 1 :]


def test_a_piece_has_few_lines_even_if_they_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "PIECE_LINES", 16)
    pieces = pieces_of(b"\n" * 100, 1 << 20)
    assert [piece.content.count(b"\n") for piece in pieces] == [16] * 6 + [4]


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("piece_bytes", [10, 128, 999, 1000, 1001])
def test_a_line_without_end_takes_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, piece_bytes: int, ended: bool
) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 1000)
    text = b"good\n" + b"\t" * 50_000 + b"\ngood\n" + b"x" * 50_000 + b"\n" * ended
    pieces = pieces_of(text, piece_bytes)
    assert max(len(piece.content) for piece in pieces) <= max(1003, piece_bytes)
    assert [len(line) for line in b"".join(p.content for p in pieces).splitlines()] == [4, 1002, 4, 1002]
    assert pieces[-1].end.offset == len(text)
    assert pieces[-1].first == 4
    assert pieces[-1].ended == ended


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    (piece,) = pieces_of(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", 100)
    assert piece.content == b"a\n\xef\xbb\xbfb\n"
    assert piece.end.offset == 10
    assert pieces_of(b"\xef\xbb\xbf", 100) == []


def test_text_that_has_changed_before_a_place_is_noticed() -> None:
    end = pieces_of(TEXT, 500)[2].end
    stream = io.BytesIO(TEXT)
    skip_text(stream, end, "day_0.gz", 100)
    assert stream.tell() == end.offset
    changed = TEXT[:20] + b"!" + TEXT[21:]
    with pytest.raises(DataError, match=r"day_0\.gz: the text has changed .* first [\d,]+ bytes differ"):
        skip_text(io.BytesIO(changed), end, "day_0.gz")
    with pytest.raises(DataError, match=r"ends before byte"):
        skip_text(io.BytesIO(TEXT[:100]), end, "day_0.gz")
