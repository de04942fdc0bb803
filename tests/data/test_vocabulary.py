"""Every value has its row, by counting or by hashing, in integer arithmetic."""

import collections
from pathlib import Path

import numpy as np
import pytest

from data import vocabulary
from data.errors import DataError
from data.vocabulary import Encoder, Hashing, Vocabulary, count_values, load_encoders, mix, save_encoder


def test_counting_in_pieces_is_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_MERGE_AT", 50)
    values = (np.random.default_rng(0).zipf(1.3, 3000) % 2**32).astype(np.uint32)
    expected = sorted(collections.Counter(values.tolist()).items())
    for pieces in (1, 2, 7, 100):
        counted = count_values(np.array_split(values, pieces))
        assert list(zip(*(part.tolist() for part in counted), strict=True)) == expected
    assert [part.tolist() for part in count_values([])] == [[], []]
    assert [part.tolist() for part in count_values([np.zeros(3, np.uint32)])] == [[0], [3]]


def test_rows_follow_the_counts_and_then_the_values() -> None:
    values, counts = np.array([1, 5, 7, 9, 2**32 - 1], dtype=np.uint32), np.array([2, 4, 1, 2, 9])
    known = Vocabulary.of_counts(values, counts, min_count=2)
    assert known.values.tolist() == [2**32 - 1, 5, 1, 9]
    asked = np.array([2**32 - 1, 5, 1, 9, 7, 8, 0, 5], dtype=np.uint32)
    present = np.array([True] * 7 + [False])
    assert known.encode(asked, present).tolist() == [2, 3, 4, 5, 1, 1, 1, 0]
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


def test_encoders_are_kept_beside_the_store(tmp_path: Path) -> None:
    encoders: dict[str, Encoder] = {"a": Vocabulary(np.array([9, 3, 7], np.uint32)), "b": Hashing(10, 1)}
    entries = [save_encoder(tmp_path, name, encoder) for name, encoder in encoders.items()]
    loaded = load_encoders(tmp_path, entries)
    asked, present = np.arange(12, dtype=np.uint32), np.arange(12) > 0
    for name, encoder in encoders.items():
        assert loaded[name].rows == encoder.rows
        assert loaded[name].encode(asked, present).tolist() == encoder.encode(asked, present).tolist()
    (tmp_path / "vocabulary" / "a.u4").write_bytes(b"\0" * 12)
    with pytest.raises(DataError, match=r"a\.u4: changed since it was prepared"):
        load_encoders(tmp_path, entries)
