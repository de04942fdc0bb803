"""Exact statistics of a dense feature over the training examples, for normalization and buckets.

Values are counted as keys, integers in the order of the values, so that counts of parts can be added up. N values, K
distinct ones, ascending.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.sealed import Values

KNOTS = 129  # the most values that are kept of a column
_FARTHEST = 3.5  # knots are evenly spaced normal scores up to this one
_NORMAL = NormalDist()
_SIGN = np.uint32(1 << 31)
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
_NEGATIVE_ZERO = 1 << 15  # the bits of float16's
KEY_TYPE = np.dtype("<u4")
_CODES = 1 << 16
# Float16 is exact enough for a column if its rounding is below this share of the spread.
_MOST_ERROR = 0.01
CountedKeys = tuple[np.ndarray, np.ndarray]  # keys_K uint32, counts_K int64
_Ranges = Callable[[], Iterator[CountedKeys]]


@dataclass(frozen=True)
class FittedDense:
    """Statistics of a dense feature over the training examples.

    Attributes:
        name: name of the feature.
        present, missing: number of values, and of examples without one.
        mean, deviation: mean and standard deviation of the values; 0 if there are none.
        values: some of the values, ascending: all if there are at most `KNOTS`, else those nearest to evenly spaced
            normal scores, the smallest, and the largest.
        ranks: the exact rank of each of them: the share of values below it, plus half the share equal to it.
    """

    name: str
    present: int
    missing: int
    mean: float
    deviation: float
    values: tuple[float, ...]
    ranks: tuple[float, ...]

    def normal_scores(self) -> tuple[float, ...]:
        """The normal quantile of each of `ranks`."""
        return tuple(_NORMAL.inv_cdf(rank) for rank in self.ranks)

    def quantile(self, share: float) -> float:
        """Returns the quantile of the values at this share, interpolated between `values`; 0 if there are none."""
        return float(np.interp(share, self.ranks, self.values)) if self.values else 0.0

    def edges(self, buckets: int) -> tuple[float, ...]:
        """Returns the lower edges, ascending, of all buckets but the first of at most `buckets` of like counts.

        A value that is more frequent than a bucket has one of its own, and so have all values if they are few.
        """
        if len(self.values) <= buckets:
            return self.values[1:]
        edges = {self.quantile(place / buckets) for place in range(1, buckets)}
        return tuple(sorted(edge for edge in edges if edge > self.values[0]))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {**vars(self), "values": list(self.values), "ranks": list(self.ranks)}

    @classmethod
    def from_values(cls, values: Values) -> "FittedDense":
        """Parses what `to_dict` returned.

        Raises:
            DataError: if a value is missing or invalid.
        """
        knots, ranks = values.numbers("values"), values.numbers("ranks")
        deviation = values.number("deviation")
        if deviation < 0:
            raise DataError(f"{values.where}deviation = {deviation} must be at least 0")
        if len(knots) > KNOTS or not _rises(knots):
            raise DataError(f"{values.where}values must be at most {KNOTS} numbers, and rise")
        if len(ranks) != len(knots) or not _rises((0.0, *ranks, 1.0)):
            raise DataError(f"{values.where}ranks must be as many numbers between 0 and 1 as values, and rise")
        return cls(
            values.text("name"),
            values.whole("present"),
            values.whole("missing"),
            values.number("mean"),
            deviation,
            knots,
            ranks,
        )


def _rises(numbers: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(numbers))


def read_fitted(values: Values, names: Sequence[str], entry: str = "dense") -> tuple[FittedDense, ...]:
    """Parses an entry of a manifest: statistics of each dense feature; empty if there is none.

    Raises:
        DataError: if it is invalid.
    """
    if not values.has(entry):
        return ()
    fitted = tuple(FittedDense.from_values(column) for column in values.each(entry))
    if tuple(column.name for column in fitted) != tuple(names):
        raise DataError(f"{entry} does not list the dense features of the schema")
    return fitted


def count_keys(values_N: np.ndarray) -> tuple[CountedKeys, int]:
    """Returns the distinct values of a piece as keys, ascending, their counts, and the number of missing ones (NaN).

    Args:
        values_N: float16 or float32.
    """
    if values_N.dtype == np.float16:
        counts = np.bincount(values_N.view(np.uint16), minlength=_CODES)
        counts[0] += counts[_NEGATIVE_ZERO]
        counts[_NEGATIVE_ZERO] = 0
        codes = np.flatnonzero(counts)
        values, counts = codes.astype(np.uint16).view(np.float16), counts[codes]
        there = ~np.isnan(values)
        keys = to_keys(values[there])
        order = np.argsort(keys)
        return (keys[order], counts[there][order]), int(counts[~there].sum())
    there_N = ~np.isnan(values_N)
    keys, counts = np.unique(to_keys(values_N[there_N]), return_counts=True)
    return (keys, counts), len(values_N) - int(np.count_nonzero(there_N))


def to_keys(values: np.ndarray) -> np.ndarray:
    """Returns keys (uint32) in the order of floating-point numbers; both zeros have the same key."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >= _SIGN, ~bits, bits | _SIGN)


def to_values(keys: np.ndarray) -> np.ndarray:
    """Returns the values (float64) of keys."""
    return np.where(keys >= _SIGN, keys ^ _SIGN, ~keys).astype(np.uint32).view(np.float32).astype(np.float64)


def rounded_keys(keys: np.ndarray) -> np.ndarray:
    """Returns the keys of the values as float16."""
    return to_keys(to_values(keys).astype(np.float16))


def fit(name: str, ranges: _Ranges, missing: int) -> FittedDense:
    """Fits the values of a feature.

    Args:
        name: name of the feature.
        ranges: yields its values as keys, ascending, in pieces of any size, at every call. The result does not depend
            on the pieces.
        missing: number of examples without a value.
    """
    present = sum(int(counts_K.sum()) for _, counts_K in ranges())
    if not present:
        return FittedDense(name, 0, missing, 0.0, 0.0, (), ())
    mean = weighted_sum(ranges, lambda values_K: values_K) / present
    variance = weighted_sum(ranges, lambda values_K: np.square(values_K - mean)) / present
    knots = _knots(ranges, present)
    values, ranks = zip(*knots, strict=True)
    return FittedDense(name, present, missing, _decimal(mean), _decimal(math.sqrt(variance)), values, ranks)


def _decimal(number: float, digits: int = 15) -> float:
    """Rounds a number to this many digits. 9 restore a float32 exactly; 15 identify a float64."""
    return float(f"{number:.{digits}g}")


def weighted_sum(ranges: _Ranges, function: Callable[[np.ndarray], np.ndarray]) -> float:
    """Returns the sum of a function of all values, rounded once, so that pieces do not matter."""
    return math.fsum(chain.from_iterable((function(to_values(k)) * c).tolist() for k, c in ranges()))


def _knots(ranges: _Ranges, present: int) -> list[tuple[float, float]]:
    """Returns some of the values and their ranks; see `FittedDense`."""
    if sum(len(keys_K) for keys_K, _ in ranges()) <= KNOTS:
        wanted = None
    else:
        scores = np.linspace(-_FARTHEST, _FARTHEST, KNOTS - 2)  # and the ends
        wanted = np.array([_NORMAL.cdf(score) for score in scores])
    knots: list[tuple[float, float]] = []
    below, last = 0, (0.0, 0.0)
    for keys_K, counts_K in ranges():
        if not len(keys_K):
            continue
        ends_K = below + np.cumsum(counts_K)
        ranks_K = (ends_K - counts_K / 2) / present
        places = np.arange(len(keys_K))
        if wanted is not None:
            places = np.unique(np.searchsorted(ranks_K, wanted))
            if not knots:
                places = np.union1d(places, [0])
            # Later values are found in a later piece.
            wanted, places = wanted[wanted > ranks_K[-1]], places[places < len(keys_K)]
        knots += [_knot(*knot) for knot in zip(to_values(keys_K[places]), ranks_K[places], strict=True)]
        below, last = int(ends_K[-1]), _knot(to_values(keys_K[-1:])[0], ranks_K[-1])
    return knots if knots[-1] == last else [*knots, last]


def _knot(value: float, rank: float) -> tuple[float, float]:
    return _decimal(value, 9), _decimal(rank)


def float16_suffices(fitted: FittedDense, ranges: _Ranges, others: _Ranges) -> bool:
    """Returns whether float16 is exact enough for a column, relative to the spread of its values, and wide enough.

    The spread is the standard deviation of a normal distribution with the same quartiles, or that of the values if it
    is smaller, so that outliers do not count.

    Args:
        fitted, ranges: the values of training examples, see `fit`.
        others: those of all other examples.
    """
    if any(
        len(keys_K) and abs(to_values(keys_K[[0, -1]])).max() > _LARGEST_FLOAT16
        for keys_K, _ in chain(ranges(), others())
    ):
        return False
    quartiles = (fitted.quantile(0.75) - fitted.quantile(0.25)) / (_NORMAL.inv_cdf(0.75) - _NORMAL.inv_cdf(0.25))
    spread = min(quartiles, fitted.deviation) if quartiles > 0 else fitted.deviation
    moved = weighted_sum(ranges, lambda values_K: np.square(values_K - values_K.astype(np.float16)))
    return math.sqrt(moved / max(fitted.present, 1)) <= _MOST_ERROR * spread
