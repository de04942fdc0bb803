"""One sparse column of the parts: what threads do with it, part by part.

N examples of a part; the ids of a feature with lists are more or fewer than N.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files import read_array
from data.parts import Parts
from data.raw import RawFeature
from data.schema import RARE_ROW
from data.selection import Selection
from data.vocabulary import Encoder, Vocabulary

EXAMPLES, IDS, MISSING, RARE = range(4)  # what is summed up of a split


@dataclass(frozen=True)
class PartRows:
    """The rows of a part of a column.

    Attributes:
        rows: of the column's type.
        train, held_out: examples, ids, examples without a value, and rare ids, in the split and behind it.
        counted: different rows of the training examples, rising, and how often each occurs, if they are asked for.
    """

    rows: np.ndarray
    train: list[int]
    held_out: list[int]
    counted: tuple[np.ndarray, np.ndarray] | None


class ColumnParts:
    """A column.

    Args:
        parts, selection: the rows, and which of them are examples.
        f: number of the feature.
        feature: of the input.
    """

    def __init__(self, parts: Parts, selection: Selection, f: int, feature: RawFeature) -> None:
        self._parts, self._selection, self.f, self.feature = parts, selection, f, feature

    def __iter__(self) -> Iterator[int]:
        """The numbers of the parts."""
        return iter(range(len(self._parts)))

    def count(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """The different values of the training examples in a part, rising, and how often each occurs."""
        values, present_N, _ = self._examples(part, self._selection.train_rows[part])
        if present_N is not None and not present_N.all():
            values = values[present_N]
        return np.unique(values, return_counts=True)

    def encode(
        self, part: int, encoder: Encoder, row_type: np.dtype, *, known: tuple[Path, int] | None, count: bool
    ) -> PartRows:
        """The rows of a part.

        Args:
            part: its number.
            encoder: of the column, or the next piece of its vocabulary.
            row_type: of the rows.
            known: file with the rows that earlier pieces of the vocabulary gave, and the part's place in it.
            count: whether to count the rows.
        """
        values, present_N, lengths_N = self._examples(part, self._parts.infos[part]["rows"])
        if known is None:
            rows = encoder.encode(values, present_N).astype(row_type, copy=False)
        else:
            path, start = known
            rows = read_array(path, row_type, len(values), start * row_type.itemsize)
            unknown = np.flatnonzero(rows == RARE_ROW)
            rows[unknown] = encoder.encode(values[unknown], None)
        there_N = present_N if lengths_N is None else lengths_N
        assert there_N is not None
        num_train = min(max(self._selection.num_train - int(self._selection.starts[part]), 0), len(there_N))
        train_ids = num_train if lengths_N is None else int(lengths_N[:num_train].sum())
        rare_type = isinstance(encoder, Vocabulary)
        return PartRows(
            rows,
            _sums(there_N[:num_train], rows[:train_ids], rare_type),
            _sums(there_N[num_train:], rows[train_ids:], rare_type),
            np.unique(rows[:train_ids], return_counts=True) if count else None,
        )

    def _examples(self, part: int, stop: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Those of the first `stop` rows of a part that are examples: values, and whether present or the lengths."""
        kept_N = self._selection.kept(part, stop)
        if self.feature.max_ids == 1:
            values, present_N = self._parts.values(part, self.f, stop), self._parts.present(part, self.f, stop)
            return (values, present_N, None) if kept_N is None else (values[kept_N], present_N[kept_N], None)
        lengths_N = self._parts.lengths(part, self.f, 0, stop)
        values = self._parts.values(part, self.f, int(lengths_N.sum()))
        if kept_N is None:
            return values, None, lengths_N
        return values[np.repeat(kept_N, lengths_N)], None, lengths_N[kept_N]


def _sums(there_N: np.ndarray, rows: np.ndarray, has_rare: bool) -> list[int]:
    rare = np.count_nonzero(rows == RARE_ROW) if has_rare else 0
    return [len(there_N), len(rows), len(there_N) - int(np.count_nonzero(there_N)), int(rare)]
