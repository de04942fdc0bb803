"""A hash table from values to rows for many values at once: open addressing, probing all values together.

N values, S slots.
"""

import numpy as np

from dlrmctl.data.schema import RARE_ROW

_CHUNK = 1 << 15  # values looked up at a time, so that intermediates stay in the cache
_FACTORS = {4: np.uint32(0x9E3779B1), 8: np.uint64(0x9E3779B97F4A7C15)}  # golden ratio, odd


class ValueTable:
    """A hash table from values to rows.

    Args:
        values_N: uint32 or uint64, distinct; the first are found fastest.
        first_row: the row of values_N[0]; the others follow. At least 2: an empty slot has `RARE_ROW`.
    """

    def __init__(self, values_N: np.ndarray, first_row: int) -> None:
        assert first_row > RARE_ROW
        self._bits = max((2 * len(values_N) - 1).bit_length(), 4)  # half full at most
        self._last = (1 << self._bits) - 1
        self._pairs_S = None
        if values_N.dtype.itemsize == 4:  # value and row in one number: one access to memory finds both
            self._pairs_S = np.zeros(1 << self._bits, "<u8")
            self._values_S, self._rows_S = (self._pairs_S.view("<u4")[half::2] for half in (0, 1))
        else:
            self._values_S = np.zeros(1 << self._bits, values_N.dtype)
            self._rows_S = np.empty(1 << self._bits, np.uint32)
        self._rows_S[:] = RARE_ROW
        rows_N = np.arange(first_row, first_row + len(values_N), dtype=np.uint32)
        for start in range(0, len(values_N), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            self._insert(values_N[chunk], rows_N[chunk])

    def rows(self, values_N: np.ndarray) -> np.ndarray:
        """Returns uint32 [N]; `RARE_ROW` for unknown values."""
        rows_N = np.empty(len(values_N), np.uint32)
        for start in range(0, len(values_N), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            self._find(values_N[chunk], rows_N[chunk])
        return rows_N

    def _find(self, values_N: np.ndarray, out_N: np.ndarray) -> None:
        slots_N = self._home(values_N)
        out_N[:], differs_N = self._probe(slots_N, values_N)
        rest = np.flatnonzero(differs_N)
        while len(rest):
            # Another value is in the slot: the wanted one may be in a later slot. An empty slot ends the search.
            rest = rest[out_N[rest] != RARE_ROW]
            slots_N[rest] = (slots_N[rest] + 1) & self._last
            out_N[rest], differs = self._probe(slots_N[rest], values_N[rest])
            rest = rest[differs]

    def _probe(self, slots: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows in some slots, and whether the slots have other values than the wanted ones."""
        if self._pairs_S is None:
            return self._rows_S.take(slots, mode="clip"), self._values_S.take(slots, mode="clip") != values
        pairs = self._pairs_S.take(slots, mode="clip").view("<u4")
        return pairs[1::2], pairs[::2] != values

    def _insert(self, values: np.ndarray, rows: np.ndarray) -> None:
        slots = self._home(values)
        while len(rows):
            free = self._rows_S[slots] == RARE_ROW
            # If several want a slot, the last one written gets it: the first of them.
            self._rows_S[slots[free][::-1]] = rows[free][::-1]
            won = self._rows_S[slots] == rows
            self._values_S[slots[won]] = values[won]
            values, rows, slots = values[~won], rows[~won], (slots[~won] + 1) & self._last

    def _home(self, values: np.ndarray) -> np.ndarray:
        """Returns the slot at which the search for each value begins."""
        width = 8 * values.dtype.itemsize
        mixed = values ^ values >> values.dtype.type(width // 2)
        mixed *= _FACTORS[values.dtype.itemsize]
        mixed >>= values.dtype.type(width - self._bits)
        return mixed.astype(np.intp)
