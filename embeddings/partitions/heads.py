"""Partitions in which frequent ids have their own row and the others share rows; ids must be sorted by frequency."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlrmctl.embeddings.partitions.basic import Partition, at_least


@dataclass(frozen=True)
class HeadHash:
    """One table: ids below `head` have a row each, the others share the `buckets` rows after them."""

    rows: int
    head: int
    buckets: int
    complementary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.rows, self.head)
        at_least("buckets", self.buckets, 1)

    @property
    def table_rows(self) -> tuple[int]:
        return (self.head + self.buckets,)

    def __call__(self, ids: Tensor) -> tuple[Tensor]:
        return (torch.where(ids < self.head, ids, (ids - self.head) % self.buckets + self.head),)


@dataclass(frozen=True)
class Head:
    """One table with a row for every id below `head`; the others have no row."""

    rows: int
    head: int
    complementary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.rows, self.head)

    @property
    def table_rows(self) -> tuple[int]:
        return (self.head,)

    def __call__(self, ids: Tensor) -> tuple[Tensor]:
        return (torch.where(ids < self.head, ids, -1),)


@dataclass(frozen=True)
class Tail:
    """The ids from `head` on, counted from 0 and partitioned by `inner`; those before have no row."""

    head: int
    inner: Partition
    complementary: ClassVar[bool] = False

    @property
    def table_rows(self) -> tuple[int, ...]:
        return self.inner.table_rows

    def __call__(self, ids: Tensor) -> tuple[Tensor, ...]:
        in_head = ids < self.head
        return tuple(rows.masked_fill(in_head, -1) for rows in self.inner((ids - self.head).clamp(min=0)))


@dataclass(frozen=True)
class HeadTail:
    """One table for the head, and the tables of a complementary partition for the tail."""

    head: Head
    tail: Tail
    complementary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        assert self.head.head == self.tail.head
        assert self.tail.inner.complementary

    @property
    def table_rows(self) -> tuple[int, ...]:
        return (*self.head.table_rows, *self.tail.table_rows)

    def __call__(self, ids: Tensor) -> tuple[Tensor, ...]:
        return (*self.head(ids), *self.tail(ids))


def _check(rows: int, head: int) -> None:
    at_least("head", head, 1)
    if head >= rows:
        raise ValueError(f"{head=} must be below {rows=}; for a row per id use 'full'")
