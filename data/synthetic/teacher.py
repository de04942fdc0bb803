"""The true probabilities of synthetic data, computed from rows of tables and levels of dense features.

logit = offset + main * (sum of per-value biases) + pair * <sum of vectors of group A, sum of vectors of group B>

Every categorical row and every level of a dense feature has a bias, and in every third feature a vector of three
numbers. The four are 16-bit lanes of one uint64, scaled so that no sum over a group overflows its lane: one lookup
and one addition per feature. All arithmetic is on integers up to a table of probabilities, so that every rank makes the
same bits.
"""

import math

import numpy as np

from dlrmctl.data.randomness import Use, mix, words
from dlrmctl.data.source import Bayes

LANES = 4  # a bias, and a vector of three
_BYTES = np.uint64(0x00FF00FF00FF00FF)
_EVEN_LANES = np.uint64(0x0000FFFF0000FFFF)
_STEPS = 512  # of the logit, per unit
_LIMIT = 16  # logits are cut to (-16, 16)
_MAIN_DEVIATION, _PAIR_DEVIATION = 1.35, 0.3  # in logits; together they give a Bayes AUC near .8
# P(label = 1) by logit step, as the number of 32-bit words that give a 1.
_GRID = (np.arange(2 * _LIMIT * _STEPS) - _LIMIT * _STEPS) / _STEPS
THRESHOLDS = np.round(2.0**32 / (1 + np.exp(-_GRID))).astype(np.int64)
PROBABILITIES = THRESHOLDS / 2.0**32


def random_effects(num_rows: int, slots: int, seed: int, table: int) -> np.ndarray:
    """Draws packed effects of independent rows, uint64 [num_rows].

    Args:
        num_rows: rows of the table.
        slots: the most effects that are added up in a group.
        seed: seed of the teacher.
        table: number of the table.
    """
    # The sum of four uniform numbers is nearly normal, and bounded.
    parts = words(num_rows * LANES, seed, Use.EFFECTS, table).view(np.uint16).reshape(num_rows, LANES, 4)
    return _pack(parts.sum(axis=2, dtype=np.int64) * (_levels(slots) - 1) >> 18)


def hashed_effects(rows: np.ndarray, slots: int, seed: int, table: int) -> np.ndarray:
    """Computes packed effects of rows of a table too large to store, uint64 of the shape of `rows`.

    Args:
        rows: whole numbers >= 0.
        slots, seed, table: as for `random_effects`.
    """
    keys = words(2, seed, Use.EFFECTS, table)
    first = mix(rows.astype(np.uint64) ^ keys[0])
    total = np.zeros(first.shape, dtype=np.uint64)
    for bits in (first, mix(first ^ keys[1])):  # four bytes for each lane, added in all lanes at once
        total += bits & _BYTES
        total += bits >> np.uint64(8) & _BYTES
    scale = np.uint64(_levels(slots) - 1)
    even = (total & _EVEN_LANES) * scale >> np.uint64(10) & _EVEN_LANES  # sums of four bytes are below 1,024
    odd = (total >> np.uint64(16) & _EVEN_LANES) * scale >> np.uint64(10) & _EVEN_LANES
    return even | odd << np.uint64(16)


def smooth_effects(values: np.ndarray, slots: int, seed: int, table: int) -> np.ndarray:
    """Draws packed effects that change smoothly with a value in [0, 1], uint64 of the shape of `values` (1-d)."""
    draws = words(LANES * 2, seed, Use.EFFECTS, table).reshape(LANES, 2, 1) / 2.0**64 - 0.5
    waves = np.cos(np.pi * values) * draws[:, 0] + np.cos(2 * np.pi * values) * draws[:, 1]
    return _pack(np.round((0.5 + 0.5 * waves.T) * (_levels(slots) - 1)).astype(np.int64))


def _levels(slots: int) -> int:
    return 0xFFFF // slots + 1


def _pack(effects: np.ndarray) -> np.ndarray:
    """Packs [rows, LANES] small integers into one uint64 per row."""
    shifts = np.arange(LANES, dtype=np.uint64) * np.uint64(16)
    return (effects.astype(np.uint64) << shifts).sum(axis=1, dtype=np.uint64)


def _lanes(packed: np.ndarray) -> np.ndarray:
    """Unpacks the four lanes of each sum, int64 [LANES, n]."""
    shifts = (np.arange(LANES, dtype=np.uint64) * np.uint64(16))[:, None]
    return ((packed >> shifts) & np.uint64(0xFFFF)).astype(np.int64)


class Teacher:
    """Scales and offset of the logit, fitted on a sample for the label rate.

    Args:
        group_a, group_b: packed sums of effects of the sample's examples, uint64 [n].
        label_rate: the mean probability.
    """

    def __init__(self, group_a: np.ndarray, group_b: np.ndarray, *, label_rate: float) -> None:
        lanes_a, lanes_b = _lanes(group_a), _lanes(group_b)
        self._means_a = lanes_a.sum(axis=1, keepdims=True) // len(group_a)
        self._means_b = lanes_b.sum(axis=1, keepdims=True) // len(group_b)
        main, pair = self._parts(group_a, group_b)
        self._main = round(_MAIN_DEVIATION * _STEPS * 2**16 / max(float(main.std()), 1.0))
        self._pair = round(_PAIR_DEVIATION * _STEPS * 2**32 / max(float(pair.std()), 1.0))
        self._offset = 0
        low, high = -_LIMIT * _STEPS, _LIMIT * _STEPS
        while high - low > 1:
            self._offset = (low + high) // 2
            mean = int(THRESHOLDS[self.steps(group_a, group_b)].sum()) / (len(group_a) * 2**32)
            low, high = (self._offset, high) if mean < label_rate else (low, self._offset)

    def _parts(self, group_a: np.ndarray, group_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lanes_a = _lanes(group_a) - self._means_a
        lanes_b = _lanes(group_b) - self._means_b
        return lanes_a[0] + lanes_b[0], np.einsum("ln,ln->n", lanes_a[1:], lanes_b[1:])

    def steps(self, group_a: np.ndarray, group_b: np.ndarray) -> np.ndarray:
        """Returns places in `PROBABILITIES` and `THRESHOLDS`, int64 [n], for packed sums of effects, uint64 [n]."""
        main, pair = self._parts(group_a, group_b)
        steps = (main * self._main >> 16) + (pair * self._pair >> 32) + (self._offset + _LIMIT * _STEPS)
        return np.clip(steps, 1, len(THRESHOLDS) - 1)


def bias_only(packed: np.ndarray) -> np.ndarray:
    """Returns the same effects with their vectors set to zero."""
    return packed & np.uint64(0xFFFF)


class TeacherScores:
    """Counts examples by label and probability; all examples of a step share one, so that scores are exact."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, len(PROBABILITIES)), dtype=np.int64)

    def add(self, labels_N: np.ndarray, steps_N: np.ndarray) -> None:
        """Adds examples: labels, and places in `PROBABILITIES`."""
        for label in (0, 1):
            self.counts[label] += np.bincount(steps_N[labels_N == label], minlength=len(PROBABILITIES))

    def merge(self, other: "TeacherScores") -> None:
        """Adds the examples of another tally."""
        self.counts += other.counts

    @property
    def label_rate(self) -> float:
        return float(self.counts[1].sum() / self.counts.sum())

    def bayes(self) -> Bayes:
        """Returns the scores; at least one example is needed."""
        return score_teacher(self.counts)


def score_teacher(counts: np.ndarray) -> Bayes:
    """Computes scores of `PROBABILITIES`, from the numbers of examples by label (0, 1) and place, [2, places]."""
    negatives, positives = counts
    total, ones = int(counts.sum()), int(positives.sum())
    log_loss = -(np.dot(positives, np.log(PROBABILITIES)) + np.dot(negatives, np.log1p(-PROBABILITIES))) / total
    rate = ones / total
    if ones in (0, total):
        return Bayes(float(log_loss), math.nan, math.nan)
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
    below = np.cumsum(negatives) - negatives
    auc = float(np.dot(positives, below + 0.5 * negatives)) / (ones * (total - ones))
    return Bayes(float(log_loss), float(log_loss) / entropy, auc)
