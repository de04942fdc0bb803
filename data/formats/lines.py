"""Reads whole lines from a stream of text, in pieces of bounded size that do not depend on where reading starts."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.streams import Readable

MAX_LINE_BYTES = 1 << 16
PIECE_BYTES = 1 << 23
PIECE_LINES = 1 << 16  # more lines, which are too short to be good, would take more memory than their text
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Mark:
    """A position between two lines of a text.

    Attributes:
        offset: bytes of text before it.
        line: number of the line after it, counted from 1.
        crc32: CRC-32 of the text before it.
    """

    offset: int = 0
    line: int = 1
    crc32: int = 0


START = Mark()


@dataclass(frozen=True)
class Lines:
    """Consecutive lines of a text.

    Attributes:
        content: the lines, each ended by a newline; a line longer than `MAX_LINE_BYTES` may be cut, but not below that.
        first: number of the first line, counted from 1.
        ended: False if the text ended before the newline of the last line (`content` has one anyway).
        end: the position after the lines; without a checksum if it was not requested.
    """

    content: bytes
    first: int
    ended: bool
    end: Mark = START


def cut_lines(
    stream: Readable, start: Mark = START, piece_bytes: int = PIECE_BYTES, *, checked: bool = True
) -> Iterator[Lines]:
    """Yields the lines of a text from a position on, about `piece_bytes` at a time.

    A piece depends only on the text after its beginning, so that reading can continue at any of them.

    Args:
        stream: the text, at the position `start`.
        start: the beginning of a piece.
        piece_bytes: the most bytes of text in a piece, except for a longer line.
        checked: whether `Lines.end` needs a checksum.
    """
    mark, rest = start, b""
    while window := rest + stream.read(piece_bytes - len(rest)):
        at_end = len(window) < piece_bytes
        cut, num_lines = _piece_end(window)
        consumed = content = window[:cut]
        rest, ended, length = window[cut:], True, cut
        if not content and at_end:
            consumed, rest, ended, length, num_lines = window, b"", False, len(window), 1
            content = consumed + b"\n"
        crc32 = zlib.crc32(consumed, mark.crc32) if checked else 0
        if not consumed:
            content, rest, ended, length, crc32 = _long_line(stream, window, piece_bytes, mark, checked)
            num_lines = 1
        if mark.offset == 0:
            content = content.removeprefix(_UTF8_MARK)
        end = Mark(mark.offset + length, mark.line + num_lines, crc32)
        if content != b"\n" or ended:  # a text with only a mark has no line
            yield Lines(content, mark.line, ended, end)
        mark = end


def _piece_end(window: bytes) -> tuple[int, int]:
    """Returns the bytes and number of whole lines of a piece."""
    num_lines = int(np.count_nonzero(np.frombuffer(window, dtype=np.uint8) == ord("\n")))  # faster than `count`
    if num_lines > PIECE_LINES:
        ends = np.flatnonzero(np.frombuffer(window, dtype=np.uint8) == ord("\n"))
        return int(ends[PIECE_LINES - 1]) + 1, PIECE_LINES
    return window.rfind(b"\n") + 1, num_lines


def _long_line(
    stream: Readable, window: bytes, piece_bytes: int, mark: Mark, checked: bool
) -> tuple[bytes, bytes, bool, int, int]:
    """Reads a line longer than a piece; a bounded part of it is kept, which is still too long to be good.

    Returns:
        The kept part, ended by a newline; what was read after the line; whether it ended; its length; the checksum.
    """
    most = MAX_LINE_BYTES + 2  # a carriage return at its end may be removed
    kept, length, crc32 = window[:most], 0, mark.crc32
    while window:
        end = window.find(b"\n")
        part = window if end < 0 else window[: end + 1]
        length += len(part)
        crc32 = zlib.crc32(part, crc32) if checked else 0
        if length > len(part):
            kept += part.removesuffix(b"\n")[: most - len(kept)]
        if end >= 0:
            return kept + b"\n", window[end + 1 :], True, length, crc32
        window = stream.read(piece_bytes)
    return kept + b"\n", b"", False, length, crc32


def skip_text(stream: Readable, mark: Mark, name: str, piece_bytes: int = PIECE_BYTES) -> None:
    """Reads up to a position, to continue after it.

    Raises:
        DataError: if the text before it was changed.
    """
    left, crc32 = mark.offset, 0
    while left and (part := stream.read(min(left, piece_bytes))):
        crc32 = zlib.crc32(part, crc32)
        left -= len(part)
    if left or crc32 != mark.crc32:
        what = f"ends before byte {mark.offset:,}" if left else f"its first {mark.offset:,} bytes differ"
        raise DataError(f"{name}: the text has changed since it was read before: {what}", "start from the beginning")
