"""Arranges the rows of a preparation for a split that does not follow the input: an external merge sort.

Each part is written in the order of its keys: the times, or for other splits the number of the split. The rows of all
parts in the order of their keys, and of their place in the input where keys are equal, become as many new parts. So
training rows come first, then validation, then test, and later phases need not know the rule.

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

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.raw import Input, RawPiece, join_pieces
from dlrmctl.data.formats.table_schema import nearest
from dlrmctl.data.moments import parse_moment, shown_key
from dlrmctl.data.preparation.parts import PartInfo, Parts
from dlrmctl.data.preparation.selection import SplitSizes, check_sizes
from dlrmctl.data.randomness import mix
from dlrmctl.data.source import SPLITS
from dlrmctl.data.splits import Split
from dlrmctl.data.workers.pool import Shared, Workers

_BITS = 53  # of a draw
_SALT = 0x5DEECE66D5B0C1F7  # apart from the draws of a sample of the negatives
ARRANGED_BY = ("random", "time", "group")  # other splits follow the input
DEFAULT_FRACTIONS = (6 / 7, 1 / 14, 1 / 14)
MOST_MERGED = 32  # groups of parts; a part of 262,144 rows then has about 8,192 of each
_MOST_OPEN = 128  # files of keys


def check_split(split: Split, input: Input) -> None:
    """Checks that an input has what a split needs.

    Raises:
        DataError: if a column is missing or has other values, or there are too few files.
    """
    if split.by == "last-file" and len(input.sources) < 2:
        raise DataError("splitting by the last file needs at least two files", "split a single file by order")
    if split.by == "time" and input.keyed_by is None:
        raise DataError(f"{input.format} data has no column of times", "give the oldest files first: split by order")
    if split.by == "group" and input.keyed_by is None:
        _grouping_feature(split, input)
    if split.until:
        moment = parse_moment(split.until[0])
        assert moment is not None
        if moment[1] != input.keyed_by:
            ours, theirs = ("times", "numbers") if input.keyed_by == "time" else ("numbers", "times")
            raise DataError(
                f"column {split.column!r} has {ours}, but the splits end at {theirs}: {split.until[0]}",
                f"give --until {ours}" + ("" if ours == "times" else ", or the schema the epoch of the column"),
            )


def _grouping_feature(split: Split, input: Input) -> int:
    """Returns the number of the sparse feature whose values are the groups, for an input without keys."""
    names = [feature.name for feature in input.sparse if feature.max_ids == 1]
    if split.column not in names:
        hint = nearest(str(split.column), names) or f"the columns are {names[0]} to {names[-1]}"
        raise DataError(f"{input.format} data has no column {split.column!r} to split by", hint)
    return [feature.name for feature in input.sparse].index(split.column)


def keys_of(split: Split, input: Input) -> Callable[[Sequence[RawPiece], int], np.ndarray] | None:
    """Returns what makes the keys of the rows of a part; None if the split follows the input.

    It takes the pieces of the part and the number of their first row, and returns uint64 [N].
    """
    if split.by == "time":
        return lambda pieces, _: np.concatenate([_keys(piece) for piece in pieces])
    if split.by == "random":
        return lambda pieces, first: _drawn(split, _positions(pieces, first))
    if split.by == "group":
        feature = None if input.keyed_by else _grouping_feature(split, input)
        return partial(_group_keys, split, feature)
    return None


def _keys(piece: RawPiece) -> np.ndarray:
    assert piece.keys is not None, "the input was asked for them"
    return piece.keys.keys_N


def _positions(pieces: Sequence[RawPiece], first: int) -> np.ndarray:
    return np.arange(first, first + sum(len(piece) for piece in pieces), dtype=np.uint64)


def _group_keys(split: Split, feature: int | None, pieces: Sequence[RawPiece], first: int) -> np.ndarray:
    words, given = [], []
    for piece in pieces:
        if feature is None:
            assert piece.keys is not None
            words.append(piece.keys.keys_N)
            given.append(piece.keys.given_N)
        else:
            present_N = piece.sparse[feature].present_N
            assert present_N is not None
            words.append(piece.sparse[feature].values.astype(np.uint64))
            given.append(present_N)
    # Twice mixed, a group is not drawn like the row of its number.
    words_N = np.where(np.concatenate(given), mix(np.concatenate(words)), _positions(pieces, first))
    return _drawn(split, words_N)


def _drawn(split: Split, words_N: np.ndarray) -> np.ndarray:
    """Returns the number of the split of each row, uint64 [N], by a hash of its word and the seed."""
    draws_N = mix(mix(words_N) ^ mix(np.array([split.seed ^ _SALT], np.uint64))) >> np.uint64(64 - _BITS)
    train, validation, _ = split.fractions or DEFAULT_FRACTIONS
    ends = np.array([train, train + validation]) * (1 << _BITS)
    return np.searchsorted(ends.astype(np.uint64), draws_N, side="right").astype(np.uint64)


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
        ends: for a split by time, the first and the last time of each split, as texts.
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


def cut_by_keys(order: KeyOrder, split: Split, kind: Literal["time", "number", "group"] | None) -> Arranged:
    """Cuts the ordered rows into splits.

    Args:
        order: the order of all rows.
        split: a split by time, at random or by group.
        kind: what the keys of a split by time are.

    Raises:
        DataError: if a split is left empty.
    """
    if split.by != "time":
        bounds = [order.below(1), order.below(2)]
    elif split.until:
        moments = [parse_moment(text) for text in split.until]
        bounds = [order.below(moment[0]) for moment in moments if moment]
    else:
        train, validation, _ = split.fractions or DEFAULT_FRACTIONS
        bounds = [order.nearest_change(round(order.rows * share)) for share in (train, train + validation)]
    sizes = SplitSizes(bounds[0], bounds[1] - bounds[0], order.rows - bounds[1])
    ends = [0, *bounds, order.rows]
    if split.by != "time":
        check_sizes(sizes, "there are too few rows" if split.by == "random" else "there are too few groups")
        return Arranged(sizes, {})
    assert kind is not None
    assert kind != "group"
    low, high = (shown_key(order.around(rank)[0], kind) for rank in (0, order.rows - 1))
    check_sizes(sizes, f"{split.column} is from {low} to {high}")
    shown = {}
    for name, start, stop in zip(SPLITS, ends, ends[1:], strict=False):
        first, last = (shown_key(order.around(rank)[0], kind) for rank in (start, stop - 1))
        shown[name] = first, last
    return Arranged(sizes, shown)


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
