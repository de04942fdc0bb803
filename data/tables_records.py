"""Text tables in pieces of whole records, whatever their quotes enclose, in bounded memory.

A record ends at a newline with an even number of quotes before it. A quote that is never closed would swallow the
rest of the file: a record longer than `MAX_RECORD_BYTES` loses its first line instead, and the next starts after that.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from data.files import io_errors
from data.raw import BadLine
from data.streams import GZIP_MARK, damage

MAX_RECORD_BYTES = 1 << 20
PIECE_BYTES = 1 << 22
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Place:
    """Where reading goes on.

    Attributes:
        offset: bytes of the text that lie in earlier pieces.
        read: bytes that were taken off the file for them; pieces are the same when reading goes on there.
        line: number of the next line, counted from 1.
        skipping: the next line started in an earlier piece, and is dropped.
    """

    offset: int = 0
    read: int = 0
    line: int = 1
    skipping: bool = False


@dataclass(frozen=True)
class Records:
    """Consecutive records of a file, R of them.

    Attributes:
        content: of the file.
        starts_R, ends_R: int64; record r is content[starts_R[r] : ends_R[r]], without its newline.
        lines_R: int64, the line each begins on.
        bad: lines that are in no record, in order.
        after: where reading goes on.
        position: bytes of the file up to there, as it lies on disk.
    """

    content: bytes
    starts_R: np.ndarray
    ends_R: np.ndarray
    lines_R: np.ndarray
    bad: list[BadLine] = field(default_factory=list)
    after: Place = Place()
    position: int = 0


def read_records(
    path: Path, quote: str, after: Place | None = None, piece_bytes: int = PIECE_BYTES
) -> Iterator[Records]:
    """The records of a file from a place on, about `piece_bytes` at a time; gzip is known by its first bytes.

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
            records, used, too_long = split_records(content, quote, line, ended=ended)
            line, rest, skipping = line + content.count(b"\n", 0, used), content[used:], skipping or too_long
            after = Place(read - len(rest), read, line, skipping)
            if len(records.lines_R) or records.bad:
                yield replace(records, after=after, position=raw.tell())


def split_records(content: bytes, quote: str, first: int, *, ended: bool) -> tuple[Records, int, bool]:
    """The records of a text that starts with one.

    Args:
        content: the text.
        quote: as for `read_records`.
        first: number of its first line.
        ended: whether nothing follows, so that the end ends a record too.

    Returns:
        The records; the bytes they and the bad lines take; and whether the last bad line has its end still to come.
    """
    array = np.frombuffer(content, dtype=np.uint8)
    newlines = np.flatnonzero(array == ord("\n"))
    if ended and content and not content.endswith(b"\n"):
        newlines = np.append(newlines, len(content))
    begins = np.append(0, newlines + 1)  # of lines, with what follows the last of them
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
