"""Partitions: functions from the id of a feature to a row of each of its tables.

A partition is a small pure object: it knows how many rows its tables have and maps ids to rows. All arithmetic is on
integers: float32 cannot represent all ids above 2**24.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

# Constants of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), as int64.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


class Partition(Protocol):
    """Maps the ids of one feature to a row in each of its tables.

    `complementary` says whether any two ids differ in the row of at least one table. A row of -1 means that the id has
    no row in that table.
    """

    complementary: ClassVar[bool]

    @property
    def table_rows(self) -> tuple[int, ...]:
        """The number of rows of every table, in the order of `__call__`."""
        ...

    def __call__(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Returns the rows of `ids` (any shape, 0 <= id < rows), one tensor of the same shape and dtype per table."""
        ...


@dataclass(frozen=True)
class Full:
    """One row per id."""

    rows: int
    complementary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least("rows", self.rows, 1)

    @property
    def table_rows(self) -> tuple[int]:
        return (self.rows,)

    def __call__(self, ids: Tensor) -> tuple[Tensor]:
        return (ids,)


@dataclass(frozen=True)
class _Buckets:
    """Ids hashed into buckets; any two may share one."""

    rows: int
    buckets: int
    complementary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least("rows", self.rows, 1)
        at_least("buckets", self.buckets, 1)


@dataclass(frozen=True)
class Hash(_Buckets):
    """One table by `id mod buckets`: ids that differ by a multiple of `buckets` share a row."""

    @property
    def table_rows(self) -> tuple[int]:
        return (min(self.rows, self.buckets),)

    def __call__(self, ids: Tensor) -> tuple[Tensor]:
        return (ids % self.buckets,)


@dataclass(frozen=True)
class DoubleHash(_Buckets):
    """Two tables of `buckets` rows, each with its own hash of the id.

    Two ids share both rows with probability 1 / buckets**2.

    Source: Zhang et al., Model Size Reduction Using Frequency Based Double Hashing, arXiv:2007.14523; Svenstrup et
    al., Hash Embeddings, arXiv:1709.03933.
    """

    @property
    def table_rows(self) -> tuple[int, int]:
        return (self.buckets, self.buckets)

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        first, second = ((mix(ids, seed) % self.buckets).to(ids.dtype) for seed in (0, 1))
        return first, second


@dataclass(frozen=True)
class QuotientRemainder:
    """Two tables by `(id // divisor, id % divisor)`: the pair is different for every id, though each row is shared.

    The divisor decides which table is large. With a small one, the quotient table is large and neighbouring ids share
    its rows; with a large one, the remainder table is large and ids `divisor` apart share its rows. `of` builds
    either from the number of ids that share a row of the large table.

    Source: Shi et al., Compositional Embeddings Using Complementary Partitions, arXiv:1909.02107.
    """

    rows: int
    divisor: int
    complementary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least("rows", self.rows, 1)
        at_least("divisor", self.divisor, 1)

    @classmethod
    def of(cls, rows: int, collisions: int, *, large: str = "quotient") -> "QuotientRemainder":
        """Returns the partition in which at most `collisions` ids share a row of the large table.

        Args:
            rows: number of ids, >= 1.
            collisions: ids per row of the large table, >= 1.
            large: "quotient" (neighbours share) or "remainder" (ids `ceil(rows / collisions)` apart share, as in the
                paper's algorithm).

        Raises:
            ValueError: if a number is below 1 or `large` is neither.
        """
        at_least("rows", rows, 1)
        at_least("collisions", collisions, 1)
        if large == "quotient":
            return cls(rows, collisions)
        if large == "remainder":
            return cls(rows, ceil_div(rows, collisions))
        raise ValueError(f"{large=} must be 'quotient' or 'remainder'")

    @property
    def table_rows(self) -> tuple[int, int]:
        return (ceil_div(self.rows, self.divisor), min(self.rows, self.divisor))

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return ids // self.divisor, ids % self.divisor


def ceil_div(a: int, b: int) -> int:
    """Returns the quotient of two positive integers, rounded up."""
    return -(-a // b)


def at_least(name: str, value: int, bound: int) -> None:
    """Checks that a number is at least `bound`.

    Raises:
        ValueError: if it is not.
    """
    if value < bound:
        raise ValueError(f"{name}={value} must be at least {bound}")


def mix(ids: Tensor, seed: Tensor | int) -> Tensor:
    """Hashes ids to [0, 2**63): output number `seed` of splitmix64 from the state `id`.

    Every bit of an id changes every bit of the result with a probability of about 1/2; different seeds are unrelated.

    Args:
        ids: integers of any shape.
        seed: an integer, or a tensor of them that broadcasts against `ids`.

    Returns:
        int64, of the shape of `ids`. Products wrap around at 64 bits, as intended.
    """
    mixed = ids.long() + _GOLDEN * (seed + torch.ones((), dtype=torch.int64, device=ids.device))
    mixed ^= _shifted(mixed, 30)
    mixed *= _FIRST
    mixed ^= _shifted(mixed, 27)
    mixed *= _SECOND
    mixed ^= _shifted(mixed, 31)
    return mixed.bitwise_and_(2**63 - 1)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shifts right and fills with zeros; the shift of int64 repeats the sign."""
    return (values >> bits).bitwise_and_(2 ** (64 - bits) - 1)
