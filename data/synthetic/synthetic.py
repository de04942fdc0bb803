"""Generates Criteo-shaped examples with a known optimum when they are read.

The random words of a block depend only on the seed, the split and the block's number (Philox counters). So any rank can
make any part, bit for bit, and a split does not change when another one grows.
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.space import GENERATED, FeatureSpace
from dlrmctl.data.formats.transforms import LOG, MISSING, DenseTransform
from dlrmctl.data.randomness import Use, words
from dlrmctl.data.schema import MISSING_ROW, RESERVED_ROWS, Schema, SparseFeature
from dlrmctl.data.source import SPLITS, Bayes, Block, check_split
from dlrmctl.data.synthetic.cardinalities import CARDINALITIES
from dlrmctl.data.synthetic.columns import MOST_IN_TABLES, GeneratedDense, GeneratedSparse, sparse_column
from dlrmctl.data.synthetic.draws import MAX_IDS
from dlrmctl.data.synthetic.drift import MOST_DAYS, DriftedColumn
from dlrmctl.data.synthetic.teacher import THRESHOLDS, Teacher, TeacherScores

BLOCK_ROWS = 8192
MAX_CARDINALITY = MAX_IDS
_CALIBRATION = len(SPLITS)  # its own stream, in no split
_CALIBRATION_BLOCKS = 16


@dataclass(frozen=True)
class Examples:
    """A block of N examples, and how it was made.

    Attributes:
        block: the input of a model.
        levels_IN: the levels of the dense features.
        steps_N: the places of the true probabilities in `teacher.PROBABILITIES`.
    """

    block: Block
    levels_IN: np.ndarray
    steps_N: np.ndarray


class Synthetic:
    """A source without files: dense features, power-law ids in scrambled order, and a teacher that draws the labels.

    Args:
        seed: seed of everything.
        num_train, num_validation, num_test: examples per split.
        cardinalities: ids per sparse feature; each has row 0 for missing and an unused row 1 besides.
        max_ids: longest list of ids, for all features or for each; lists have 1 to `max_ids` ids.
        num_dense: dense features, already transformed by log(x + 3), missing ones NaN.
        label_rate: mean of the true probabilities.

    Attributes:
        schema, features: of the examples.
        dense: the dense columns.

    Raises:
        DataError: if a number is out of its range.
    """

    def __init__(
        self,
        seed: int = 0,
        num_train: int = 6_000_000,
        num_validation: int = 100_000,
        num_test: int = 100_000,
        *,
        cardinalities: Sequence[int] = CARDINALITIES,
        max_ids: int | Sequence[int] = 1,
        num_dense: int = 13,
        label_rate: float = 0.25,
    ) -> None:
        lists = [max_ids] * len(cardinalities) if isinstance(max_ids, int) else list(max_ids)
        self._num_examples = dict(zip(SPLITS, (num_train, num_validation, num_test), strict=True))
        _check(seed, self._num_examples, cardinalities, lists, num_dense, label_rate)
        settings = [seed, list(self._num_examples.values()), list(cardinalities), lists, num_dense, label_rate]
        version = 1 if max(cardinalities) <= MOST_IN_TABLES else 2
        self._fingerprint = f"synthetic-{version}:" + _digest(settings)
        self.seed, self.block_rows = seed, BLOCK_ROWS
        sparse = [
            SparseFeature(f"cat_{f + 1}", ids + RESERVED_ROWS, longest)
            for f, (ids, longest) in enumerate(zip(cardinalities, lists, strict=True))
        ]
        slots = self._slots = sum(lists) + num_dense
        self.dense = [GeneratedDense(seed, column, len(sparse) + column, slots) for column in range(num_dense)]
        fitted = tuple(column.fitted(f"int_{i + 1}") for i, column in enumerate(self.dense))
        self.schema = Schema(
            tuple(column.name for column in fitted),
            tuple(sparse),
            gaps=tuple(column.name for column in fitted if column.missing),
        )
        self.features = FeatureSpace(
            self.schema,
            input=GENERATED,
            dense_transform=DenseTransform(MISSING, LOG.formula, type="float32"),
            dense=fitted,
            ids=f"synthetic-ids-{version}:" + _digest([seed, list(cardinalities)]),
        )
        self._columns: Sequence[GeneratedSparse] = [
            sparse_column(ids, seed, column, slots, lists=lists[column] > 1) for column, ids in enumerate(cardinalities)
        ]
        samples = [self._examples(_CALIBRATION, index, BLOCK_ROWS)[:2] for index in range(_CALIBRATION_BLOCKS)]
        sums = [self._groups(block, levels) for block, levels in samples]
        self._teacher = Teacher(
            np.concatenate([a for a, _ in sums]), np.concatenate([b for _, b in sums]), label_rate=label_rate
        )

    def on_day(self, day: int, rate: float) -> "Synthetic":
        """Returns the same source on a later day: some ids stand for other values, and values have other effects.

        Args:
            day: number of the day; on day 0 nothing has changed.
            rate: see `drift.DriftedColumn`.

        Raises:
            DataError: if a number is out of its range.
        """
        if not 0 <= day < MOST_DAYS or not 0 <= rate <= 1:
            raise DataError(f"a drift of {rate} on day {day} must be at most 1, on a day below {MOST_DAYS}")
        later = copy.copy(self)
        later._columns = [
            DriftedColumn(column, number, self.seed, self._slots, day, rate)
            for number, column in enumerate(self._columns)
        ]
        later._fingerprint = f"{self._fingerprint}:{day}:{rate}"
        later.features = replace(self.features, ids=f"{self.features.ids}:{day}:{rate}")
        return later

    def values(self, column: int, rows: np.ndarray) -> np.ndarray:
        """Returns numbers (uint32) that identify the values in these rows of a column, on all days."""
        drifted = self._columns[column]
        return drifted.values(rows) if isinstance(drifted, DriftedColumn) else rows.astype(np.uint32)

    def num_examples(self, split: str) -> int:
        """Examples of the split."""
        check_split(split)
        return self._num_examples[split]

    def fingerprint(self) -> str:
        """Depends only on the settings."""
        return self._fingerprint

    def vocabulary_fingerprint(self) -> str:
        """Depends, as the effects of ids do, on the seed and the cardinalities."""
        return self.features.vocabulary_fingerprint()

    def read_block(self, split: str, index: int) -> Block:
        """Examples [index * 8192, (index + 1) * 8192) of the split."""
        return self.read_examples(split, index).block

    def bayes(self, split: str) -> Bayes:
        """Computes the scores of the true probabilities on the whole split, block by block."""
        tally = TeacherScores()
        for index in range(-(-self.num_examples(split) // BLOCK_ROWS)):
            examples = self.read_examples(split, index)
            tally.add(examples.block.labels_N, examples.steps_N)
        return tally.bayes()

    def read_examples(self, split: str, index: int) -> Examples:
        """Returns a block with what its labels were drawn from."""
        rows = min(BLOCK_ROWS, self.num_examples(split) - index * BLOCK_ROWS)
        if index < 0 or rows <= 0:
            raise DataError(f"the {split} split has no block {index}")
        block, levels, label_words = self._examples(SPLITS.index(split), index, rows)
        steps = self._teacher.steps(*self._groups(block, levels))
        np.less(label_words, THRESHOLDS[steps], out=block.labels_N)
        return Examples(block, levels, steps)

    def _examples(self, stream: int, index: int, rows: int) -> tuple[Block, np.ndarray, np.ndarray]:
        """Returns a block without labels, the levels of its dense features [I, rows], and the labels' words."""
        lists = [feature.max_ids for feature in self.schema.sparse]
        num_words = sum(lists) + 1
        num_halves = len(self.schema.dense) + (0 if self.schema.one_hot else len(lists))
        raw = words(BLOCK_ROWS * (2 * num_words + num_halves + 3) // 4, self.seed, Use.EXAMPLES, index, stream)
        # Whole blocks are drawn even at the end of a split, so that a longer split begins with the shorter one.
        full = raw.view(np.uint32)[: num_words * BLOCK_ROWS].reshape(num_words, BLOCK_ROWS)[:, :rows]
        halves = raw.view(np.uint16)[2 * num_words * BLOCK_ROWS :][: num_halves * BLOCK_ROWS]
        halves = halves.reshape(num_halves, BLOCK_ROWS)[:, :rows]
        levels_IN = halves[: len(self.schema.dense)] >> 4
        dense_IN = np.empty(levels_IN.shape, dtype=np.float32)
        for column, dense in enumerate(self.dense):
            dense_IN[column] = dense.values[levels_IN[column]]
        labels_N = np.empty(rows, dtype=np.bool_)
        if self.schema.one_hot:
            ids_FN = np.empty((len(lists), rows), dtype=np.int32)
            for column, sparse in enumerate(self._columns):
                ids_FN[column] = sparse.draw(full[column])
            return Block(dense_IN, list(ids_FN), labels_N), levels_IN, full[-1]
        ids_F, lengths_FN = [], np.empty((len(lists), rows), dtype=np.int32)
        at = 0
        for column, longest in enumerate(lists):
            ids_NL = np.empty((rows, longest), dtype=np.int32)
            ids_NL[:, 0] = self._columns[column].draw(full[at])
            if longest > 1:
                ids_NL[:, 1:] = self._columns[column].draw_more(full[at + 1 : at + longest]).T
            drawn = 1 + (halves[len(self.schema.dense) + column].astype(np.int32) * longest >> 16)
            lengths_FN[column] = np.where(ids_NL[:, 0] == MISSING_ROW, 1, drawn)
            ids_F.append(ids_NL[np.arange(longest) < lengths_FN[column][:, None]])
            at += longest
        return Block(dense_IN, ids_F, labels_N, lengths_FN), levels_IN, full[-1]

    def _groups(self, block: Block, levels_IN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns packed sums of effects of group A and of group B, uint64 [N] each."""
        sums = []
        for group in (0, 1):
            total = np.zeros(len(block), dtype=np.uint64)
            for column in _columns_of(1 - group, len(levels_IN)):
                total += self.dense[column].effects[levels_IN[column]]
            for column in _columns_of(group, len(self._columns)):
                effects = self._columns[column].effects(block.ids_F[column])
                if block.lengths_FN is not None:
                    starts = np.cumsum(block.lengths_FN[column]) - block.lengths_FN[column]
                    effects = np.add.reduceat(effects, starts)
                total += effects
            sums.append(total)
        return sums[0], sums[1]


def _check(
    seed: int, sizes: dict[str, int], cardinalities: Sequence[int], lists: list[int], num_dense: int, label_rate: float
) -> None:
    if not 0 <= seed < 1 << 64:
        raise DataError(f"the seed {seed} must be at least 0 and below 2**64")
    for split, size in sizes.items():
        if size < 1:
            raise DataError(f"{size} examples in the {split} split must be at least 1")
    if len(lists) != len(cardinalities) or not cardinalities:
        raise DataError(f"{len(lists)} longest lists for {len(cardinalities)} sparse features")
    for ids in cardinalities:
        if not 1 <= ids <= MAX_CARDINALITY:
            raise DataError(f"a cardinality of {ids} must be at least 1 and at most {MAX_CARDINALITY}")
    if num_dense < 1 or min(lists) < 1 or sum(lists) + num_dense > 4096:
        raise DataError(
            f"{num_dense} dense features and longest lists of {lists} ids must be at least 1 and add up to at most 4096"
        )
    if not 0.01 <= label_rate <= 0.99:
        raise DataError(f"a label rate of {label_rate} must be between 0.01 and 0.99")


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def _columns_of(group: int, count: int) -> list[int]:
    """Three columns belong to one group, the next three to the other, and so on."""
    return [column for column in range(count) if column // 3 % 2 == group]
