"""Partitions in which frequent ids have their own row and the others share rows; ids must be sorted by frequency.

Ids that are added later are sorted among themselves. `added` lists those of them that have their own row too, as ranges
(first id, number of ids): their rows follow the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlrmctl.embeddings.partitions.basic import Partition, at_least

Range = tuple[int, int]


@dataclass(frozen=True)
class HeadHash:
    """One table: ids below `head` have a row each, the others share the `buckets` rows after them."""

    rows: int
    head: int
    buckets: int
    added: tuple[Range, ...] = ()
    complementary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.rows, self.head)
        at_least("buckets", self.buckets, 1)

    @property
    def table_rows(self) -> tuple[int]:
        return (self.head + self.buckets + num_added(self.added),)

    def __call__(self, ids: Tensor) -> tuple[Tensor]:
        rows = torch.where(ids < self.head, ids, (ids - self.head) % self.buckets + self.head)
        places = places_of_added(ids, self.added)
        return (torch.where(places < 0, rows, places + self.head + self.buckets),)


@dataclass(frozen=True)
class Head:
    """One table with a row for every id below `head`; the others have no row."""

    rows: int
    head: int
    added: tuple[Range, ...] = ()
    complementary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.rows, self.head)

    @property
    def table_rows(self) -> tuple[int]:
        return (self.head + num_added(self.added),)

    def __call__(self, ids: Tensor) -> tuple[Tensor]:
        places = places_of_added(ids, self.added)
        return (torch.where(ids < self.head, ids, torch.where(places < 0, -1, places + self.head)),)


@dataclass(frozen=True)
class Tail:
    """The ids from `head` on, counted from 0 and partitioned by `inner`; those before have no row."""

    head: int
    inner: Partition
    added: tuple[Range, ...] = ()
    complementary: ClassVar[bool] = False

    @property
    def table_rows(self) -> tuple[int, ...]:
        return self.inner.table_rows

    def __call__(self, ids: Tensor) -> tuple[Tensor, ...]:
        in_head = (ids < self.head) | (places_of_added(ids, self.added) >= 0)
        return tuple(rows.masked_fill(in_head, -1) for rows in self.inner((ids - self.head).clamp(min=0)))


@dataclass(frozen=True)
class HeadTail:
    """One table for the head, and the tables of a complementary partition for the tail."""

    head: Head
    tail: Tail
    complementary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        assert (self.head.head, self.head.added) == (self.tail.head, self.tail.added)
        assert self.tail.inner.complementary

    @property
    def table_rows(self) -> tuple[int, ...]:
        return (*self.head.table_rows, *self.tail.table_rows)

    def __call__(self, ids: Tensor) -> tuple[Tensor, ...]:
        return (*self.head(ids), *self.tail(ids))


def num_added(added: Sequence[Range]) -> int:
    """Returns the number of ids in all ranges."""
    return sum(count for _, count in added)


def places_of_added(ids: Tensor, added: Sequence[Range]) -> Tensor:
    """Returns the place of each id among those of the ranges, counted over all of them in order; -1 for other ids."""
    places = torch.full_like(ids, -1)
    before = 0
    for first, count in added:
        places = torch.where((ids >= first) & (ids < first + count), ids - first + before, places)
        before += count
    return places


def _check(rows: int, head: int) -> None:
    at_least("head", head, 1)
    if head >= rows:
        raise ValueError(f"{head=} must be below {rows=}; for a row per id use 'full'")
