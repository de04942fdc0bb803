"""Criteo rows that are in no store, as the batches a trained model can score."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.batch import Batch
from data.criteo import SPARSE
from data.criteo_input import CriteoInput
from data.errors import DataError
from data.gather import join_batch, pick_rows
from data.raw import BadLine
from data.source import Block
from data.vocabulary import Encoder


@dataclass(frozen=True)
class NewRows:
    """The rows of one piece of a text, in order.

    Attributes:
        block: the good rows; labels are 0 where the text has none.
        source: name of the text.
        lines_N: int64, the line of it each row stands on, counted from 1.
        repaired: rows whose line had to be mended, by what was mended.
        bad: the lines left out.
    """

    block: Block
    source: str
    lines_N: np.ndarray
    repaired: Mapping[str, int]
    bad: Sequence[BadLine]


def read_new_rows(
    sources: Path | str | Sequence[Path | str], encoders: Mapping[str, Encoder], *, labelled: bool
) -> Iterator[NewRows]:
    """Texts in Criteo's format, piece by piece.

    Args:
        sources: one or more of what `expand_sources` takes; of an archive, train.txt is read if `labelled`, else
            test.txt.
        encoders: of the store that the model was trained on, `Store.encoders()`.
        labelled: whether each line begins with a label, as in training files.

    Raises:
        DataError: if a source cannot be used, or the encoders are not those of Criteo's columns.
    """
    if set(encoders) != set(SPARSE):
        raise DataError(f"the store has the features {', '.join(encoders)}; Criteo's are {SPARSE[0]} to {SPARSE[-1]}")
    several = [sources] if isinstance(sources, (str, Path)) else sources
    return _encode(CriteoInput(several, labelled=labelled), encoders)


def _encode(text: CriteoInput, encoders: Mapping[str, Encoder]) -> Iterator[NewRows]:
    for task in text.tasks():
        rows = task.read()
        ids_F = []
        for feature, column in zip(text.sparse, rows.sparse, strict=True):
            assert column.present_N is not None, "Criteo has one value per feature"
            ids_F.append(encoders[feature.name].encode(column.values, column.present_N))
        block = Block(rows.dense_IN, ids_F, rows.labels_N)
        yield NewRows(block, text.sources[task.source].name, rows.lines_N, rows.repaired, rows.bad)


def cut_batches(block: Block, keys: tuple[str, ...], batch_size: int) -> Iterator[Batch]:
    """The rows of a block in order, `batch_size` at a time; the last batch has what is left."""
    rows = pick_rows(block, np.arange(len(block)))
    for start in range(0, len(block), batch_size):
        stop = min(start + batch_size, len(block))
        yield join_batch([(rows, start, stop)], keys, stop - start)
