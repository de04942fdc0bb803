"""Counts and exact sums of the float16 values of a dense feature, part by part and joined."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_UNIT = 2.0**-24  # every finite float16 is a whole multiple of it, so that sums of them are exact as integers
# All float16 values by their 16 bits, and their multiples of the unit.
with np.errstate(invalid="ignore"):
    _VALUES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
_FINITE = np.isfinite(_VALUES)
_UNITS = (np.where(_FINITE, _VALUES, 0.0) / _UNIT).astype(np.int64)


class DenseTally(NamedTuple):
    """Values of a dense feature in one part.

    Attributes:
        absent, present: how many are missing, and how many are not.
        units: sum of the present ones, in units of 2**-24.
        low, high: of the present ones; 0 where there is none.
    """

    absent: int
    present: int
    units: int
    low: float
    high: float


class DenseSummary(NamedTuple):
    """Values of a dense feature in all parts; `mean`, `low` and `high` are 0 where none is present."""

    absent: int
    present: int
    mean: float
    low: float
    high: float


def dense_tally(values_N: np.ndarray, missing: float | None) -> DenseTally:
    """Counts the values of a part.

    The sum is exact, so that it does not depend on how the values are divided into pieces.

    Args:
        values_N: float16, at most 2**23.
        missing: the value that stands for a missing one.
    """
    counts = np.bincount(values_N.view(np.uint16), minlength=1 << 16)
    absent = 0
    if missing is not None:
        code = int(np.array([missing], np.float16).view(np.uint16)[0])
        absent, counts[code] = int(counts[code]), 0
    counts[~_FINITE] = 0
    seen = _VALUES[counts > 0]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)
    return DenseTally(absent, int(counts.sum()), int(counts @ _UNITS), low, high)


def join_dense_tallies(tallies: Sequence[DenseTally]) -> DenseSummary:
    """The values of all parts together."""
    present = sum(tally.present for tally in tallies)
    some = [tally for tally in tallies if tally.present]
    return DenseSummary(
        absent=sum(tally.absent for tally in tallies),
        present=present,
        mean=sum(tally.units for tally in tallies) / present * _UNIT if present else 0.0,
        low=min((tally.low for tally in some), default=0.0),
        high=max((tally.high for tally in some), default=0.0),
    )
