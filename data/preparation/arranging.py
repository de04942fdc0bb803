"""Arranges the rows of a preparation for a split that does not follow the input.

Training rows come first then, followed by validation and test, so that later phases need not know the rule.

For a split at random or by groups each part is divided into three.

For a split by time it is an external merge sort: each part is written in the order of its keys, the times. The rows of
all parts in the order of their keys, and of their place in the input where keys are equal, become as many new parts.

Many parts are merged in several passes, each of which reads and writes all rows once: groups of consecutive parts
first, then groups of those. Two passes arrange 1,024 parts (268 million rows), three 32,768. The time of a row depends
on their number alone, and memory on the size of a part.
N rows, P parts.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from dlrmctl.data.formats.raw import join_pieces
from dlrmctl.data.moments import parse_moment, shown_key
from dlrmctl.data.preparation.keys import DEFAULT_FRACTIONS, final_keys
from dlrmctl.data.preparation.parts import PartInfo, Parts
from dlrmctl.data.preparation.selection import SplitSizes, check_sizes
from dlrmctl.data.source import SPLITS
from dlrmctl.data.splits import Split
from dlrmctl.data.workers.pool import Shared, Workers

MOST_MERGED = 32  # groups of parts; a part of 262,144 rows then has about 8,192 of each
_MOST_OPEN = 128  # files of keys


class KeyOrder:
    """The rows of consecutive parts in the order of their keys, and of their place in the parts where keys are equal.

    Args:
        parts: parts with keys, each in their order.
        numbers: the parts; None for all of them.

    Attributes:
        numbers: see above; arrays [P] are in their order.
        sizes: int64 [P], the rows of each.
        rows: of all.
    """

    def __init__(self, parts: Parts, numbers: range | None = None) -> None:
        self.numbers = range(len(parts)) if numbers is None else numbers
        self.sizes = np.array([parts.infos[part].rows for part in self.numbers], dtype=np.int64)
        self.rows = int(self.sizes.sum())
        self._parts, self._opened = parts, OrderedDict[int, np.ndarray]()
        self._filled = np.flatnonzero(self.sizes)
        ends = [(run[0], run[-1]) for run in map(self._run, self._filled.tolist())]
        self._lows, self._highs = np.zeros((2, len(self.sizes)), dtype=np.uint64)
        self._lows[self._filled], self._highs[self._filled] = np.array(ends, dtype=np.uint64).reshape(-1, 2).T

    @property
    def in_order(self) -> bool:
        """Whether the rows of the parts, one after the other, are in order."""
        return bool((self._highs[self._filled[:-1]] <= self._lows[self._filled[1:]]).all())

    def below(self, key: int) -> int:
        """Returns the number of rows whose key is below this one."""
        return int(self._up_to(key, "left").sum())

    def first_part_with(self, low: int, high: int) -> int:
        """Returns the first part that has a key in [low, high], which some part has."""
        has = self._up_to(low, "left") < self._up_to(high, "right")
        return self.numbers[int(has.argmax())]

    def around(self, rank: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Returns the key of the row at `rank`, and the numbers of rows of each part below it and up to it."""
        low, high = self._between(rank)
        while low < high:
            middle = (low + high) // 2
            if int(self._up_to(middle, "right").sum()) > rank:
                high = middle
            else:
                low = middle + 1
        return low, self._up_to(low, "left"), self._up_to(low, "right")

    def _between(self, rank: int) -> tuple[int, int]:
        """Returns two keys around that of the row at `rank`, by the first and last keys of parts."""
        bounds = []
        for ends in (self._lows, self._highs):
            by_end = self._filled[np.argsort(ends[self._filled])]
            part = by_end[np.searchsorted(np.cumsum(self.sizes[by_end]), rank, side="right")]
            bounds.append(int(ends[part]))
        return bounds[0], bounds[1]

    def _up_to(self, key: int, side: Literal["left", "right"]) -> np.ndarray:
        """Returns the number of rows of each part that are below a key (left), or up to it (right): int64 [P]."""
        word = np.uint64(key)
        whole_P = self._highs < word if side == "left" else self._highs <= word
        none_P = self._lows >= word if side == "left" else self._lows > word
        counts_P = np.where(whole_P, self.sizes, 0)
        for part in np.flatnonzero(~whole_P & ~none_P).tolist():
            counts_P[part] = np.searchsorted(self._run(part), word, side=side)
        return counts_P

    def _run(self, part: int) -> np.ndarray:
        """The keys of a part; few are open at a time."""
        run = self._opened.pop(part, None)
        if run is None:
            run = self._parts.keys(self.numbers[part])
        self._opened[part] = run
        if len(self._opened) > _MOST_OPEN:
            self._opened.popitem(last=False)
        return run

    def places(self, rank: int) -> np.ndarray:
        """Returns how many of the first `rank` rows are in each part: the first ones of the part; int64 [P]."""
        if rank >= self.rows:
            return self.sizes
        _, first_P, last_P = self.around(rank)
        equal_P = last_P - first_P
        before_P = np.cumsum(equal_P) - equal_P
        return first_P + np.clip(rank - int(first_P.sum()) - before_P, 0, equal_P)

    def nearest_change(self, rank: int) -> int:
        """Returns the rank nearest to `rank` at which the key changes."""
        if rank >= self.rows:
            return self.rows
        _, first_P, last_P = self.around(rank)
        low, high = int(first_P.sum()), int(last_P.sum())
        return low if rank - low <= high - rank else high


@dataclass(frozen=True)
class Arranged:
    """The splits of arranged rows.

    Attributes:
        sizes: rows of each split before sampling.
        ends: the first and the last time of each split, as texts.
    """

    sizes: SplitSizes
    ends: dict[str, tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {"sizes": vars(self.sizes), "ends": self.ends}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Arranged":
        """Parses what `to_dict` returned."""
        return cls(SplitSizes(**values["sizes"]), {split: tuple(ends) for split, ends in values["ends"].items()})


def cut_by_keys(order: KeyOrder, split: Split, kind: Literal["time", "number"]) -> Arranged:
    """Cuts the ordered rows into splits.

    Args:
        order: the order of all rows.
        split: a split by time.
        kind: what the keys are.

    Raises:
        DataError: if a split is left empty.
    """
    if split.until:
        moments = [parse_moment(text) for text in split.until]
        bounds = [order.below(moment[0]) for moment in moments if moment]
    else:
        train, validation, _ = split.fractions or DEFAULT_FRACTIONS
        bounds = [order.nearest_change(round(order.rows * share)) for share in (train, train + validation)]
    sizes = SplitSizes(bounds[0], bounds[1] - bounds[0], order.rows - bounds[1])
    ends = [0, *bounds, order.rows]
    low, high = (shown_key(order.around(rank)[0], kind) for rank in (0, order.rows - 1))
    check_sizes(sizes, f"{split.column} is from {low} to {high}")
    shown = {}
    for name, start, stop in zip(SPLITS, ends, ends[1:], strict=False):
        first, last = (shown_key(order.around(rank)[0], kind) for rank in (start, stop - 1))
        shown[name] = first, last
    return Arranged(sizes, shown)


def divide_parts(
    parts: Parts, target: Parts, split: Split, workers: Workers, progress: Callable[[int, int], None]
) -> None:
    """Writes the rows of each part p as three parts, one of each split: p, P + p and 2 P + p.

    Args:
        parts: in the order of the input, with keys if the split is by groups.
        target: parts without keys; is filled.
        split: at random or by groups.
        workers: for the parts.
        progress: called with the number of rows that are written, and of those written by an earlier call.

    Raises:
        DataError: if the disk is full.
    """
    found = [[target.written(number) for number in _divided(parts, part)] for part in range(len(parts))]
    starts = np.cumsum([0, *(info.rows for info in parts.infos)]).tolist()
    missing = [part for part, infos in enumerate(found) if None in infos]
    begun = done = starts[-1] - sum(parts.infos[part].rows for part in missing)
    shared = Shared((parts, target, split))
    calls = (partial(_divide, shared, part, starts[part]) for part in missing)
    for part, infos in zip(missing, workers.in_order(calls), strict=True):
        found[part][:] = infos
        done += parts.infos[part].rows
        progress(done, begun)
    for of_split in zip(*found, strict=True):
        for info in of_split:
            assert info is not None
            target.add(info)


def _divided(parts: Parts, part: int) -> range:
    """The numbers of the new parts."""
    return range(part, len(SPLITS) * len(parts), len(parts))


def _divide(shared: Shared[tuple[Parts, Parts, Split]], part: int, first: int) -> list[PartInfo]:
    """Writes the rows of a part as one part of each split; the texts are with the first.

    Args:
        shared: the parts, the new parts, and the rule.
        part: number of the part.
        first: number of its first row.
    """
    parts, target, split = shared.get()
    count = parts.infos[part].rows
    written_N = parts.some_keys(part, 0, count) if split.by == "group" else None
    draws_N, whole, infos = final_keys(split, written_N, first, count), parts.rows(part, 0, count), []
    for drawn, number in enumerate(_divided(parts, part)):
        piece = whole.pick(np.flatnonzero(draws_N == drawn))
        if drawn == 0:
            texts = [replace(column, texts=parts.some_texts(part, f)) for f, column in enumerate(piece.sparse)]
            piece = replace(piece, sparse=texts)
        infos.append(target.write(number, [piece], {}))
    return infos


def spans_of_passes(order: KeyOrder) -> list[int]:
    """Returns how many consecutive parts each pass merges, to arrange all of them; nothing if they are in order."""
    if order.in_order:
        return []
    number = len(order.numbers)
    passes = next(passes for passes in itertools.count(1) if MOST_MERGED**passes >= number)
    groups = next(groups for groups in itertools.count(1) if groups**passes >= number)
    return [groups**done for done in range(1, passes + 1)]


def merge_parts(parts: Parts, target: Parts, span: int, workers: Workers, progress: Callable[[int, int], None]) -> None:
    """Writes the missing ones of as many new parts, which have the rows of every `span` consecutive parts in order.

    New parts of a group are of about equal size; part q has the texts of part q, whatever its rows are.

    Args:
        parts: with keys.
        target: parts with keys; is filled.
        span: see above; the last group may be smaller.
        workers: for new parts.
        progress: called with the number of rows that are written, and of those written by an earlier call.

    Raises:
        DataError: if the disk is full.
    """
    target.load()
    begun = done = sum(info.rows for info in target.infos)
    for info in workers.in_order(_gathering(parts, target, span)):
        target.add(info)
        done += info.rows
        progress(done, begun)


def _gathering(parts: Parts, target: Parts, span: int) -> Iterator[Callable[[], PartInfo]]:
    """Yields the calls that write the missing parts of a pass, which merges groups of `span` consecutive parts."""
    shared, missing = Shared((parts, target)), len(target)
    for first in range(0, len(parts), span):
        group = range(first, min(first + span, len(parts)))
        if group.stop <= missing:
            continue
        order, begin = KeyOrder(parts, group), max(missing - first, 0)
        starts_P = order.places(begin * order.rows // len(group))
        for place in range(begin, len(group)):
            stops_P = order.places((place + 1) * order.rows // len(group))
            places = np.flatnonzero(starts_P < stops_P).tolist()
            some = [(first + part, int(starts_P[part]), int(stops_P[part])) for part in places]
            yield partial(_gather, shared, first + place, some)
            starts_P = stops_P


def _gather(shared: Shared[tuple[Parts, Parts]], number: int, some: Sequence[tuple[int, int, int]]) -> PartInfo:
    """Writes rows of several parts as one, in order, with the texts of one part.

    Args:
        shared: the parts, and the new parts.
        number: of the new part, and of the one with the texts.
        some: parts, and the first row and the one after the last in each.
    """
    parts, target = shared.get()
    some = some or [(number, 0, 0)]
    keys_N = np.concatenate([parts.some_keys(part, start, stop) for part, start, stop in some])
    piece = join_pieces([parts.rows(part, start, stop) for part, start, stop in some])
    columns = [replace(column, texts=parts.some_texts(number, f)) for f, column in enumerate(piece.sparse)]
    return target.write(number, [replace(piece, sparse=columns)], {}, keys_N)
