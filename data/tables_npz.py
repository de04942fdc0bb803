"""Arrays in .npy files and .npz archives, mapped where they lie as they are, read from front to back where packed."""

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from data.errors import DataError
from data.files import io_errors
from data.streams import damage

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: what follows are its name and extra fields, of these lengths


@dataclass(frozen=True)
class ArrayFile:
    """An array on disk, rows one after another.

    Attributes:
        name: as messages show it.
        path: of the file.
        shape, dtype: of the array.
        start: of its first row in the file; -1 if it is packed.
        member: its name in an archive; None outside one.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    member: str | None = None

    def mapped(self) -> np.ndarray:
        """The array as a view of the file.

        Raises:
            DataError: if the file is cut short.
        """
        with io_errors(self.path, "read"):
            found = self.path.stat().st_size - self.start
            needed = self.dtype.itemsize * int(np.prod(self.shape))
            if found < needed:
                raise DataError(f"{self.name}: {needed:,} bytes of values expected, {found:,} found", "it is cut short")
            if needed == 0:
                return np.empty(self.shape, dtype=self.dtype)
            return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.start, shape=self.shape)

    @contextmanager
    def unpacked(self) -> Iterator[IO[bytes]]:
        """The values of a packed array from front to back."""
        assert self.member is not None
        with damage(str(self.path), "npz"), zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            _read_header(self.name, stream)
            yield stream


def open_npy(path: Path) -> ArrayFile:
    """The array of a .npy file.

    Raises:
        DataError: if it is none, or its values are objects or lie column after column.
    """
    with io_errors(path, "read"), path.open("rb") as file:
        shape, dtype = _read_header(str(path), file)
        return ArrayFile(str(path), path, shape, dtype, file.tell())


def open_npz(path: Path) -> dict[str, ArrayFile]:
    """The arrays of a .npz file by their keys.

    Raises:
        DataError: if it is none, or as `open_npy`.
    """
    arrays = {}
    with io_errors(path, "read"), damage(str(path), "npz"), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            key, name = entry.filename.removesuffix(".npy"), f"{path}, array {entry.filename.removesuffix('.npy')}"
            with archive.open(entry) as member:
                shape, dtype = _read_header(name, member)
                header = member.tell()
            start = -1
            if entry.compress_type == zipfile.ZIP_STORED:
                file.seek(entry.header_offset)
                lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                start = entry.header_offset + _LOCAL_HEADER.size + sum(lengths) + header
            arrays[key] = ArrayFile(name, path, shape, dtype, start, entry.filename)
    return arrays


def _read_header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(file)
    except ValueError as error:
        raise DataError(f"{name}: not a NumPy array: {str(error).splitlines()[0][:100]}") from error
    if dtype.hasobject or dtype.names:
        raise DataError(f"{name}: an array of objects, expected numbers")
    if by_column and len(shape) > 1 and shape[1] > 1:
        raise DataError(f"{name}: the array lies column after column", "save it with np.ascontiguousarray(array)")
    return shape, dtype
