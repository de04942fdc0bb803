"""Selects the rows of the parts for each split: the cut in time, and the sample of training negatives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors, read_array, write_whole
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.parts import Parts
from dlrmctl.data.randomness import mix
from dlrmctl.data.source import SPLITS

_BITS = 53  # of a draw


def is_kept(first_row: int, labels_N: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Returns whether each of consecutive rows is in a sample of the negatives, bool [N], by a hash of seed and row.

    Args:
        first_row: number of the first row.
        labels_N: 0 or 1; all 1 are kept.
        rate: share of the others that is kept.
        seed: below 2**64.
    """
    key = mix(np.array([seed], np.uint64))
    rows_N = np.arange(first_row, first_row + len(labels_N), dtype=np.uint64)
    draws_N = mix(mix(rows_N) ^ key) >> np.uint64(64 - _BITS)
    return (draws_N < np.uint64(math.ceil(rate * (1 << _BITS)))) | (labels_N != 0)


@dataclass(frozen=True)
class SplitSizes:
    """The good rows of each split before sampling."""

    train: int
    validation: int
    test: int


def cut_splits(rows: int, last_source_rows: int, how: str) -> SplitSizes:
    """Cuts good rows into splits, by order or by the last source.

    Args:
        rows: rows of all sources.
        last_source_rows: rows of the last source.
        how: "order" or "last-file".

    Raises:
        DataError: if a split is left empty.
    """
    num_train = rows * 6 // 7 if how == "order" else rows - last_source_rows
    num_validation = (rows - num_train) // 2
    cut = SplitSizes(num_train, num_validation, rows - num_train - num_validation)
    for split in SPLITS:
        if not getattr(cut, split):
            sizes = ", ".join(f"{getattr(cut, name)} in {name}" for name in SPLITS)
            raise DataError(
                f"{rows} good rows leave the {split} split empty ({sizes})",
                "at least 14 rows fill every split" if how == "order" else "both parts need rows",
            )
    return cut


class Selection:
    """The rows that become examples; example e of the store is the e-th of them, over all splits.

    Args:
        parts: the parts with all rows.
        cut: the rows of the splits.
        options: the options of the sample.
        directory: directory for a bit per row, if there is a sample.
        state: what `state()` returned; None reads the labels.

    Attributes:
        starts: number of the first example of each part, and of all examples at the end; int64 [parts + 1].
        num_train: training examples.
        train_rows: rows of the training split before sampling, of each part.
    """

    def __init__(
        self,
        parts: Parts,
        cut: SplitSizes,
        options: PrepareOptions,
        directory: Path,
        state: Sequence[int] | None = None,
    ) -> None:
        rows = np.array([info.rows for info in parts.infos], dtype=np.int64)
        row_starts = np.concatenate(([0], np.cumsum(rows)))
        self.train_rows: list[int] = np.clip(cut.train - row_starts[:-1], 0, rows).tolist()
        self._sampled, self._directory, self._parts = options.sample_negatives < 1, directory, parts
        self._cut = cut
        if self._sampled and state is None:
            with io_errors(directory, "write"):
                directory.mkdir(exist_ok=True)
            for part, (first, num_train) in enumerate(zip(row_starts.tolist(), self.train_rows, strict=False)):
                kept_N = np.ones(rows[part], dtype=bool)
                labels = parts.labels(part, 0, num_train)
                kept_N[:num_train] = is_kept(first, labels, options.sample_negatives, options.seed)
                rows[part] = np.count_nonzero(kept_N)
                write_whole(self._file(part), np.packbits(kept_N).tobytes())
        kept = rows if state is None else np.array(state, dtype=np.int64)
        self.starts = np.concatenate(([0], np.cumsum(kept)))
        self.num_train = int(self.starts[-1]) - cut.validation - cut.test
        if self.num_train == 0:
            raise DataError(f"a share of {options.sample_negatives} of the negatives leaves the train split empty")

    def state(self) -> list[int]:
        """Examples of each part."""
        return np.diff(self.starts).tolist()

    def split(self, name: str) -> range:
        """The examples of a split."""
        sizes = {"train": self.num_train, "validation": self._cut.validation, "test": self._cut.test}
        first = sum(sizes[before] for before in SPLITS[: SPLITS.index(name)])
        return range(first, first + sizes[name])

    def kept(self, part: int, stop: int | None = None) -> np.ndarray | None:
        """bool: which of the first `stop` rows of a part become examples; None if all of them do."""
        if not self._sampled or not self.train_rows[part]:
            return None
        stop = self._parts.infos[part].rows if stop is None else stop
        bits = read_array(self._file(part), np.dtype("u1"), -(-stop // 8))
        return np.unpackbits(bits, count=stop).view(bool)

    def _file(self, part: int) -> Path:
        return self._directory / f"{part:06}.kept"
