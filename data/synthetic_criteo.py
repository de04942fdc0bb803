"""Synthetic examples as rows in Criteo's format, which a preparation turns back into them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data.criteo_writer import criteo_text
from data.schema import MISSING_ROW
from data.synthetic import BLOCK_ROWS, Synthetic
from data.teacher import Tally


def criteo_values(column: int, rows: np.ndarray) -> np.ndarray:
    """The value that stands for each row of a column's table, uint32: different ones for different rows.

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
        rows: how many.
        text: their lines.
        tally: their labels and true probabilities.
    """

    rows: int
    text: bytes
    tally: Tally


def chunk(source: Synthetic, start: int, stop: int) -> Chunk:
    """Training examples [start, stop) of a source without lists, which lie in one block."""
    index = start // BLOCK_ROWS
    examples = source.read_examples("train", index)
    part = slice(start - index * BLOCK_ROWS, stop - index * BLOCK_ROWS)
    labels_N = examples.block.labels_N[part]
    levels_IN = examples.levels_IN[:, part]
    integers_IN = np.stack([dense.integers[levels] for dense, levels in zip(source.dense, levels_IN, strict=True)])
    rows_FN = np.stack([ids[part] for ids in examples.block.ids_F])
    values_FN = np.stack([criteo_values(column, rows) for column, rows in enumerate(rows_FN)])
    text = criteo_text(labels_N, integers_IN, integers_IN >= 0, values_FN, rows_FN != MISSING_ROW)
    tally = Tally()
    tally.add(labels_N, examples.steps_N[part])
    return Chunk(stop - start, text, tally)


def chunk_edges(rows: int, ends: Iterable[int]) -> list[int]:
    """Where the chunks of rows [0, rows) begin and end: at blocks, and at `ends`."""
    return sorted({*range(0, rows, BLOCK_ROWS), rows, *ends})
