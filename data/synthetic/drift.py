"""Synthetic data that changes from day to day: ids are replaced by new ones, and the effects of others change.

An id is a slot of its column, which keeps its popularity, and a generation: how often the slot has been given to a new
value. Both follow from the seed, the column, the slot and the day alone.
"""

import numpy as np

from dlrmctl.data.randomness import Use, mix, words
from dlrmctl.data.schema import RESERVED_ROWS
from dlrmctl.data.synthetic.columns import GeneratedSparse, paired
from dlrmctl.data.synthetic.teacher import hashed_effects

_GENERATION = 24  # bits below it are of the slot
MOST_DAYS = 256


class DriftedColumn:
    """A sparse column on a day.

    Args:
        column: the column on day 0.
        number: its number.
        seed: seed of the data.
        slots: the most effects that are added up in a group.
        day: number of the day.
        rate: probability that a slot has a new value on the next day; that of a new effect of its value is the same.
    """

    def __init__(self, column: GeneratedSparse, number: int, seed: int, slots: int, day: int, rate: float) -> None:
        self._column, self._number, self._seed, self._slots = column, number, seed, slots
        self._keys = words(2 * (day + 1), seed, Use.EFFECTS, 1 << 20 | number).reshape(-1, 2).T[:, :day]
        self._threshold = np.uint64(int(rate * 2**32))

    def draw(self, words: np.ndarray) -> np.ndarray:
        """See `GeneratedSparse.draw`."""
        return self._column.draw(words)

    def draw_more(self, words: np.ndarray) -> np.ndarray:
        """See `GeneratedSparse.draw_more`."""
        return self._column.draw_more(words)

    def effects(self, rows: np.ndarray) -> np.ndarray:
        """Returns the effects of the values in these slots."""
        changes = self._times(rows, 0) + self._times(rows, 1)
        new = hashed_effects(rows.astype(np.uint64) | changes << np.uint64(32), self._slots, self._seed, self._number)
        return np.where(changes > 0, paired(self._number, new), self._column.effects(rows))

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Returns the values in these slots, uint32: slot and generation."""
        return (rows.astype(np.uint64) | self._times(rows, 0) << np.uint64(_GENERATION)).astype(np.uint32)

    def _times(self, rows: np.ndarray, what: int) -> np.ndarray:
        """Returns how often slots had a new value (0), or their values a new effect (1), before this day; uint64."""
        times = np.zeros(rows.shape, np.uint64)
        for key in self._keys[what]:
            times += (mix(rows.astype(np.uint64) ^ key) >> np.uint64(32)) < self._threshold
        times[rows < RESERVED_ROWS] = 0
        return times
