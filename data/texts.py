"""Open texts: a plain or packed file, a file inside an archive, a pipe or standard input."""

import stat
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data.errors import DataError
from data.files import io_errors
from data.streams import GZIP_MARK, Gunzip, Joined, Part, Readable, ZipMember, damage, discard

STANDARD_INPUT = "-"
HEAD_BYTES = 512  # of a tar file: its first header
_ZIP_MARK, _TAR_MARK, _TAR_MARK_AT = b"PK\x03\x04", b"ustar", 257
_OTHERS = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"PAR1": "Parquet",
    b"\x93NUMPY": "npy",
    b"PK\x05\x06": "empty zip",
}


@dataclass(frozen=True)
class TextSource:
    """A text and where it lies.

    Attributes:
        name: as messages show it.
        path: of the file; None for standard input.
        num_bytes: what the text takes on disk; 0 where unknown.
        zip_member: its name in a zip file.
        start, length: its place in a (decompressed) tar file; no length if it is not in one.
    """

    name: str
    path: Path | None
    num_bytes: int
    zip_member: str | None = None
    start: int = 0
    length: int | None = None


class Text:
    """The bytes of a text from front to back, unpacked.

    Args:
        source: what to read.
        file: opened at its beginning.

    Attributes:
        seekable: whether `seek` works; else whatever lies before a place must be read.
    """

    def __init__(self, source: TextSource, file: BinaryIO) -> None:
        self.source, self.seekable, self._file = source, False, file
        in_archive = source.zip_member is not None or source.length is not None
        stream = self._outer()
        self._base = file.tell() if in_archive else 0
        if in_archive:
            head = stream.read(len(GZIP_MARK))
            joined = Joined(head, stream)
            packed = head == GZIP_MARK
            self.seekable &= not packed
            stream = Gunzip(joined, source.name) if packed else joined
        self._stream: Readable = stream

    def _outer(self) -> Readable:
        """The source, which is still packed if it is a gzip file inside an archive."""
        source, file = self.source, self._file
        if source.zip_member is not None:
            with damage(source.name, "zip"):
                return ZipMember(zipfile.ZipFile(file), source.zip_member, source.name)
        head = file.read(HEAD_BYTES)
        refuse_others(source.name, head)
        regular = source.path is not None and is_regular(source.path)
        if not regular and (is_zip(head) or is_tar(head)):
            raise DataError(f"{source.name}: an archive comes out of a pipe, expected text", "name the file itself")
        if regular and not head.startswith(GZIP_MARK):
            self.seekable = True
            return self._from(0)
        stream: Readable = Joined(head, file)
        if head.startswith(GZIP_MARK):
            stream = Gunzip(stream, source.name)
        if source.length is not None:
            discard(stream, source.start)
            stream = Part(stream, source.length, source.name)
        return stream

    def _from(self, offset: int) -> Readable:
        self._file.seek(self.source.start + offset)
        if self.source.length is None:
            return self._file
        return Part(self._file, self.source.length - offset, self.source.name)

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes of text; fewer only at the end."""
        with io_errors(Path(self.source.name), "read"):
            return self._stream.read(size)

    def seek(self, offset: int) -> None:
        """Goes to a byte of the text, if it is `seekable`."""
        assert self.seekable
        self._stream = self._from(offset)

    def bytes_read(self) -> int:
        """What was read of the source, as it lies on disk; 0 where unknown."""
        return min(self._file.tell() - self._base, self.source.num_bytes) if self.source.num_bytes else 0


@contextmanager
def open_text(source: TextSource) -> Iterator[Text]:
    """Opens a source at its beginning.

    Raises:
        DataError: if it cannot be read, or is known to hold something else than text.
    """
    with ExitStack() as opened:
        with io_errors(source.path or Path(source.name), "read"):
            # Standard input is not ours to close.
            file = opened.enter_context(open(source.path or 0, "rb", closefd=source.path is not None))
            text = Text(source, file)
        yield text


def is_regular(path: Path) -> bool:
    """Whether it can be read again and again, unlike a pipe."""
    return stat.S_ISREG(path.stat().st_mode)


def is_zip(head: bytes) -> bool:
    """Whether a file that begins so is a zip file."""
    return head.startswith(_ZIP_MARK)


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is a tar file."""
    return head[_TAR_MARK_AT:].startswith(_TAR_MARK)


def refuse_others(name: str, head: bytes) -> None:
    """Raises DataError if a file that begins so is known to hold something else."""
    for mark, what in _OTHERS.items():
        if head.startswith(mark):
            raise DataError(f"{name}: the file is {what}, expected text", "plain, gzip, tar and zip files can be read")
