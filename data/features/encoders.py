"""From the values of a categorical column to rows of its table: a counted vocabulary, a hash, or as they are.

Values are uint32 or uint64.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.lookup import ValueTable
from dlrmctl.data.randomness import mix
from dlrmctl.data.schema import MISSING_ROW, RESERVED_ROWS


class Encoder(Protocol):
    """What turns the values of one column into rows."""

    @property
    def rows(self) -> int:
        """Of the table, the reserved ones included."""
        ...

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        """Rows of `values`, an unsigned type; `MISSING_ROW` where `present` is False. None: all are present."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """The values that have a row of their own, most frequent first.

    Attributes:
        values: uint32 or uint64; values[i] has row first_row + i. Every other value has `RARE_ROW`.
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
    """No vocabulary: row 0 for missing, and 1 + hash % (rows - 1) for every value.

    Attributes:
        rows: of the table, at least 2, at most 2**32.
        column: number of the column; each has a hash of its own.
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
    """Values that are rows already.

    Attributes:
        rows: of the table; no value reaches it.
    """

    rows: int

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        """The values.

        Raises:
            DataError: if one lies outside the table.
        """
        if len(values) and int(values.max()) >= self.rows:
            raise DataError(f"row {int(values.max())} lies outside a table of {self.rows:,} rows")
        return values if present is None else np.where(present, values, values.dtype.type(MISSING_ROW))
