"""The file that says how often each row of a column occurs in the training split."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data.files import io_errors
from data.schema import MISSING_ROW, RARE_ROW

_WINDOW = 1 << 20  # rows of the table that are written at once


def start_counts(path: Path, dtype: np.dtype, missing: int, rare: int) -> None:
    """Sets the counts of the reserved rows in a file that holds those of the others."""
    reserved = np.zeros(2, dtype)
    reserved[[MISSING_ROW, RARE_ROW]] = missing, rare
    with io_errors(path, "write"), path.open("r+b") as file:
        file.write(reserved.data)


def write_counts(path: Path, dtype: np.dtype, num_rows: int, counted: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes the counts of all rows.

    Args:
        path: of the new file.
        dtype: of a count.
        num_rows: of the table.
        counted: rows that occur, rising over all pieces, and how often each does.

    Raises:
        DataError: if the disk is full.
    """
    with io_errors(path, "write"):
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            for rows, counts in counted:
                cuts = (np.flatnonzero(np.diff(rows // rows.dtype.type(min(_WINDOW, num_rows)))) + 1).tolist()
                for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
                    if start == stop:
                        continue
                    first = int(rows[start])
                    window = np.zeros(int(rows[stop - 1]) - first + 1, dtype)
                    window[(rows[start:stop] - rows[start]).astype(np.int64)] = counts[start:stop]
                    file.seek(first * dtype.itemsize)
                    file.write(window.data)
            file.truncate(num_rows * dtype.itemsize)
