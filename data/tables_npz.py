"""Arrays in .npy files and .npz archives, a range of rows at a time; archives are not unpacked to the disk."""

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

    def rows(self, start: int, stop: int) -> np.ndarray:
        """A range of rows of an array that is not packed.

        Raises:
            DataError: if the file is cut short.
        """
        row_items = int(np.prod(self.shape[1:]))
        row_bytes, count = row_items * self.dtype.itemsize, (stop - start) * row_items
        with io_errors(self.path, "read"):
            # Read and not mapped: mapped pages count as this program's memory, and a file cut short would end it.
            values = np.fromfile(self.path, self.dtype, count, offset=self.start + start * row_bytes)
        if len(values) < count:
            raise DataError(
                f"{self.name}: the file is cut short after row {start + len(values) // max(row_items, 1):,}"
            )
        return values.reshape(stop - start, *self.shape[1:])

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
