"""Criteo rows that are in no store, as the batches a trained model can score."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.batch import Batch
from data.criteo import SPARSE, parse
from data.errors import DataError
from data.gather import join_batch, pick_rows
from data.lines import check_source, read_lines
from data.raw import BadLine
from data.source import Block
from data.vocabulary import Encoder


@dataclass(frozen=True)
class NewRows:
    """The rows of one piece of a file, in order.

    Attributes:
        block: the good rows; labels are 0 where the file has none.
        lines_N: int64, the line each row stands on, counted from 1.
        repaired: rows whose line had to be mended, by what was mended.
        bad: the lines left out.
    """

    block: Block
    lines_N: np.ndarray
    repaired: Mapping[str, int]
    bad: Sequence[BadLine]


def read_new_rows(path: Path | str, encoders: Mapping[str, Encoder], *, labelled: bool) -> Iterator[NewRows]:
    """A plain or gzip file in Criteo's format, piece by piece.

    Args:
        path: of the file.
        encoders: of the store that the model was trained on, `Store.encoders()`.
        labelled: whether each line begins with a label, as in training files.

    Raises:
        DataError: if the file cannot be used, or the encoders are not those of Criteo's columns.
    """
    if set(encoders) != set(SPARSE):
        raise DataError(f"the store has the features {', '.join(encoders)}; Criteo's are {SPARSE[0]} to {SPARSE[-1]}")
    check_source(Path(path))
    return _read(Path(path), encoders, labelled)


def _read(path: Path, encoders: Mapping[str, Encoder], labelled: bool) -> Iterator[NewRows]:
    for lines in read_lines(path):
        rows = parse(lines, labelled=labelled)
        ids_F = []
        for name, column in zip(SPARSE, rows.sparse, strict=True):
            assert column.present_N is not None
            ids_F.append(encoders[name].encode(column.values, column.present_N))
        yield NewRows(Block(rows.dense_IN, ids_F, rows.labels_N), rows.lines_N, rows.repaired, rows.bad)


def cut_batches(block: Block, keys: tuple[str, ...], batch_size: int) -> Iterator[Batch]:
    """The rows of a block in order, `batch_size` at a time; the last batch has what is left."""
    rows = pick_rows(block, np.arange(len(block)))
    for start in range(0, len(block), batch_size):
        stop = min(start + batch_size, len(block))
        yield join_batch([(rows, start, stop)], keys, stop - start)
