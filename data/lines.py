"""Whole lines from plain and gzip files, in pieces of bounded size."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from data.errors import DataError
from data.files import io_errors

MAX_LINE_BYTES = 1 << 16
PIECE_BYTES = 1 << 23
_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Lines:
    """Consecutive lines of a file.

    Attributes:
        content: the lines, each ended by a newline; a line longer than `MAX_LINE_BYTES` may be cut, not below that.
        first: number of the first line, counted from 1.
        ended: False if the file stopped before the newline of the last line (`content` has one all the same).
        position: bytes of the file consumed so far, as they lie on disk.
    """

    content: bytes
    first: int
    ended: bool
    position: int


def check_source(path: Path) -> int:
    """Size of a file in bytes.

    Raises:
        DataError: if it does not exist, is a directory, is empty or cannot be read.
    """
    if path.is_dir():
        raise DataError(f"{path}: a directory, expected a file", "name the files inside it")
    with io_errors(path, "read"):
        size = path.stat().st_size
        with path.open("rb"):
            pass
    if size == 0:
        raise DataError(f"{path}: the file is empty", "download it again")
    return size


def read_lines(path: Path, piece_bytes: int = PIECE_BYTES) -> Iterator[Lines]:
    """The lines of a file in order, about `piece_bytes` at a time; gzip is known by its first bytes.

    Raises:
        DataError: if the file cannot be read, or is gzip and cut short or damaged.
    """
    with io_errors(path, "read"), path.open("rb") as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
        first, rest = 1, b""
        while piece := _read(stream, piece_bytes, path):
            content = rest + (piece.removeprefix(_UTF8_MARK) if first == 1 and not rest else piece)
            cut = content.rfind(b"\n") + 1
            # What is kept of a line without end stays too long to be a good one, and bounded.
            content, rest = content[:cut], content[cut:][: MAX_LINE_BYTES + 1]
            if content:
                yield Lines(content, first, True, raw.tell())
                first += content.count(b"\n")
        if rest:
            yield Lines(rest + b"\n", first, False, raw.tell())


def _read(stream: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        how = "cut short" if isinstance(error, EOFError) else "damaged"
        raise DataError(f"{path}: the gzip file is {how}", "download it again") from error
