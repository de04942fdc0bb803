"""Reads text tables in pieces of whole records, also with newlines in quotes, in bounded memory.

A record ends at a newline with an even number of quotes before it. A quote that is never closed would include the rest
of the file: a record longer than `MAX_RECORD_BYTES` loses its first line instead, and the next starts after it.
`read_pieces` finds where pieces end, `TextPiece.records` splits one.
`to_frame` makes columns of strings of a piece; records with a wrong number of fields or wrong quotes are omitted.
"""

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import polars as pl

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors
from dlrmctl.data.formats.raw import BadLine
from dlrmctl.data.formats.streams import GZIP_MARK, damage
from dlrmctl.data.remote.files import RemoteFile

MAX_RECORD_BYTES = 1 << 20
PIECE_BYTES = 1 << 22
_HEADER_BYTES = 1 << 16  # that are read at a time to find the first line
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Place:
    """The position where reading continues.

    Attributes:
        offset: bytes of the text in earlier pieces.
        read: bytes of the file that were read for them; pieces are the same if reading continues there.
        line: number of the next line, counted from 1.
        skipping: whether the next line started in an earlier piece and is dropped.
    """

    offset: int = 0
    read: int = 0
    line: int = 1
    skipping: bool = False


@dataclass(frozen=True)
class Records:
    """Consecutive records of a file, R of them.

    Attributes:
        content: content of the file.
        starts_R, ends_R: int64; record r is content[starts_R[r] : ends_R[r]], without its newline.
        lines_R: int64, the first line of each.
        bad: lines that are in no record, in order.
        after: the position where reading continues.
        position: bytes on disk of the file up to there.
    """

    content: bytes
    starts_R: np.ndarray
    ends_R: np.ndarray
    lines_R: np.ndarray
    bad: list[BadLine] = field(default_factory=list)
    after: Place = Place()
    position: int = 0


@dataclass(frozen=True)
class TextPiece:
    """Consecutive records of a file, not yet split, and the lines between them that are in none.

    Attributes:
        content: their bytes.
        line: number of the first line.
        offset: where a file that is not compressed has the content; None for others.
        after: the position where reading continues.
        position: bytes on disk of the file up to there.
    """

    content: bytes
    line: int
    offset: int | None
    after: Place
    position: int

    def records(self, quote: str) -> Records:
        """Splits them."""
        records, _, _ = split_records(self.content, quote, self.line, ended=True)
        return replace(records, after=self.after, position=self.position)


def read_records(
    path: Path | RemoteFile, quote: str, after: Place | None = None, piece_bytes: int = PIECE_BYTES
) -> Iterator[Records]:
    """Yields the records of a file from a position on, as `read_pieces`."""
    for piece in read_pieces(path, quote, after, piece_bytes):
        yield piece.records(quote)


def read_pieces(
    path: Path | RemoteFile, quote: str, after: Place | None = None, piece_bytes: int = PIECE_BYTES
) -> Iterator[TextPiece]:
    """Yields the records of a file from a position on, about `piece_bytes` at a time; detects gzip.

    This takes little time for a byte, so that one process can give work to many.

    Args:
        path: of the file.
        quote: one ASCII character; "" if newlines always end a record.

    Raises:
        DataError: if the file cannot be read, or is gzip and cut short or damaged.
    """
    place = after or Place()
    with io_errors(path, "read"), path.open("rb") as raw:
        compressed = raw.read(len(GZIP_MARK)) == GZIP_MARK
        raw.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
        with damage(str(path), "gzip"):
            stream.seek(place.offset)
            rest = stream.read(place.read - place.offset)
        line, skipping, ended = place.line, place.skipping, False
        while not ended:
            with damage(str(path), "gzip"):
                piece = stream.read(piece_bytes)
                read = stream.tell()
            ended, content = not piece, rest + piece
            if read == len(content):
                content = content.removeprefix(_UTF8_MARK)
            if skipping:
                end = content.find(b"\n") + 1
                skipping, line = end == 0, line + (end > 0)
                content = content[end:] if end else b""
            cut, too_long = len(content) if ended else _sure_end(content, quote), False
            if cut is None:
                _, cut, too_long = split_records(content, quote, line, ended=False)
            first, offset = line, None if compressed else read - len(content)
            content, rest = content[:cut], content[cut:]
            line, skipping = line + content.count(b"\n"), skipping or too_long
            if content:
                after = Place(read - len(rest), read, line, skipping)
                yield TextPiece(content, first, offset, after, raw.tell())


def _sure_end(content: bytes, quote: str) -> int | None:
    """Returns the end of the last record of a text that starts with one; None if one of them may be too long.

    Between two ends of records that are in neighboring windows of half the greatest length, no record is too long.
    """
    mark, size = quote.encode(), len(content)
    if not mark or mark not in content:
        end = content.rfind(b"\n") + 1
        return end if size - end <= MAX_RECORD_BYTES else None
    end, inside = 0, False
    step = MAX_RECORD_BYTES // 2
    for start in range(0, size, step):
        stop = min(start + step, size)
        inside ^= content.count(mark, start, stop) % 2 == 1
        high, quoted, found = stop, inside, False
        while not found and (newline := content.rfind(b"\n", start, high)) >= 0:
            quoted ^= content.count(mark, newline, high) % 2 == 1
            high, found = newline, not quoted
        if found:
            end = high + 1
        elif stop == start + step:
            return None
    return end


def split_records(content: bytes, quote: str, first: int, *, ended: bool) -> tuple[Records, int, bool]:
    """Splits a text into records; it must start with one.

    Args:
        content: the text.
        quote: as for `read_records`.
        first: number of its first line.
        ended: whether nothing follows, so that the end ends a record too.

    Returns:
        The records; the bytes of them and the bad lines; and whether the last bad line continues after the text.
    """
    array = np.frombuffer(content, dtype=np.uint8)
    newlines = np.flatnonzero(array == ord("\n"))
    if ended and content and not content.endswith(b"\n"):
        newlines = np.append(newlines, len(content))
    begins = np.append(0, newlines + 1)  # of lines, with the rest after the last of them
    odd = np.zeros(len(newlines), dtype=bool)  # quotes before the end of each line
    if quote and quote.encode() in content:
        odd = np.searchsorted(np.flatnonzero(array == ord(quote)), newlines) % 2 == 1
    firsts, lasts, bad, line, before = [], [], [], 0, False
    while line < len(newlines):
        last = line + np.flatnonzero(odd[line:] == before)
        start = np.append(line, last[:-1] + 1)[: len(last)]
        too_long = np.flatnonzero(newlines[last] - begins[start] > MAX_RECORD_BYTES)
        count = int(too_long[0]) if len(too_long) else len(last)
        firsts.append(start[:count])
        lasts.append(last[:count])
        line = int(last[count - 1]) + 1 if count else line
        if line == len(newlines) or (
            not len(too_long) and not ended and len(content) - begins[line] <= MAX_RECORD_BYTES
        ):
            break
        if newlines[line] - begins[line] > MAX_RECORD_BYTES:
            bad.append(_too_long(first + line))
        else:
            problem = f"a quote on this line is not closed within {MAX_RECORD_BYTES:,} bytes"
            bad.append(BadLine(first + line, "quote not closed", problem))
        before = bool(odd[line])
        line += 1
    used = min(int(begins[line]), len(content))
    skipping = not ended and line == len(newlines) and len(content) - used > MAX_RECORD_BYTES
    if skipping:
        bad.append(_too_long(first + line))
        used = len(content)
    first_R, last_R = (np.concatenate([np.empty(0, dtype=np.int64), *lines]) for lines in (firsts, lasts))
    return Records(content, begins[first_R], newlines[last_R], first + first_R, bad), used, skipping


def _too_long(line: int) -> BadLine:
    return BadLine(line, "too long", f"the line is longer than {MAX_RECORD_BYTES:,} bytes")


@dataclass(frozen=True)
class Dialect:
    """The separator of fields, one ASCII character, and the quote, one ASCII character or "" for none."""

    separator: str
    quote: str


def read_header(path: Path | RemoteFile, dialect: Dialect) -> list[str]:
    """Reads the names of the columns of a file.

    Raises:
        DataError: if its first line is bad, or it cannot be read.
    """
    for records in read_records(path, dialect.quote, piece_bytes=_HEADER_BYTES):
        if records.lines_R[:1].tolist() != [1]:
            raise DataError(f"{path}, line 1: {records.bad[0].problem}", "the first line names the columns")
        content, ends_R, good_R, bad = _well_formed(records, None, dialect)
        if not good_R[0]:
            raise DataError(f"{path}, line 1: {bad[0].problem}", "the first line names the columns")
        text = io.StringIO(content[: ends_R[0]].tobytes().decode(), newline="")
        if not dialect.quote:
            return next(csv.reader(text, delimiter=dialect.separator, quoting=csv.QUOTE_NONE))
        return next(csv.reader(text, delimiter=dialect.separator, quotechar=dialect.quote))
    raise DataError(f"{path}: the file is empty", "the first line names the columns")


def to_frame(
    records: Records, header: Sequence[str], wanted: Sequence[str], dialect: Dialect
) -> tuple[pl.DataFrame, np.ndarray, list[BadLine]]:
    """Parses the good records below the header.

    Args:
        records: records of a file.
        header: the names of its columns.
        wanted: the names of the needed columns.
        dialect: dialect of the file.

    Returns:
        The wanted columns as strings, null where empty; the line of each row, int64; and the bad lines, in order.
    """
    content, ends_R, good_R, bad = _well_formed(records, len(header), dialect)
    good_R &= records.lines_R > 1
    bad = sorted([*records.bad, *(line for line in bad if line.line > 1)], key=lambda line: line.line)
    text, count = _joined(content, records.starts_R, ends_R, good_R), int(good_R.sum())
    codes = {f"column_{header.index(name)}": name for name in wanted}
    names = [f"column_{number}" for number in range(len(header))]  # names may be empty or repeated
    if not count:
        frame = pl.DataFrame(schema=dict.fromkeys(wanted, pl.String))
        return frame, records.lines_R[good_R], bad
    frame = pl.read_csv(
        text,
        has_header=False,
        separator=dialect.separator,
        quote_char=dialect.quote or None,
        schema=dict.fromkeys(names, pl.String),
        columns=list(codes),
    )
    assert frame.height == count, "a record is a row"
    return frame.rename(codes).select(wanted), records.lines_R[good_R], bad


def _well_formed(
    records: Records, num_fields: int | None, dialect: Dialect
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[BadLine]]:
    """Returns the bytes with a newline at each of `ends_R`; these; the good records; and problems of the others."""
    content = np.frombuffer(records.content + b"\n", dtype=np.uint8).copy()
    starts_R = records.starts_R
    returns_R = (records.ends_R > starts_R) & (content[records.ends_R - 1] == ord("\r"))
    ends_R = records.ends_R - returns_R
    content[ends_R] = ord("\n")
    fields_R, quoted_R = _fields(content, starts_R, ends_R, dialect)
    good_R = quoted_R & (ends_R > starts_R)
    if num_fields is not None:
        good_R &= fields_R == num_fields
    if not records.content.isascii():
        good_R &= _is_utf8(records.content, starts_R, ends_R)
    bad = []
    for r in np.flatnonzero(~good_R).tolist():
        line, text = int(records.lines_R[r]), content[starts_R[r] : ends_R[r]].tobytes()
        bad.append(_problem(line, text, int(fields_R[r]), num_fields, quoted=bool(quoted_R[r])))
    return content, ends_R, good_R, bad


def _fields(
    content: np.ndarray, starts_R: np.ndarray, ends_R: np.ndarray, dialect: Dialect
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of fields of each record, and whether its quotes enclose whole fields."""
    separators = np.flatnonzero(content == ord(dialect.separator))
    quotes = np.flatnonzero(content == ord(dialect.quote)) if dialect.quote else np.empty(0, dtype=np.int64)
    before_R = np.searchsorted(quotes, starts_R)
    separators, owner = _owned(separators, starts_R, ends_R)
    if not len(quotes):
        return np.bincount(owner, minlength=len(starts_R)) + 1, np.ones(len(starts_R), dtype=bool)
    outside = (np.searchsorted(quotes, separators) - before_R[owner]) % 2 == 0
    fields_R = np.bincount(owner[outside], minlength=len(starts_R)) + 1
    # Every second quote closes. A doubled quote inside a field closes and opens again.
    kept, owner = _owned(quotes, starts_R, ends_R)
    opens = (np.searchsorted(quotes, kept) - before_R[owner]) % 2 == 0
    left, right = content[kept - 1], content[kept + 1]
    edge = np.where(opens, kept == starts_R[owner], kept + 1 == ends_R[owner])
    beside = np.where(opens, left, right)
    right_place = edge | (beside == ord(dialect.separator)) | (beside == ord(dialect.quote))
    quoted_R = np.ones(len(starts_R), dtype=bool)
    quoted_R[owner[~right_place]] = False
    return fields_R, quoted_R


def _owned(places: np.ndarray, starts_R: np.ndarray, ends_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places that are in a record, and the record of each."""
    if not len(starts_R):
        return places[:0], places[:0]
    owner = np.searchsorted(starts_R, places, side="right") - 1
    inside = (owner >= 0) & (places < ends_R[owner])
    return places[inside], owner[inside]


def _is_utf8(content: bytes, starts_R: np.ndarray, ends_R: np.ndarray) -> np.ndarray:
    """bool per record."""
    right_R = np.ones(len(starts_R), dtype=bool)
    if _decodes(content):
        return right_R
    high = np.flatnonzero(np.frombuffer(content, dtype=np.uint8) >= 0x80)
    for r in np.unique(_owned(high, starts_R, ends_R)[1]).tolist():
        right_R[r] = _decodes(content[starts_R[r] : ends_R[r]])
    return right_R


def _decodes(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _problem(line: int, text: bytes, fields: int, num_fields: int | None, *, quoted: bool) -> BadLine:
    if not text:
        return BadLine(line, "blank", "the line is blank")
    if not _decodes(text):
        return BadLine(line, "not UTF-8", "the line is not UTF-8")
    if not quoted:
        return BadLine(line, "quote inside a field", 'a quote is inside a field; if quotes are letters, set quote = ""')
    assert num_fields is not None
    return BadLine.of_fields(line, fields, num_fields)


def _joined(content: np.ndarray, starts_R: np.ndarray, ends_R: np.ndarray, good_R: np.ndarray) -> bytes:
    """Returns the good records, each followed by a newline."""
    starts, ends = starts_R[good_R], ends_R[good_R]
    if len(starts) and (starts[1:] == ends[:-1] + 1).all():
        return content[starts[0] : ends[-1] + 1].tobytes()
    edges = np.zeros(len(content) + 1, dtype=np.int8)
    edges[starts] += 1
    edges[ends + 1] -= 1
    return content[np.cumsum(edges[:-1], dtype=np.int8).astype(bool)].tobytes()
