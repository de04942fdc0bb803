"""Columns of raw values: each reads its values, finds their rows in a table, and keeps the rows of frequent values.

B rows of a call, N values.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from dlrmctl.data.features.encoders import AsRows, Encoder
from dlrmctl.data.schema import MISSING_ROW
from dlrmctl.serving.errors import RowError, ValueProblem, shown
from dlrmctl.serving.values import JsonNumber, NumberReader, is_nothing

MOST_KEPT = 1 << 16  # values of a column whose rows are kept in memory
PLAIN = (str, int, JsonNumber)  # equal values of these types are equal in every way
_WORD = 1 << 64
_NUMBERS = NumberReader(())
_MOST_WEIGHT = float(np.finfo(np.float32).max)

Word = Callable[[Any], int | None]
_Read = TypeVar("_Read")


def mixed(word: int) -> int:
    """Returns `data.randomness.mix` of one word."""
    word ^= word >> 33
    word = word * 0xFF51AFD7ED558CCD % _WORD
    word ^= word >> 33
    word = word * 0xC4CEB9FE1A85EC53 % _WORD
    return word ^ word >> 33


def of_second(read: Callable[[Any], _Read], value: Any) -> _Read:
    """Reads the second value of a pair."""
    try:
        return read(value)
    except ValueProblem as problem:
        problem.place = 1
        raise


def crossed(first: Word, second: Word) -> Word:
    """Returns what reads pairs of values as words: missing where one is missing."""

    def read(pair: tuple[Any, Any]) -> int | None:
        one, other = first(pair[0]), of_second(second, pair[1])
        return None if one is None or other is None else mixed((mixed(one) + other) % _WORD)

    return read


def _not_empty(items: Sequence[Any]) -> Sequence[Any]:
    """Returns a list with weights: one empty text, which an empty field gives, is no value."""
    return () if len(items) == 1 and items[0] == "" else items


def _weight(row: int, column: str, value: Any) -> float:
    try:
        number = _NUMBERS(value)
    except ValueProblem as problem:
        raise RowError(row, column, str(problem)) from None
    if not abs(number) <= _MOST_WEIGHT:  # nor NaN
        raise RowError(row, column, f"{shown(value)} is not a finite number")
    return number


def _padded(rows: Sequence[list[Any]], padding: float, dtype: type) -> np.ndarray:
    longest = max(1, *map(len, rows))
    return np.array([row + [padding] * (longest - len(row)) for row in rows], dtype=dtype)


class IdColumn:
    """One sparse feature.

    Args:
        name: name of the feature.
        sources: the columns of the raw rows that are read: one, or the two of a cross.
        word: reads a value, or a pair of them, as a word; raises `ValueProblem`.
        encoder: maps words to rows.
        word_type: of the words, uint32 or uint64.
        max_ids: longest list; 1 for single values.
        truncate: "reject", "first" or "last", for longer lists.
        weights: the column of the weights of lists, if any.
        separator: between the values of a list that is one string; None if a string is no list.
        missing: whether a value may be missing; missing values of lists are dropped then.
        kept: types of values whose rows are kept; equal values of them must have equal rows.
    """

    def __init__(
        self,
        name: str,
        sources: tuple[str, ...],
        word: Word,
        encoder: Encoder,
        *,
        word_type: np.dtype,
        max_ids: int = 1,
        truncate: str = "reject",
        weights: str | None = None,
        separator: str | None = None,
        missing: bool = True,
        kept: tuple[type, ...] = PLAIN,
    ) -> None:
        self.name, self.sources, self.max_ids, self.weights = name, sources, max_ids, weights
        self._word, self._encoder, self._type = word, encoder, word_type
        self._largest = encoder.rows if isinstance(encoder, AsRows) else None
        self._truncate, self._separator, self._missing = truncate, separator, missing
        self._kept_types = frozenset(kept)
        self._kept: dict[Any, int] = {}

    @property
    def all_sources(self) -> tuple[str, ...]:
        """The columns that are read, with that of weights."""
        return self.sources if self.weights is None else (*self.sources, self.weights)

    def ids(self, values: Sequence[Any]) -> np.ndarray:
        """Returns the ids of single values, int64 [B].

        Raises:
            RowError: for a wrong value.
        """
        kept = self._kept
        found = [kept.get(value, -1) if self._is_kept(value) else -1 for value in values]
        new = [place for place, row in enumerate(found) if row < 0]
        if new:
            self._find([values[place] for place in new], found, new, new)
        return np.array(found, dtype=np.int64)

    def lists(self, values: Sequence[Any]) -> np.ndarray:
        """Returns the ids of lists, int64 [B, L], shorter ones padded with -1.

        Raises:
            RowError: for a wrong value, or a list that is too long.
        """
        items_B = [self._items(row, value, self.sources[0]) for row, value in enumerate(values)]
        rows = [self._cut(row, kept) for row, kept in enumerate(self._present(items_B))]
        return _padded([[id for id, _ in row] for row in rows], -1, np.int64)

    def weighted_lists(self, values: Sequence[Any], weights: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of lists, as `lists`, and the weights of their values, float32 [B, L] padded with 0.

        Raises:
            RowError: as `lists`, and for weights that are not as many finite numbers as there are values.
        """
        assert self.weights is not None
        items_B = [_not_empty(self._items(row, value, self.sources[0])) for row, value in enumerate(values)]
        numbers_B = []
        for row, (items, given) in enumerate(zip(items_B, weights, strict=True)):
            numbers = [_weight(row, self.weights, one) for one in _not_empty(self._items(row, given, self.weights))]
            if len(numbers) != len(items):
                raise RowError(row, self.weights, f"{len(numbers)} weights for {len(items)} values")
            numbers_B.append(numbers)
        rows = [self._cut(row, kept) for row, kept in enumerate(self._present(items_B))]
        ids_BL = _padded([[id for id, _ in row] for row in rows], -1, np.int64)
        weights_B = [[numbers[place] for _, place in row] for row, numbers in zip(rows, numbers_B, strict=True)]
        return ids_BL, _padded(weights_B, 0.0, np.float32)

    def _present(self, items_B: Sequence[Sequence[Any]]) -> list[list[tuple[int, int]]]:
        """Returns the ids of lists, each with its place, without missing values."""
        flat = [item for items in items_B for item in items]
        owners = [row for row, items in enumerate(items_B) for _ in items]
        kept = self._kept
        found = [kept.get(value, -1) if self._is_kept(value) else -1 for value in flat]
        new = [place for place, id in enumerate(found) if id < 0]
        if new:
            self._find([flat[place] for place in new], found, new, [owners[place] for place in new])
        ids = iter(found)
        listed = ([(next(ids), place) for place in range(len(items))] for items in items_B)
        return [[pair for pair in row if pair[0] != MISSING_ROW or not self._missing] for row in listed]

    def _cut(self, row: int, values: list[tuple[int, int]]) -> list[tuple[int, int]]:
        if len(values) <= self.max_ids:
            return values
        if self._truncate == "reject":
            raise RowError(row, self.sources[0], f"{len(values)} values, at most {self.max_ids} are allowed")
        return values[-self.max_ids :] if self._truncate == "last" else values[: self.max_ids]

    def _is_kept(self, value: Any) -> bool:
        kind, types = type(value), self._kept_types
        return kind in types or (kind is tuple and all(type(one) in types for one in value))

    def _items(self, row: int, value: Any, column: str) -> Sequence[Any]:
        if isinstance(value, list | tuple | np.ndarray):
            return list(value)
        if is_nothing(value):
            return ()
        if self._separator is None:
            raise RowError(row, column, f"{shown(value)} is not a list")
        return value.split(self._separator) if isinstance(value, str) else (value,)

    def _find(self, values: list[Any], found: list[int], places: list[int], rows: list[int]) -> None:
        """Finds the ids of values; writes them to some places. `rows` are those of the values, for messages."""
        words: list[int] = []
        for row, value in zip(rows, values, strict=True):
            try:
                word = self._word(value)
            except ValueProblem as problem:
                raise RowError(row, self.sources[problem.place], str(problem)) from None
            if word is None and not self._missing:
                raise RowError(row, self.sources[0], "a value is missing")
            if self._largest is not None and word is not None and word >= self._largest:
                raise RowError(row, self.sources[0], f"{value} is not below the {self._largest:,} rows of its table")
            words.append(-1 if word is None else word)
        present_N = np.array([word >= 0 for word in words], dtype=bool)
        words_N = np.array([max(word, 0) for word in words], dtype=self._type)
        ids = self._encoder.encode(words_N, None if present_N.all() else present_N)
        if len(self._kept) > MOST_KEPT:
            self._kept = {}  # another thread may still read the earlier one
        for value, id, place in zip(values, ids.tolist(), places, strict=True):
            found[place] = id
            if self._is_kept(value):
                self._kept[value] = id
