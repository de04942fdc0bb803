"""Columns of raw values: each reads its values, finds their rows in a table, and keeps the rows of frequent values.

B rows of a call, N values.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from dlrmctl.data.features.encoders import AsRows, Encoder
from dlrmctl.data.schema import MISSING_ROW
from dlrmctl.serving.errors import RowError, ValueProblem
from dlrmctl.serving.values import JsonNumber

MOST_KEPT = 1 << 16  # values of a column whose rows are kept in memory
_PLAIN = (str, int, JsonNumber)  # equal values of these types are equal in every way
_WORD = 1 << 64

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


def _plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(type(one) in _PLAIN for one in value))


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
        separator: between the values of a list that is one string; None if a string is no list.
        missing: whether a value may be missing; missing values of lists are dropped then.
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
        separator: str | None = None,
        missing: bool = True,
    ) -> None:
        self.name, self.sources, self.max_ids = name, sources, max_ids
        self._word, self._encoder, self._type = word, encoder, word_type
        self._largest = encoder.rows if isinstance(encoder, AsRows) else None
        self._truncate, self._separator, self._missing = truncate, separator, missing
        self._kept: dict[Any, int] = {}

    def ids(self, values: Sequence[Any]) -> np.ndarray:
        """Returns the ids of single values, int64 [B].

        Raises:
            RowError: for a wrong value.
        """
        kept = self._kept
        found = [kept.get(value, -1) if _plain(value) else -1 for value in values]
        new = [place for place, row in enumerate(found) if row < 0]
        if new:
            self._find([values[place] for place in new], found, new, new)
        return np.array(found, dtype=np.int64)

    def lists(self, values: Sequence[Any]) -> np.ndarray:
        """Returns the ids of lists, int64 [B, L], shorter ones padded with -1.

        Raises:
            RowError: for a wrong value, or a list that is too long.
        """
        flat: list[Any] = []
        owners: list[int] = []
        for row, value in enumerate(values):
            items = self._items(row, value)
            flat += items
            owners += [row] * len(items)
        kept = self._kept
        found = [kept.get(value, -1) if _plain(value) else -1 for value in flat]
        new = [place for place, id in enumerate(found) if id < 0]
        if new:
            self._find([flat[place] for place in new], found, new, [owners[place] for place in new])
        rows: list[list[int]] = [[] for _ in values]
        for row, id in zip(owners, found, strict=True):
            if id != MISSING_ROW or not self._missing:
                rows[row].append(id)
        for row, ids in enumerate(rows):
            if len(ids) > self.max_ids:
                if self._truncate == "reject":
                    raise RowError(row, self.sources[0], f"{len(ids)} values, at most {self.max_ids} are allowed")
                rows[row] = ids[-self.max_ids :] if self._truncate == "last" else ids[: self.max_ids]
        longest = max(1, *map(len, rows))
        return np.array([ids + [-1] * (longest - len(ids)) for ids in rows], dtype=np.int64)

    def _items(self, row: int, value: Any) -> Sequence[Any]:
        if value is None:
            return ()
        if isinstance(value, list | tuple | np.ndarray):
            return list(value)
        if self._separator is None:
            raise RowError(row, self.sources[0], f"{value!r:.60} is not a list")
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
            if _plain(value):
                self._kept[value] = id
