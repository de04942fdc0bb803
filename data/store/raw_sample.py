"""A sample of raw validation rows in a store, to check that an exported model scores raw rows as `predict` does.

It is an Arrow file beside the manifest, which does not name it: the examples do not depend on it, and stores of earlier
versions have none.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors, read_file, write_whole
from dlrmctl.data.formats.raw import Input, Position, RawPiece
from dlrmctl.data.store.manifest import RAW_SAMPLE

_MOST_BYTES = 1 << 28
_MOST_UNPACKED = 1 << 30  # bytes of a packed text that are unpacked again to reach the rows


def write_raw_sample(
    input: Input,
    store: Path,
    rows: int,
    chosen: Callable[[RawPiece, int], np.ndarray],
    *,
    after: Position | None,
    first_row: int,
    limit: int | None = None,
) -> int:
    """Writes the first chosen rows of an input to a store.

    Args:
        input: is read again.
        store: directory of the store.
        rows: the most rows.
        chosen: which rows of a piece are validation rows, bool [N], by the piece and the number of its first row.
        after: where reading begins.
        first_row: number of the first row after that.
        limit: the most good rows of the input that are read.

    Returns:
        The number of rows; 0, and no file, if the input cannot be read again, or that would take long.

    Raises:
        DataError: if a source cannot be read, or the disk is full.
    """
    again = input.with_raw()
    unpacked = after["offset"] if after and "crc32" in after else 0  # a packed text is read from its beginning
    if again is None or unpacked > _MOST_UNPACKED:
        return 0
    frames: list[pl.DataFrame] = []
    found = 0
    for task in again.tasks(after):
        piece = task.read()
        wanted = np.flatnonzero(chosen(piece, first_row)[: None if limit is None else max(limit - first_row, 0)])
        lines = piece.lines_N[wanted[: rows - found]]
        if len(lines):
            kept = (task.read_raw() if task.read_raw else piece).kept
            assert kept is not None
            frames.append(kept.frame[np.searchsorted(kept.lines, lines)])
            found += len(lines)
        first_row += len(piece)
        if found >= rows or (limit is not None and first_row >= limit):
            break
    if not found:
        return 0
    content = io.BytesIO()
    pl.concat(frames, how="vertical_relaxed").rechunk().write_ipc(content, compression="zstd")
    write_whole(store / RAW_SAMPLE, content.getvalue())
    return found


def read_raw_sample(store: Path) -> pl.DataFrame | None:
    """Returns the raw rows of a store, with their labels; None if it has none.

    Raises:
        DataError: if the file cannot be read or is damaged.
    """
    path = store / RAW_SAMPLE
    with io_errors(path, "read"):
        if not path.is_file():
            return None
    try:
        return pl.read_ipc(io.BytesIO(read_file(path, most=_MOST_BYTES)))
    except pl.exceptions.PolarsError as problem:
        raise DataError(f"{path}: damaged: {str(problem)[:100]}", "remove it; it only checks exports") from None
