"""Raw examples as files hold them, before their values have ids: what every input gives to a preparation.

N good examples of a piece, I dense features, F sparse features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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
        value_type: numpy code of its values, "<u4" or "<u8".
        max_ids: longest list of values; 1 means at most one value in every example.
        as_rows: values are rows of the table already, and are kept as they are.
        has_texts: values are words as of `data.canonical`, and columns have the texts of those that are hashes.
    """

    name: str
    value_type: str = "<u4"
    max_ids: int = 1
    as_rows: bool = False
    has_texts: bool = False


@dataclass(frozen=True)
class RawColumn:
    """The values of one sparse feature in a piece.

    Attributes:
        values: of the feature's value type. With `max_ids` 1, N of them, 0 where missing; else all lists one after
            another.
        present_N: with `max_ids` 1: bool, False where missing.
        lengths_N: with `max_ids` above 1: int32, values per example; 0 where missing.
        texts: at least those of the values whose words are hashes.
    """

    values: np.ndarray
    present_N: np.ndarray | None = None
    lengths_N: np.ndarray | None = None
    texts: Sequence[HashedTexts] = ()


LABEL_NOT_BINARY, LABEL_WRONG = "label not 0 or 1", "label is wrong or missing"
LIST_TOO_LONG = "list too long"
NO_LABEL = (LABEL_NOT_BINARY, LABEL_WRONG)  # reasons of bad lines


def unit_of(format: str | None) -> str:
    """What an input of this format consists of: "row" or "line"."""
    return "row" if format in ("parquet", "ipc", "npy") else "line"


@dataclass(frozen=True)
class BadLine:
    """A line (or row of a table) that is left out.

    Attributes:
        line: its number in its source, counted from 1.
        reason: one of a few, for counting.
        problem: what is wrong with it, with the value.
        extra_fields: fields above the expected number, below 0 for missing ones; 0 where the number is right.
    """

    line: int
    reason: str
    problem: str
    extra_fields: int = 0

    @classmethod
    def of_fields(cls, line: int, found: int, expected: int) -> "BadLine":
        """A line with a wrong number of fields."""
        problem = f"{found} field{'s'[: found != 1]}, expected {expected}"
        return cls(line, "wrong number of fields", problem, found - expected)


@dataclass(frozen=True)
class KeptColumns:
    """Columns that are passed through as they are: of good rows and of those whose values are wrong.

    Attributes:
        lines: int64, the line each row stands on, ascending.
        frame: the columns.
    """

    lines: np.ndarray
    frame: "pl.DataFrame"


@dataclass(frozen=True)
class RawPiece:
    """Consecutive examples of one source.

    Attributes:
        lines_N: int64, the line each example stands on.
        labels_N: uint8, 0 or 1; zeros if the input has no labels.
        dense_IN: of the input's `dense_type`, transformed; NaN where missing.
        sparse: F columns.
        repaired: examples whose line had to be mended, by what was mended.
        bad: the lines left out, in order.
        kept: columns that the input was asked to keep.
    """

    lines_N: np.ndarray
    labels_N: np.ndarray
    dense_IN: np.ndarray
    sparse: Sequence[RawColumn]
    repaired: Mapping[str, int]
    bad: Sequence[BadLine]
    kept: KeptColumns | None = None

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class Task:
    """A piece that is still to be made, by any thread.

    Attributes:
        source: which of the input's sources it lies in.
        position: where the input continues after it.
        bytes_done: bytes of all sources up to there, as they lie on disk; for showing progress.
        read: makes the piece; raises DataError.
    """

    source: int
    position: Position
    bytes_done: int
    read: Callable[[], RawPiece]


@dataclass(frozen=True)
class SourceFile:
    """One source of an input: its name as messages and reports show it, and its size on disk; 0 where unknown."""

    name: str
    num_bytes: int


class Input(Protocol):
    """Examples in the order of time, in pieces that are the same however often and from wherever they are read."""

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
    def dense_transform(self) -> DenseTransform: ...

    @property
    def table_schema(self) -> TableSchema | None:
        """What the columns of a table are; None for the other formats."""
        ...

    @property
    def sources(self) -> tuple[SourceFile, ...]: ...

    def identity(self) -> Mapping[str, Any]:
        """Plain values that change when a source or the way of reading it changes: only then is the work kept."""
        ...

    def tasks(self, after: Position | None = None) -> Iterator[Task]:
        """The pieces from a position on; reading ahead is light, and the work lies in `Task.read`.

        Raises:
            DataError: if a source cannot be read.
        """
        ...
