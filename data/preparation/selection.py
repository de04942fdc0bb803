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
from dlrmctl.data.splits import Split

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


def cut_splits(split: Split, source_rows: Sequence[int]) -> SplitSizes:
    """Cuts good rows into splits that follow the input.

    Args:
        split: by order, by the last file, or by files.
        source_rows: rows of each source.

    Raises:
        DataError: if a split is left empty.
    """
    rows = sum(source_rows)
    hint = "both parts need rows"
    if split.sources is not None:
        train, validation = split.sources
        num_train, num_validation = sum(source_rows[:train]), sum(source_rows[train : train + validation])
        hint = "the files of every split need good rows"
    elif split.by == "order" and split.fractions:
        ends = [round(rows * sum(split.fractions[:number])) for number in (1, 2)]
        num_train, num_validation = ends[0], ends[1] - ends[0]
        hint = f"at least {math.ceil(1 / min(split.fractions))} rows fill every split"
    else:
        num_train = rows * 6 // 7 if split.by == "order" else rows - source_rows[-1]
        num_validation = (rows - num_train) // 2
        hint = "at least 14 rows fill every split" if split.by == "order" else hint
    cut = SplitSizes(num_train, num_validation, rows - num_train - num_validation)
    check_sizes(cut, hint)
    return cut


def check_sizes(cut: SplitSizes, hint: str) -> None:
    """Checks that no split is empty.

    Raises:
        DataError: naming the first empty one.
    """
    for split in SPLITS:
        if not getattr(cut, split):
            sizes = ", ".join(f"{getattr(cut, name)} in {name}" for name in SPLITS)
            rows = cut.train + cut.validation + cut.test
            raise DataError(f"{rows} good rows leave the {split} split empty ({sizes})", hint)


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
