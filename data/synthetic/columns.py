"""The columns of synthetic data: their values, drawn from random words, and the effects of values on the label.

Small tables store the weight and effect of every row; large ones compute them, in constant memory.
"""

from typing import Protocol

import numpy as np

from dlrmctl.data.features.dense import FittedDense, count_keys, fit
from dlrmctl.data.formats.transforms import LOG
from dlrmctl.data.randomness import Use, permutation
from dlrmctl.data.schema import MISSING_ROW, RESERVED_ROWS
from dlrmctl.data.synthetic.cardinalities import missing_twentieths
from dlrmctl.data.synthetic.draws import EXPONENT, MISSING_RANK, Alias, PowerLaw, Scramble
from dlrmctl.data.synthetic.teacher import bias_only, hashed_effects, random_effects, smooth_effects

MOST_IN_TABLES = 1 << 14  # ids; storing more takes longer than computing them
_LEVELS = 4096  # distinct draws of a dense feature


class GeneratedSparse(Protocol):
    """A sparse feature, which maps N words to N rows of its table."""

    def draw(self, words: np.ndarray) -> np.ndarray:
        """Returns a row per word (uint32), int32; `MISSING_ROW` for a share of them."""
        ...

    def draw_more(self, words: np.ndarray) -> np.ndarray:
        """Returns rows of further ids in a list, which are never missing."""
        ...

    def effects(self, rows: np.ndarray) -> np.ndarray:
        """Returns the effects of the rows, packed uint64."""
        ...


def sparse_column(num_ids: int, seed: int, column: int, slots: int, *, lists: bool = False) -> GeneratedSparse:
    """A sparse feature.

    Args:
        num_ids: distinct values, without the missing one.
        seed: seed of everything.
        column: its number.
        slots: the most effects that are added up in a group.
        lists: whether `draw_more` is needed.
    """
    if num_ids <= MOST_IN_TABLES:
        return _Tables(num_ids, seed, column, slots, lists)
    return _Computed(num_ids, seed, column, slots)


def _missing(column: int) -> float:
    """Returns the share of missing values: from 0 in the first column to a third, in steps of one fifteenth."""
    return (column * 7 % 6) / 15


def paired(column: int, effects: np.ndarray) -> np.ndarray:
    """Keeps the vectors of effects in one column of three: with more, pairs are many and small, and slow to learn."""
    return effects if column % 3 == 1 else bias_only(effects)


class _Tables:
    def __init__(self, num_ids: int, seed: int, column: int, slots: int, lists: bool) -> None:
        weights = np.zeros(num_ids + RESERVED_ROWS)
        order = permutation(num_ids, seed, Use.ID_ORDER, column)
        weights[RESERVED_ROWS + order] = np.arange(1, num_ids + 1) ** -EXPONENT
        weights /= weights.sum()
        self._later = Alias.of(weights) if lists else None
        weights *= 1 - _missing(column)
        weights[MISSING_ROW] = _missing(column)
        self._first = Alias.of(weights)
        self._effects = paired(column, random_effects(len(weights), slots, seed, column))

    def draw(self, words: np.ndarray) -> np.ndarray:
        return self._first.draw(words)

    def draw_more(self, words: np.ndarray) -> np.ndarray:
        assert self._later is not None
        return self._later.draw(words)

    def effects(self, rows: np.ndarray) -> np.ndarray:
        return self._effects[rows]


class _Computed:
    def __init__(self, num_ids: int, seed: int, column: int, slots: int) -> None:
        self._first = PowerLaw.of(num_ids, _missing(column))
        self._later = PowerLaw.of(num_ids, 0.0)
        self._order = Scramble(num_ids, seed, column)
        self._seed, self._column, self._slots = seed, column, slots

    def draw(self, words: np.ndarray) -> np.ndarray:
        return self._rows(self._first.draw(words))

    def draw_more(self, words: np.ndarray) -> np.ndarray:
        return self._rows(self._later.draw(words))

    def _rows(self, ranks: np.ndarray) -> np.ndarray:
        rows = np.full(ranks.shape, MISSING_ROW, dtype=np.int32)
        there = ranks != MISSING_RANK
        rows[there] = self._order(ranks[there]) + np.uint32(RESERVED_ROWS)
        return rows

    def effects(self, rows: np.ndarray) -> np.ndarray:
        return paired(self._column, hashed_effects(rows, self._slots, self._seed, self._column))


class GeneratedDense:
    """A dense feature: 4,096 equally likely levels, each a heavy-tailed integer from 0 on, or missing.

    Attributes:
        integers: int64 per level; -1 where missing.
        values: float32 per level, the logarithm (`transforms.LOG`) of the integer; NaN where missing.
        effects: packed uint64 per level, smooth in the value, and free where it is missing.
    """

    def __init__(self, seed: int, column: int, table: int, slots: int) -> None:
        u = (np.arange(_LEVELS) + 0.5) / _LEVELS
        typical, tail = 2.0 ** (column % 7), 0.6 + 0.1 * (column % 5)
        whole = np.floor(typical * (u / (1 - u)) ** tail)
        missing = permutation(_LEVELS, seed, Use.MISSING_LEVELS, column)[: _LEVELS * missing_twentieths(column) // 20]
        values = LOG.apply(whole)
        values[missing] = -1  # below every other: the highest and the effects of the others do not see it
        whole[missing] = -1
        self.integers = whole.astype(np.int64)
        self.values = values.astype(np.float32)
        low, high = np.log(3.0), self.values.max()
        self.effects = smooth_effects(np.clip((self.values - low) / (high - low), 0, 1), slots, seed, table)
        self.values[missing] = np.nan
        self.effects[missing] = random_effects(1, slots, seed, table)
        self.effects = paired(column, self.effects)

    def fitted(self, name: str) -> FittedDense:
        """The feature over endlessly many examples: every level as often."""
        counted, missing = count_keys(self.values)
        return fit(name, lambda: iter([counted]), missing)
