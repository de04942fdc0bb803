"""A vocabulary in a bundle: its values ascending, and the row of each, so that it can be used where it lies on disk.

K values.
"""

from dataclasses import dataclass

import numpy as np

from dlrmctl.data.schema import MISSING_ROW, RARE_ROW, RESERVED_ROWS

ROW_TYPE = np.dtype("<u4")


def sort_values(values_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of a vocabulary ascending, and their rows."""
    order_K = np.argsort(values_K, kind="stable")
    return values_K[order_K], (order_K + RESERVED_ROWS).astype(ROW_TYPE)


@dataclass(frozen=True)
class SortedVocabulary:
    """Finds the rows of values by bisection: a few hundred bytes of a large vocabulary are read for each.

    Attributes:
        values_K: uint32 or uint64, ascending.
        rows_K: uint32.
    """

    values_K: np.ndarray
    rows_K: np.ndarray

    @property
    def rows(self) -> int:
        """Rows of the table, including the reserved ones."""
        return len(self.values_K) + RESERVED_ROWS

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        """Returns the rows of values, as other encoders do; `RARE_ROW` for unknown ones."""
        if not len(self.values_K):
            found = np.full(len(values), RARE_ROW, ROW_TYPE)
        else:
            values = values.astype(self.values_K.dtype, copy=False)
            places = np.minimum(np.searchsorted(self.values_K, values), len(self.values_K) - 1)
            found = np.where(self.values_K[places] == values, self.rows_K[places], ROW_TYPE.type(RARE_ROW))
        return found if present is None else np.where(present, found, ROW_TYPE.type(MISSING_ROW))
