"""Every value has its row, by counting or by hashing, in integer arithmetic."""

import json
from pathlib import Path

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.randomness import mix
from dlrmctl.data.store.encoders import (
    AsRows,
    Hashing,
    Vocabulary,
    encoder_entry,
    encoders_fingerprint,
    load_encoders,
    vocabulary_file,
)


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


def test_encoders_are_kept_beside_the_store(tmp_path: Path) -> None:
    values = {"a": np.array([9, 3, 7], "<u4"), "b/c": np.array([2**40, 3], "<u8")}
    (tmp_path / "vocabulary").mkdir()
    for name, array in values.items():
        (tmp_path / vocabulary_file(name, array.dtype)).write_bytes(array.tobytes())
    entries = [encoder_entry(tmp_path, name, array.dtype) for name, array in values.items()]
    entries += [encoder_entry(tmp_path, "d", Hashing(10, 1)), encoder_entry(tmp_path, "e", AsRows(12))]
    loaded = load_encoders(tmp_path, json.loads(json.dumps(entries)))
    assert [(name, encoder.rows) for name, encoder in loaded.items()] == [("a", 5), ("b/c", 4), ("d", 10), ("e", 12)]
    asked, present = np.arange(12, dtype=np.uint32), np.arange(12) > 0
    assert loaded["a"].encode(asked, present).tolist() == [0, 1, 1, 3, 1, 1, 1, 4, 1, 2, 1, 1]
    assert loaded["b/c"].encode(np.array([2**40, 2**40 + 3, 3], np.uint64), None).tolist() == [2, 1, 3]
    assert loaded["d"].encode(asked, present).tolist() == Hashing(10, 1).encode(asked, present).tolist()
    assert loaded["e"].encode(asked, present).tolist() == asked.tolist()
    with pytest.raises(DataError, match="row 12 lies outside a table of 12 rows"):
        loaded["e"].encode(np.array([12], np.uint64), None)
    (tmp_path / "vocabulary" / "a.u4").write_bytes(b"\0" * 12)
    with pytest.raises(DataError, match=r"a\.u4: changed since it was prepared"):
        load_encoders(tmp_path, entries)


def test_only_equal_encoders_have_equal_fingerprints(tmp_path: Path) -> None:
    entry = {"name": "a", "rows": 5, "scheme": "vocabulary", "file": "a.u4", "crc32": 1}
    assert encoders_fingerprint([entry]) == encoders_fingerprint([{**entry, "counts": {"crc32": 7}}])
    others = [{**entry, "crc32": 2}, {**entry, "name": "b"}, {"name": "a", "rows": 5, "scheme": "rows"}]
    assert len({encoders_fingerprint([other]) for other in (entry, *others)}) == 4
