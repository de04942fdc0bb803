"""An array in its own file, checked when it is read."""

import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import file_crc32, io_errors, open_to_read, read_array
from dlrmctl.data.sealed import Values

_AGAIN = "prepare it again from the raw files"


@dataclass(frozen=True)
class KeptArray:
    """An array in its own file, beside the manifest that lists it.

    Attributes:
        file: its path, relative to the manifest.
        dtype: unsigned, little-endian.
        num_values: number of values in the file.
        crc32: CRC-32 of the file.
    """

    file: str
    dtype: np.dtype
    num_values: int
    crc32: int

    @classmethod
    def describe(cls, directory: Path, file: str, dtype: np.dtype) -> "KeptArray":
        """Describes an existing file.

        Raises:
            DataError: if it cannot be read.
        """
        with io_errors(directory / file, "read"):
            num_values = (directory / file).stat().st_size // dtype.itemsize
        return cls(file, dtype, num_values, file_crc32(directory / file))

    def check_size(self, directory: Path) -> None:
        """Raises:
        DataError: if the file is missing, or its size was changed.
        """
        path, expected = directory / self.file, self.num_values * self.dtype.itemsize
        with io_errors(path, "read"):
            found = path.stat().st_size
        if found != expected:
            raise DataError(f"{path}: changed since it was prepared: {found:,} bytes, not {expected:,}", _AGAIN)

    def check(self, directory: Path) -> None:
        """Checks the content of the file.

        Raises:
            DataError: if it is missing or was changed.
        """
        self.check_size(directory)
        if file_crc32(directory / self.file) != self.crc32:
            raise DataError(f"{directory / self.file}: changed since it was prepared", _AGAIN)

    def load(self, directory: Path) -> np.ndarray:
        """The array.

        Raises:
            DataError: if the file is missing or changed.
        """
        self.check_size(directory)
        array = read_array(directory / self.file, self.dtype, self.num_values)
        if zlib.crc32(array.data) != self.crc32:
            raise DataError(f"{directory / self.file}: changed since it was prepared", _AGAIN)
        return array

    def copy(self, source: Path, target: Path) -> None:
        """Copies the file from one directory to another.

        Raises:
            DataError: if it was changed, or cannot be read or written.
        """
        self.copy_to(source, target / self.file)

    def copy_to(self, source: Path, path: Path) -> None:
        """Copies the file to another path.

        Raises:
            DataError: if it was changed, or cannot be read or written.
        """
        with io_errors(source / self.file, "read"), open_to_read(source / self.file) as opened:
            with io_errors(path, "write"), path.open("wb") as file:
                shutil.copyfileobj(opened, file)
        if file_crc32(path) != self.crc32:
            raise DataError(f"{source / self.file}: changed since it was prepared", _AGAIN)

    @classmethod
    def from_values(cls, values: Values, dtype: np.dtype, num_values: int) -> "KeptArray":
        """Parses a manifest's "file" and "crc32" of an array.

        Raises:
            DataError: if one is missing or invalid.
        """
        file = PurePosixPath(values.text("file"))
        if file.is_absolute() or ".." in file.parts:
            raise DataError(f"{values.where}file = {str(file)!r} must lie beside the manifest")
        return cls(str(file), dtype, num_values, values.whole("crc32"))
