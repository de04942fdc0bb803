"""Raw examples as read from files, before their values have ids: the output of every input.

N good examples of a piece, I dense features, F sparse features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from dlrmctl.data.formats.table_schema import TableSchema
from dlrmctl.data.formats.transforms import DenseTransform
from dlrmctl.data.hashed_texts import HashedTexts

if TYPE_CHECKING:
    import polars as pl

Position = Mapping[str, Any]  # plain values for JSON


@dataclass(frozen=True)
class RawFeature:
    """A sparse feature of an input.

    Attributes:
        name: unique in the input.
        value_type: NumPy code of its values, "<u4" or "<u8".
        max_ids: longest list of values; 1 means at most one value in every example.
        as_rows: whether values already are rows of the table.
        has_texts: whether values are words of `data.canonical`, and columns have the texts of those that are hashes.
        buckets: if values are the bits of float32 numbers: the most buckets that they become.
        table: name of the ids that the feature shares with others of the input; None if they are its own.
        pooling: "sum" or "mean": how the vectors of a list become one.
        weights: name of the weights of the values of lists; None if they have none.
    """

    name: str
    value_type: str = "<u4"
    max_ids: int = 1
    as_rows: bool = False
    has_texts: bool = False
    buckets: int | None = None
    table: str | None = None
    pooling: str = "sum"
    weights: str | None = None

    @property
    def owner(self) -> str:
        """The name of the vocabulary."""
        return self.table or self.name


@dataclass(frozen=True)
class RawColumn:
    """The values of one sparse feature in a piece.

    Attributes:
        values: values of the feature's type. With `max_ids` 1, N of them, 0 where missing; else the concatenated lists.
        present_N: with `max_ids` 1: bool, False where missing.
        lengths_N: with `max_ids` above 1: int32, values per example; 0 where missing.
        texts: at least the texts of the values whose words are hashes.
        weights: float32, the weight of each value of the lists, if the feature has weights.
    """

    values: np.ndarray
    present_N: np.ndarray | None = None
    lengths_N: np.ndarray | None = None
    texts: Sequence[HashedTexts] = ()
    weights: np.ndarray | None = None

    def pick(self, rows: np.ndarray) -> "RawColumn":
        """Returns the values of some examples, by their numbers, in that order, and all texts."""
        if self.lengths_N is None:
            assert self.present_N is not None
            return replace(self, values=self.values[rows], present_N=self.present_N[rows])
        lengths_N = self.lengths_N[rows]
        starts_N = (np.cumsum(self.lengths_N, dtype=np.int64) - self.lengths_N)[rows]
        ends_N = np.cumsum(lengths_N, dtype=np.int64)
        places = np.repeat(starts_N - (ends_N - lengths_N), lengths_N) + np.arange(ends_N[-1] if len(ends_N) else 0)
        weights = None if self.weights is None else self.weights[places]
        return replace(self, values=self.values[places], lengths_N=lengths_N, weights=weights)


LABEL_NOT_BINARY, LABEL_WRONG = "label not 0 or 1", "label is wrong or missing"
LIST_TOO_LONG = "list too long"
NO_TIME, NOT_A_TIME = "no time", "not a time"
NOT_A_WEIGHT, LISTS_DIFFER = "not a weight", "lists of different lengths"
NO_LABEL = (LABEL_NOT_BINARY, LABEL_WRONG)  # reasons of bad lines


def unit_of(format: str | None) -> str:
    """The unit of an input of this format: "row" or "line"."""
    return "row" if format in ("parquet", "ipc", "npy") else "line"


@dataclass(frozen=True)
class BadLine:
    """A line (or row of a table) that is omitted.

    Attributes:
        line: its number in its source, counted from 1.
        reason: one of a few, for counting.
        problem: what is wrong with it, with the value.
        extra_fields: fields above the expected number, negative for missing ones.
    """

    line: int
    reason: str
    problem: str
    extra_fields: int = 0

    @classmethod
    def of_fields(cls, line: int, found: int, expected: int) -> "BadLine":
        """Returns a line with a wrong number of fields."""
        problem = f"{found} field{'s'[: found != 1]}, expected {expected}"
        return cls(line, "wrong number of fields", problem, found - expected)


@dataclass(frozen=True)
class KeptColumns:
    """Columns that are passed through unchanged, for good rows and for rows with wrong values.

    Attributes:
        lines: int64, the line of each row, ascending.
        frame: the columns.
    """

    lines: np.ndarray
    frame: "pl.DataFrame"


@dataclass(frozen=True)
class SplitKeys:
    """What a split by a column depends on.

    Attributes:
        keys_N: uint64: numbers in the order of the times, or the words of the groups.
        given_N: bool, False for a row without a group.
    """

    keys_N: np.ndarray
    given_N: np.ndarray


@dataclass(frozen=True)
class RawPiece:
    """Consecutive examples of one source.

    Attributes:
        lines_N: int64, the line of each example.
        labels_N: uint8, 0 or 1; zeros if the input has no labels.
        dense_IN: of the input's `dense_type`, transformed; NaN where missing.
        sparse: F columns.
        repaired: number of examples whose line was repaired, by repair.
        bad: the omitted lines, in order.
        kept: the columns that the input was to keep.
        keys: the times or groups, if the input was to read them.
        weights_N: float32, the weight of each example, if the input has weights.
        groups_N: uint64, the group of each example, if the input has groups; `NO_GROUP` without one.
    """

    lines_N: np.ndarray
    labels_N: np.ndarray
    dense_IN: np.ndarray
    sparse: Sequence[RawColumn]
    repaired: Mapping[str, int]
    bad: Sequence[BadLine]
    kept: KeptColumns | None = None
    keys: SplitKeys | None = None
    weights_N: np.ndarray | None = None
    groups_N: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    def pick(self, rows: np.ndarray) -> "RawPiece":
        """Returns some of the examples, by their numbers, in that order; the other attributes are the same."""
        keys = self.keys and SplitKeys(self.keys.keys_N[rows], self.keys.given_N[rows])
        return replace(
            self,
            lines_N=self.lines_N[rows],
            labels_N=self.labels_N[rows],
            dense_IN=self.dense_IN[:, rows],
            sparse=[column.pick(rows) for column in self.sparse],
            keys=keys,
            weights_N=None if self.weights_N is None else self.weights_N[rows],
            groups_N=None if self.groups_N is None else self.groups_N[rows],
        )


def join_pieces(pieces: Sequence[RawPiece]) -> RawPiece:
    """Returns the examples of consecutive pieces, without what else is in them."""
    columns = zip(*(piece.sparse for piece in pieces), strict=True)
    return RawPiece(
        lines_N=np.concatenate([piece.lines_N for piece in pieces]),
        labels_N=np.concatenate([piece.labels_N for piece in pieces]),
        dense_IN=np.concatenate([piece.dense_IN for piece in pieces], axis=1),
        sparse=[_join_columns(some) for some in columns],
        repaired={},
        bad=[],
        weights_N=_joined([piece.weights_N for piece in pieces]),
        groups_N=_joined([piece.groups_N for piece in pieces]),
    )


def _joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    there = [array for array in arrays if array is not None]
    return np.concatenate(there) if there else None


def _join_columns(columns: Sequence[RawColumn]) -> RawColumn:
    return RawColumn(
        np.concatenate([column.values for column in columns]),
        present_N=_joined([column.present_N for column in columns]),
        lengths_N=_joined([column.lengths_N for column in columns]),
        texts=[texts for column in columns for texts in column.texts],
        weights=_joined([column.weights for column in columns]),
    )


@dataclass(frozen=True)
class Task:
    """A piece that any thread can make.

    Attributes:
        source: number of the input's source.
        position: where the input continues after it.
        bytes_done: bytes on disk of all sources up to there, to show progress.
        read: makes the piece; raises DataError.
        read_raw: makes it with its raw values, see `Input.with_raw`, where that takes longer; None if `read` does.
        read_elsewhere: makes it from the source itself, so that another process need not receive the text; None if
            `read` has no text, or it cannot be read from its middle.
    """

    source: int
    position: Position
    bytes_done: int
    read: Callable[[], RawPiece]
    read_raw: Callable[[], RawPiece] | None = None
    read_elsewhere: Callable[[], RawPiece] | None = None

    def elsewhere(self) -> "Task":
        """Returns the task for another process."""
        return replace(self, read=self.read_elsewhere or self.read, read_raw=None, read_elsewhere=None)


@dataclass(frozen=True)
class SourceFile:
    """A source of an input: its name in messages and reports, and its size on disk; 0 if unknown."""

    name: str
    num_bytes: int


class Input(Protocol):
    """Examples in the order of time, in pieces that do not depend on where reading starts."""

    @property
    def format(self) -> str:
        """Such as "criteo"."""
        ...

    @property
    def dense(self) -> tuple[str, ...]: ...

    @property
    def dense_type(self) -> np.dtype:
        """float16, or float32 where some columns may need it."""
        ...

    @property
    def sparse(self) -> tuple[RawFeature, ...]: ...

    @property
    def label(self) -> str: ...

    @property
    def weight(self) -> str | None:
        """The name of the weights of examples; None if pieces have none."""
        ...

    @property
    def group(self) -> str | None:
        """The name of the groups of examples; None if pieces have none."""
        ...

    @property
    def dense_transform(self) -> DenseTransform: ...

    @property
    def table_schema(self) -> TableSchema | None:
        """The schema of a table; None for other formats."""
        ...

    @property
    def sources(self) -> tuple[SourceFile, ...]: ...

    @property
    def keyed_by(self) -> Literal["time", "number", "group"] | None:
        """What the keys of pieces are: times, numbers in their order, or groups; None if pieces have no keys."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Plain values that identify the sources and the reading; unfinished work continues only if they are equal."""
        ...

    def with_raw(self) -> "Input | None":
        """Returns the same input, whose pieces keep the raw values of good rows by column, with the label.

        None if it cannot be read again.
        """
        ...

    def tasks(self, after: Position | None = None) -> Iterator[Task]:
        """Yields the pieces from a position on; iterating is fast, the work is in `Task.read`.

        Raises:
            DataError: if a source cannot be read.
        """
        ...
