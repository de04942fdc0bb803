"""Files whose troubles are told as data errors, and that appear whole or not at all."""

import errno
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import GzipFile
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from dlrmctl.data.errors import DataError

_GZIP_LEVEL = 1  # random digits are hardly smaller with more
_PIECE_BYTES = 1 << 24


@contextmanager
def io_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns what the system says about `path` into a DataError.

    Args:
        path: the file or directory at work.
        doing: "read" or "write".
    """
    try:
        yield
    except OSError as error:
        hint = None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space, or choose an output directory on another disk"
        elif error.errno == errno.EFBIG:
            hint = "a file may not grow so large here: raise the limit (`ulimit -f`), or choose another disk"
        elif error.errno in (errno.EACCES, errno.EPERM):
            hint = "check the permissions of the file and of its directory"
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{path}: cannot {doing}: {reason}", hint) from error


def sync_file(path: Path) -> None:
    """Waits until the file (or the directory's list of names) is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under another name first, so that `path` never holds a part of it.

    Raises:
        DataError: if the disk is full or the place may not be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with io_errors(path, "write"):
        temporary.write_bytes(content)
        sync_file(temporary)
        temporary.replace(path)
        sync_file(path.parent)


def read_array(path: Path, dtype: np.dtype, count: int, offset: int = 0) -> np.ndarray:
    """`count` numbers that begin at byte `offset` of a file.

    Raises:
        DataError: if it cannot be read, or ends before.
    """
    array = np.empty(count, dtype)
    content, at = array.view(np.uint8).data, 0
    with io_errors(path, "read"), path.open("rb", buffering=0) as file:
        file.seek(offset)
        while at < len(content) and (read := file.readinto(content[at:])):
            at += read
    if at < len(content):
        raise DataError(f"{path}: {offset + at:,} bytes, expected at least {offset + len(content):,}")
    return array


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that appears under its name when the block ends well, and leaves nothing behind when not.

    Args:
        path: compressed if it ends in .gz; another file of the name is replaced.

    Raises:
        DataError: if the disk is full or the place may not be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with io_errors(path, "write"):
            with open(temporary, "wb") as file:
                if path.suffix == ".gz":
                    # Without name and time of its own: equal rows give equal files.
                    with GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                        yield cast(BinaryIO, packed)
                else:
                    yield file
            sync_file(temporary)
            temporary.replace(path)
            sync_file(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def file_crc32(path: Path) -> int:
    crc32 = 0
    with io_errors(path, "read"), path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            crc32 = zlib.crc32(piece, crc32)
    return crc32
