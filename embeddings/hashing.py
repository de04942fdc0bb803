"""Two independent hash functions per id: two ids are the same only where both collide."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from embeddings.partitions import at_least

# Constants of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), as int64.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def mix(ids: Tensor, seed: Tensor | int) -> Tensor:
    """The ids scattered over [0, 2**63): output number `seed` of splitmix64 from the state `id`.

    Every bit of an id changes every bit of the result about half of the time; different seeds are unrelated.

    Args:
        ids: integers of any shape.
        seed: an integer, or a tensor of them that broadcasts against `ids`.

    Returns:
        int64, of the shape of `ids`. Products wrap around at 64 bits, as they are meant to.
    """
    mixed = ids.long() + _GOLDEN * (seed + torch.ones((), dtype=torch.int64, device=ids.device))
    mixed ^= _shifted(mixed, 30)
    mixed *= _FIRST
    mixed ^= _shifted(mixed, 27)
    mixed *= _SECOND
    mixed ^= _shifted(mixed, 31)
    return mixed.bitwise_and_(2**63 - 1)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """A shift to the right that brings in zeros; that of int64 repeats the sign."""
    return (values >> bits).bitwise_and_(2 ** (64 - bits) - 1)


@dataclass(frozen=True)
class DoubleHash:
    """Two tables of `buckets` rows; each has its own hash of the id, which depends on nothing else.

    Two ids share both rows with probability 1 / buckets**2: rarely, but nothing rules it out.

    Source: Zhang et al., Model Size Reduction Using Frequency Based Double Hashing, arXiv:2007.14523; Svenstrup et
    al., Hash Embeddings, arXiv:1709.03933.
    """

    rows: int
    buckets: int
    complementary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least("rows", self.rows, 1)
        at_least("buckets", self.buckets, 1)

    @property
    def table_rows(self) -> tuple[int, int]:
        return (self.buckets, self.buckets)

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        first, second = ((mix(ids, seed) % self.buckets).to(ids.dtype) for seed in (0, 1))
        return first, second
