"""Writes synthetic examples as rows in Criteo's format, which a preparation turns back into the examples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dlrmctl.data.schema import MISSING_ROW
from dlrmctl.data.synthetic.synthetic import BLOCK_ROWS, Synthetic
from dlrmctl.data.synthetic.teacher import TeacherScores

_LARGEST = 10**8  # integers are written in two halves of four digits
_HALF = 10**4
_FILLER = 0  # a byte that is in no text
_PADDED = [f"{i:04d}" for i in range(_HALF)]
_BARE = [f"{i:d}".rjust(4, "\0") for i in range(_HALF)]
_EMPTY = 2 * _HALF


def criteo_values(column: int, rows: np.ndarray) -> np.ndarray:
    """Returns the value of each row of a column's table, or of a number from `Synthetic.values`, uint32; distinct.

    Source: the finalizer of MurmurHash3 (Austin Appleby, public domain), of the row and the column's number.
    """
    mixed = rows.astype(np.uint32) ^ np.uint32((column + 1) * 0x9E3779B9 & 0xFFFFFFFF)
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows as text.

    Attributes:
        rows: the number of rows.
        text: their lines.
        tally: their labels and true probabilities.
    """

    rows: int
    text: bytes
    tally: TeacherScores


def chunk(source: Synthetic, start: int, stop: int) -> Chunk:
    """Writes training examples [start, stop) of a source without lists, which must be in one block."""
    index = start // BLOCK_ROWS
    examples = source.read_examples("train", index)
    part = slice(start - index * BLOCK_ROWS, stop - index * BLOCK_ROWS)
    labels_N = examples.block.labels_N[part]
    levels_IN = examples.levels_IN[:, part]
    integers_IN = np.stack([dense.integers[levels] for dense, levels in zip(source.dense, levels_IN, strict=True)])
    rows_FN = np.stack([ids[part] for ids in examples.block.ids_F])
    values_FN = np.stack([criteo_values(column, source.values(column, rows)) for column, rows in enumerate(rows_FN)])
    text = criteo_text(labels_N, integers_IN, integers_IN >= 0, values_FN, rows_FN != MISSING_ROW)
    tally = TeacherScores()
    tally.add(labels_N, examples.steps_N[part])
    return Chunk(stop - start, text, tally)


def chunk_edges(rows: int, ends: Iterable[int]) -> list[int]:
    """Returns the boundaries of the chunks of rows [0, rows): at blocks, and at `ends`."""
    return sorted({*range(0, rows, BLOCK_ROWS), rows, *ends})


def _words(texts: Sequence[str]) -> np.ndarray:
    """Returns texts of four bytes as uint32, which are copied at once."""
    return np.frombuffer("".join(texts).encode(), dtype=np.uint32)


_HEX = _words([f"{i:04x}" for i in range(1 << 16)])
# The lower half: alone, or after an upper one, or empty. The upper half: empty if it is 0.
_LOWER, _UPPER = _words([*_BARE, *_PADDED, "\0" * 4]), _words(["\0" * 4, *_BARE[1:]])


def criteo_text(
    labels_N: np.ndarray,
    integers_IN: np.ndarray,
    has_integer_IN: np.ndarray,
    values_FN: np.ndarray,
    has_value_FN: np.ndarray,
) -> bytes:
    """Formats lines of a label, integers, and values of 8 hexadecimal digits, separated by tabs, empty where missing.

    Args:
        labels_N: 0 or 1.
        integers_IN: integers between -10**8 and 10**8.
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
        """Returns a view of four bytes of every row, `step` bytes apart."""
        return np.ndarray((N, count), np.uint32, text.data, first, (width, step))

    upper, lower = np.divmod(sizes, _HALF)
    lower[upper > 0] += _HALF
    lower[~has_integer_IN] = _EMPTY
    places(3, 10, num_dense)[:] = _UPPER[upper].T
    places(7, 10, num_dense)[:] = _LOWER[lower].T
    for place, half in ((sparse + 1, values_FN >> np.uint32(16)), (sparse + 5, values_FN & np.uint32(0xFFFF))):
        places(place, 9, F)[:] = np.where(has_value_FN, _HEX[half], np.uint32(0)).T
    return text.tobytes().translate(None, bytes([_FILLER]))
