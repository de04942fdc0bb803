"""Chooses an option for each table, such that all together fit a size or an error.

Tables are added one at a time to the Pareto frontier of total bytes and error. The frontier is exact while it is short;
a longer one keeps the least error of every step of 0.02 % in bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STEP = 2e-4
_EXACT_POINTS = 20_000


@dataclass(frozen=True)
class Option:
    """One way to store one table: its bytes, and its error or predicted increase of the loss."""

    num_bytes: int
    error: float


@dataclass(frozen=True)
class Choice:
    """An option for each table.

    Attributes:
        indices: the index of each table's option.
        num_bytes, error: sums over the tables.
    """

    indices: tuple[int, ...]
    num_bytes: int
    error: float


class Frontier:
    """The Pareto frontier of choices for several tables, from the smallest to the most exact.

    Args:
        tables: the options of each table, at least one each.

    Attributes:
        num_bytes: int64, increasing. errors: float64, decreasing.

    Raises:
        ValueError: if a table has no options, or an option a negative or not finite number.
    """

    def __init__(self, tables: Sequence[Sequence[Option]]) -> None:
        self.num_bytes, self.errors = np.zeros(1, dtype=np.int64), np.zeros(1)
        self._steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # the previous point, and the option taken
        for number, options in enumerate(tables):
            if not options:
                raise ValueError(f"table {number} has no options")
            num_bytes = np.array([option.num_bytes for option in options], dtype=np.int64)
            errors = np.array([option.error for option in options], dtype=np.float64)
            if not np.isfinite(errors).all() or errors.min() < 0 or num_bytes.min() < 0:
                raise ValueError(f"table {number}: bytes and errors must be finite and at least 0: {options}")
            self._add(num_bytes, errors)

    def _add(self, num_bytes: NDArray[np.int64], errors: NDArray[np.float64]) -> None:
        all_bytes = (self.num_bytes[:, None] + num_bytes).ravel()
        all_errors = (self.errors[:, None] + errors).ravel()
        order = np.lexsort((all_errors, all_bytes))
        ordered = all_errors[order]
        least_before = np.minimum.accumulate(np.concatenate(([np.inf], ordered[:-1])))
        kept = order[ordered < least_before]
        if len(kept) > _EXACT_POINTS:
            kept = kept[_last_of_each_step(all_bytes[kept])]
        self.num_bytes, self.errors = all_bytes[kept], all_errors[kept]
        self._steps.append((kept // len(errors), kept % len(errors)))

    def choice(self, point: int) -> Choice:
        """Returns the options of one point of the frontier."""
        point = range(len(self.num_bytes))[point]
        indices, at = [], point
        for before, option in reversed(self._steps):
            indices.append(int(option[at]))
            at = before[at]
        return Choice(tuple(reversed(indices)), int(self.num_bytes[point]), float(self.errors[point]))

    def within_bytes(self, most: int) -> Choice:
        """Returns the choice with the least error in at most this many bytes.

        Raises:
            ValueError: if the smallest choice is larger.
        """
        points = int(np.searchsorted(self.num_bytes, most, side="right"))
        if points == 0:
            raise ValueError(f"{most:,} bytes are fewer than the smallest options need, {int(self.num_bytes[0]):,}")
        return self.choice(points - 1)

    def within_error(self, most: float) -> Choice:
        """Returns the choice with the fewest bytes and at most this error.

        Raises:
            ValueError: if the most exact choice has more.
        """
        good = np.flatnonzero(self.errors <= most)
        if len(good) == 0:
            raise ValueError(f"an error of {most:.6g} is below that of the most exact options, {self.errors[-1]:.6g}")
        return self.choice(int(good[0]))


def predicted_options(
    sizes: Sequence[Sequence[int]], proxies: Sequence[Sequence[float]], calibration: float | Sequence[float]
) -> list[list[Option]]:
    """Returns options whose errors are predicted increases of the loss: calibration constant times proxy.

    Args:
        sizes: bytes, table by table and option by option.
        proxies: weighted errors in the source's unit, of the same lengths.
        calibration: one constant, or one per table.
    """
    constants = [calibration] * len(sizes) if isinstance(calibration, int | float) else list(calibration)
    return [
        [Option(size, constant * proxy) for size, proxy in zip(of_table, errors, strict=True)]
        for of_table, errors, constant in zip(sizes, proxies, constants, strict=True)
    ]


def _last_of_each_step(num_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
    steps = np.floor(np.log(np.maximum(num_bytes, 1)) / _STEP)
    return np.flatnonzero(np.append(steps[1:] != steps[:-1], True))
