"""Every value has its row, by counting or by hashing, in integer arithmetic."""

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.encoders import AsRows, Hashing, Vocabulary
from dlrmctl.data.features.lookup import ValueTable
from dlrmctl.data.randomness import mix


def test_rows_are_those_of_the_values_in_order() -> None:
    known = Vocabulary(np.array([2**32 - 1, 5, 1, 9], dtype=np.uint32))
    asked = np.array([2**32 - 1, 5, 1, 9, 7, 8, 0, 5], dtype=np.uint32)
    present = np.array([True] * 7 + [False])
    assert known.encode(asked, present).tolist() == [2, 3, 4, 5, 1, 1, 1, 0]
    assert known.encode(asked, None).tolist() == [2, 3, 4, 5, 1, 1, 1, 3]
    assert known.rows == 6


def test_a_vocabulary_of_nothing_knows_missing_and_rare() -> None:
    empty = Vocabulary(np.empty(0, np.uint32))
    assert empty.encode(np.array([3, 0], np.uint32), np.array([True, False])).tolist() == [1, 0]


def test_hashing_is_exact_above_two_to_the_24th_and_spreads_evenly() -> None:
    values, present = np.arange(200_000, dtype=np.uint32), np.ones(200_000, dtype=bool)
    rows = Hashing(40_000_000, 3).encode(values, present)
    assert rows.max() > 2**24
    # 200,000 draws of 40 million: about 500 rows are drawn twice, with a deviation near 22.
    assert 390 < 200_000 - len(np.unique(rows)) < 610
    few = np.bincount(Hashing(11, 3).encode(values, present), minlength=11)
    assert few[0] == 0
    assert abs(few[1:] - 20_000).max() < 700  # five standard deviations of 134
    assert (Hashing(11, 4).encode(values, present) != Hashing(11, 3).encode(values, present)).mean() > 0.8
    assert Hashing(11, 3).encode(values, ~present).max() == 0


def test_the_hash_is_the_published_one() -> None:
    def plain(x: int) -> int:
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = (x ^ x >> 33) * factor % 2**64
        return x ^ x >> 33

    values = np.array([0, 1, 2**32 - 1, 2**32, 2**64 - 1], dtype=np.uint64)
    assert mix(values).tolist() == [plain(x) for x in values.tolist()]
    assert Hashing(2**32, 25).encode(np.array([77], np.uint32), np.array([True]))[0] == 1 + plain(77 + (26 << 32)) % (
        2**32 - 1
    )


def test_rows_that_are_rows_already_lie_inside_their_table() -> None:
    values = np.arange(12, dtype=np.uint64)
    assert AsRows(12).encode(values, None).tolist() == values.tolist()
    assert AsRows(12).encode(values, values % 2 == 1).tolist() == [0, 1, 0, 3, 0, 5, 0, 7, 0, 9, 0, 11]
    with pytest.raises(DataError, match="row 12 is outside a table of 12 rows"):
        AsRows(12).encode(np.array([12], np.uint64), None)


@pytest.mark.parametrize("dtype", [np.dtype("<u4"), np.dtype("<u8")])
def test_a_lookup_finds_every_value_and_no_other(dtype: np.dtype) -> None:
    top = int(np.iinfo(dtype).max)
    rng = np.random.default_rng(1)
    for known in (
        np.array([], dtype),
        np.array([0], dtype),
        np.unique(rng.integers(0, top, 200_000, dtype=dtype)),
        np.arange(3000, dtype=dtype),
        np.arange(3000, dtype=dtype) << dtype.type(8 * dtype.itemsize - 12),  # all the low bits are zero
        np.arange(top - 5, top, dtype=dtype),
    ):
        known = rng.permutation(np.unique(known))
        rows = {value: row for row, value in enumerate(known.tolist(), 2)}
        asked = np.concatenate([known, known + dtype.type(1), rng.integers(0, top, 1000, dtype=dtype)])
        asked = np.append(asked, np.array([0, top], dtype))
        assert ValueTable(known, 2).rows(asked).tolist() == [rows.get(value, 1) for value in asked.tolist()]
