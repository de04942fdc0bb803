"""Encoders map values of a categorical column to rows of its table: by a vocabulary, by a hash, or unchanged.

Numbers are mapped by buckets. Values are uint32 or uint64.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.lookup import ValueTable
from dlrmctl.data.randomness import mix
from dlrmctl.data.schema import MISSING_ROW, RESERVED_ROWS


class Encoder(Protocol):
    """The interface of encoders of one column."""

    @property
    def rows(self) -> int:
        """Rows of the table, including the reserved ones."""
        ...

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        """Returns the rows of `values` (unsigned); `MISSING_ROW` where `present` is False. None: all are present."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary: the values that have their own row, most frequent first.

    Attributes:
        values: uint32 or uint64; values[i] has row first_row + i. All other values have `RARE_ROW`.
        first_row: 2, or more for a piece of a vocabulary.
    """

    values: np.ndarray
    first_row: int = RESERVED_ROWS
    _lookup: ValueTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lookup", ValueTable(self.values, self.first_row))

    @property
    def rows(self) -> int:
        return len(self.values) + self.first_row

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        if values.dtype.itemsize < self.values.dtype.itemsize:
            values = values.astype(self.values.dtype)
        assert values.dtype == self.values.dtype
        rows = self._lookup.rows(values)
        if present is not None:
            np.copyto(rows, MISSING_ROW, where=~present)
        return rows


@dataclass(frozen=True)
class Hashing:
    """Hashing: row 0 for missing values, and 1 + hash % (rows - 1) for all others.

    Attributes:
        rows: rows of the table, from 2 to 2**32.
        column: number of the column; each has its own hash.
    """

    rows: int
    column: int

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        mixed = mix(values.astype(np.uint64) + np.uint64(self.column + 1 << 32))
        rows = (mixed % np.uint64(self.rows - 1) + np.uint64(1)).astype(np.uint32)
        if present is not None:
            rows[~present] = MISSING_ROW
        return rows


@dataclass(frozen=True)
class AsRows:
    """Values that already are rows.

    Attributes:
        rows: rows of the table; all values are below it.
    """

    rows: int

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        """The values.

        Raises:
            DataError: if one lies outside the table.
        """
        if len(values) and int(values.max()) >= self.rows:
            raise DataError(f"row {int(values.max())} is outside a table of {self.rows:,} rows")
        return values if present is None else np.where(present, values, values.dtype.type(MISSING_ROW))


@dataclass(frozen=True)
class Bucketing:
    """Buckets of numbers: row 0 for missing values, then row 2 for numbers below the first edge, and so on.

    Attributes:
        edges: lowest number of each bucket but the first, ascending.
    """

    edges: tuple[float, ...]

    @property
    def rows(self) -> int:
        return RESERVED_ROWS + len(self.edges) + 1

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        """Returns the rows of numbers, given as the bits of float32 in uint32."""
        edges = np.array(self.edges, np.float32)
        rows = (np.searchsorted(edges, values.view(np.float32), side="right") + RESERVED_ROWS).astype(np.uint32)
        if present is not None:
            rows[~present] = MISSING_ROW
        return rows

    def text(self, row: int) -> str | None:
        """Returns the numbers of a row as text; None for a reserved row."""
        place = row - RESERVED_ROWS
        if not 0 <= place <= len(self.edges):
            return None
        if not self.edges:
            return "any number"
        if place == 0:
            return f"below {self.edges[0]:g}"
        if place == len(self.edges):
            return f"from {self.edges[-1]:g}"
        return f"from {self.edges[place - 1]:g} to below {self.edges[place]:g}"
