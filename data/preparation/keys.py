"""What a split that does not follow the input depends on: the keys of rows, by which they are arranged.

For a split by time, keys are the times. For one at random or by groups they are draws: the number of a row's split, by
a hash of its group, or of its number among the good rows. Workers that read pieces do not know how many rows are
before theirs, so that draws by number follow when all rows are on disk.
N rows.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.raw import Input, RawPiece
from dlrmctl.data.formats.table_schema import nearest
from dlrmctl.data.moments import parse_moment
from dlrmctl.data.randomness import mix
from dlrmctl.data.source import SPLITS
from dlrmctl.data.splits import DRAWN, Split

DEFAULT_FRACTIONS = (6 / 7, 1 / 14, 1 / 14)
_BITS = 53  # of a draw
_SALT = 0x5DEECE66D5B0C1F7  # apart from the draws of a sample of the negatives
_BY_NUMBER = np.uint64(len(SPLITS))  # the key of a row without a group, which is drawn by its number


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


def keys_of(split: Split, input: Input) -> Callable[[Sequence[RawPiece]], np.ndarray] | None:
    """Returns what makes the keys that the rows of some pieces are written with, uint64 [N]; None if they have none."""
    if split.by == "time":
        return _times
    if split.by == "group":
        return partial(_draw_groups, split, None if input.keyed_by else _grouping_feature(split, input))
    return None


def _times(pieces: Sequence[RawPiece]) -> np.ndarray:
    return np.concatenate([piece.keys.keys_N for piece in pieces if piece.keys])


def _draw_groups(split: Split, feature: int | None, pieces: Sequence[RawPiece]) -> np.ndarray:
    words, given = [], []
    for piece in pieces:
        if feature is None:
            assert piece.keys is not None, "the input was asked for them"
            words.append(piece.keys.keys_N)
            given.append(piece.keys.given_N)
        else:
            present_N = piece.sparse[feature].present_N
            assert present_N is not None
            words.append(piece.sparse[feature].values.astype(np.uint64))
            given.append(present_N)
    # Twice mixed, a group is not drawn like the row of its number.
    return np.where(np.concatenate(given), _drawn(split, mix(np.concatenate(words))), _BY_NUMBER)


def final_keys(split: Split, written_N: np.ndarray | None, first: int, count: int) -> np.ndarray:
    """Returns the keys of consecutive rows, uint64 [N]: times, the numbers of their splits, or their own numbers.

    Args:
        split: the rule.
        written_N: what `keys_of` made; None if it made none.
        first: number of the first row among all good rows.
        count: number of rows.
    """
    numbers_N = np.arange(first, first + count, dtype=np.uint64)
    if split.by not in DRAWN:
        return numbers_N if written_N is None else written_N
    if written_N is None:
        return _drawn(split, numbers_N)
    alone = np.flatnonzero(written_N == _BY_NUMBER)
    draws_N = written_N.copy()
    draws_N[alone] = _drawn(split, numbers_N[alone])
    return draws_N


def _drawn(split: Split, words_N: np.ndarray) -> np.ndarray:
    """Returns the number of the split of each row, uint64 [N], by a hash of its word and the seed."""
    draws_N = mix(mix(words_N) ^ mix(np.array([split.seed ^ _SALT], np.uint64))) >> np.uint64(64 - _BITS)
    train, validation, _ = split.fractions or DEFAULT_FRACTIONS
    ends = np.array([train, train + validation]) * (1 << _BITS)
    return np.searchsorted(ends.astype(np.uint64), draws_N, side="right").astype(np.uint64)
