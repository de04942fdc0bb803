"""Streams of bytes that are read in order: unpacked gzip and zip, and members of tar files."""

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from dlrmctl.data.errors import DataError

GZIP_MARK = b"\x1f\x8b"
AGAIN = "download it again"
_PACKED_BYTES = 1 << 18
_GZIP_WINDOW = 31  # for zlib: a gzip header, checksum and length around it


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Returns the next `size` bytes; fewer only at the end."""
        ...


@contextmanager
def damage(name: str, kind: str) -> Iterator[None]:
    """Context manager that turns errors of packed files into a DataError.

    Args:
        name: name of the source.
        kind: kind of the file, such as "gzip".
    """
    try:
        yield
    except EOFError as error:
        raise DataError(f"{name}: the {kind} file is cut short", AGAIN) from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name}: the {kind} file is damaged", AGAIN) from error
    except zipfile.BadZipFile as error:
        raise DataError(f"{name}: the {kind} file is cut short or damaged", AGAIN) from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile raises it if it needs a password or cannot unpack
        raise DataError(f"{name}: the {kind} file cannot be read here: {error}", "unpack it first") from error


def discard(stream: Readable, size: int) -> None:
    """Reads and drops bytes."""
    while size and (part := stream.read(min(size, _PACKED_BYTES))):
        size -= len(part)


class Joined:
    """Bytes that were read already, followed by the rest of a stream."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self._head, self._stream = head, stream

    def read(self, size: int, /) -> bytes:
        part, self._head = self._head[:size], self._head[size:]
        return part + self._stream.read(size - len(part)) if len(part) < size else part


class StreamPart:
    """The next `length` bytes of a stream; an error if it is shorter."""

    def __init__(self, stream: Readable, length: int, name: str) -> None:
        self._stream, self._left, self._name = stream, length, name

    def read(self, size: int, /) -> bytes:
        size = min(size, self._left)
        part = self._stream.read(size)
        if len(part) < size:
            raise DataError(f"{self._name}: the tar file is cut short", AGAIN)
        self._left -= size
        return part


class Gunzip:
    """The content of all members of a gzip stream. Faster than `gzip.GzipFile` by a third."""

    def __init__(self, packed: Readable, name: str) -> None:
        self._stream, self._name, self._packed = packed, name, b""
        self._inflate = zlib.decompressobj(_GZIP_WINDOW)

    def read(self, size: int, /) -> bytes:
        parts = []
        with damage(self._name, "gzip"):
            while size and not (self._inflate.eof and self._ended()):
                packed = self._packed or self._stream.read(_PACKED_BYTES)
                part = self._inflate.decompress(packed, size)
                self._packed = self._inflate.unconsumed_tail
                if not packed and not part and not self._inflate.eof:
                    raise EOFError
                parts.append(part)
                size -= len(part)
        return b"".join(parts)

    def _ended(self) -> bool:
        """Returns whether no other member follows; zeros may pad the last block of a tape."""
        packed = self._inflate.unused_data.lstrip(b"\0")
        while not packed:
            block = self._stream.read(_PACKED_BYTES)
            if not block:
                return True
            packed = block.lstrip(b"\0")
        self._packed, self._inflate = packed, zlib.decompressobj(_GZIP_WINDOW)
        return False


class ZipMember:
    """The content of a file in a zip file."""

    def __init__(self, archive: zipfile.ZipFile, member: str, name: str) -> None:
        self._name = name
        with damage(name, "zip"):
            self._stream = archive.open(member)

    def read(self, size: int, /) -> bytes:
        with damage(self._name, "zip"):
            return self._stream.read(size)
