"""Examples as text in Criteo's format, a million rows a second: every field has room for its longest text, and what
it does not need is taken out.

N rows, I dense features, F sparse features.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from gzip import GzipFile
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from data.errors import DataError
from data.files import io_errors, sync_file

_LARGEST = 10**8  # integers are written in two halves of four digits
_HALF = 10**4
_FILLER = 0  # a byte that stands in no text
_GZIP_LEVEL = 1  # random digits are hardly smaller with more


def _words(texts: Sequence[str]) -> np.ndarray:
    """Texts of four bytes as numbers that copy at once, uint32."""
    return np.frombuffer("".join(texts).encode(), dtype=np.uint32)


_HEX = _words([f"{i:04x}" for i in range(1 << 16)])
_PADDED = [f"{i:04d}" for i in range(_HALF)]
_BARE = [f"{i:d}".rjust(4, "\0") for i in range(_HALF)]
# The lower half: as it is, or behind an upper one, or empty. The upper half: empty where it is 0.
_LOWER, _UPPER = _words([*_BARE, *_PADDED, "\0" * 4]), _words(["\0" * 4, *_BARE[1:]])
_EMPTY = 2 * _HALF


def criteo_text(
    labels_N: np.ndarray,
    integers_IN: np.ndarray,
    has_integer_IN: np.ndarray,
    values_FN: np.ndarray,
    has_value_FN: np.ndarray,
) -> bytes:
    """Lines with a label, integers, and values of 8 hexadecimal digits, separated by tabs; what is missing is empty.

    Args:
        labels_N: 0 or 1.
        integers_IN: whole numbers between -10**8 and 10**8.
        values_FN: uint32.
        has_integer_IN, has_value_FN: bool, False where missing.

    Raises:
        ValueError: if an integer has more than 8 digits.
    """
    num_dense, N = integers_IN.shape
    F = len(values_FN)
    sizes = np.abs(np.where(has_integer_IN, integers_IN, 0))
    if sizes.max(initial=0) >= _LARGEST:
        raise ValueError(f"the integer {sizes.max()} has more than 8 digits")
    # Per row: label; for each integer tab, sign, 4 + 4 digits; for each value tab, 4 + 4 digits; end of line.
    sparse = 1 + 10 * num_dense
    width = sparse + 9 * F + 1
    text = np.full((N, width), _FILLER, dtype=np.uint8)
    text[:, 0] = labels_N.astype(np.uint8) + ord("0")
    text[:, 1:sparse:10] = ord("\t")
    text[:, 2:sparse:10] = np.where((integers_IN < 0) & has_integer_IN, ord("-"), _FILLER).T
    text[:, sparse:-1:9] = ord("\t")
    text[:, -1] = ord("\n")

    def places(first: int, step: int, count: int) -> np.ndarray:
        """Four bytes of every row, `step` bytes apart, wherever they lie."""
        return np.ndarray((N, count), np.uint32, text.data, first, (width, step))

    upper, lower = np.divmod(sizes, _HALF)
    lower[upper > 0] += _HALF
    lower[~has_integer_IN] = _EMPTY
    places(3, 10, num_dense)[:] = _UPPER[upper].T
    places(7, 10, num_dense)[:] = _LOWER[lower].T
    for place, half in ((sparse + 1, values_FN >> np.uint32(16)), (sparse + 5, values_FN & np.uint32(0xFFFF))):
        places(place, 9, F)[:] = np.where(has_value_FN, _HEX[half], np.uint32(0)).T
    return text.tobytes().translate(None, bytes([_FILLER]))


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


def file_names(pattern: str, count: int) -> list[Path]:
    """The names of so many files; `{n}` in the pattern counts from 0.

    Raises:
        DataError: if several files would have one name, or the pattern has another field.
    """
    other = next((field for field in re.findall(r"\{[^{}]*\}", pattern) if field != "{n}"), None)
    if other is not None:
        raise DataError(f"{pattern}: {other} stands for nothing", "{n} stands for the number of a file")
    if count > 1 and "{n}" not in pattern:
        path = Path(pattern)
        suffixes = "".join(path.suffixes)
        better = path.with_name(path.name.removesuffix(suffixes) + "_{n}" + suffixes)
        raise DataError(f"{pattern}: {count} files need a name with {{n}} in it", f"'{better}'")
    return [Path(pattern.replace("{n}", str(n))) for n in range(count)]
