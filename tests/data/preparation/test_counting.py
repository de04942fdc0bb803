"""Values are counted and ranked as in plain Python, whatever fits into memory."""

import collections
from pathlib import Path

import numpy as np
import pytest

from dlrmctl.data.preparation import counting
from dlrmctl.data.preparation.counting import ValueCounter, merge_counts, rank_values, write_counts

WIDTHS = [np.dtype("<u4"), np.dtype("<u8")]


def draw(dtype: np.dtype, size: int = 3000) -> np.ndarray:
    """Values with few that are frequent and many that are not, the lowest and the highest among them."""
    top = int(np.iinfo(dtype).max)
    ids = np.random.default_rng(0).zipf(1.3, size).astype(np.uint64)
    values = ids * np.uint64(0x9E3779B97F4A7C15) % np.uint64(top)
    return np.concatenate([values.astype(dtype), np.array([0, 0, top, top, top], dtype)])


def counter_of(values: np.ndarray, pieces: int, directory: Path, limit: int) -> ValueCounter:
    counter = ValueCounter(values.dtype, directory, limit)
    for piece in np.array_split(values, pieces):
        counter.add(*np.unique(piece, return_counts=True))
    return counter


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("limit", [12, 100, 1 << 24])
def test_counting_in_pieces_is_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: np.dtype, limit: int
) -> None:
    monkeypatch.setattr(counting, "_MERGE_AT", 50)
    values = draw(dtype)
    expected = sorted(collections.Counter(values.tolist()).items())
    for pieces in (1, 7, 100):
        counter = counter_of(values, pieces, tmp_path / "runs", limit)
        for _ in range(2):  # asking twice gives the same
            ranges = list(counter.ranges())
            found = [pair for values_K, counts_K in ranges for pair in zip(values_K.tolist(), counts_K.tolist())]  # noqa: B905
            assert found == expected
        runs = len(list((tmp_path / "runs").glob("*.values")))
        assert (runs >= min(pieces, 2)) == (limit < 1000)
        # A single value has as many entries as there are runs.
        assert max(len(values_K) for values_K, _ in ranges) <= max(limit, runs)
        counter.close()
        assert not (tmp_path / "runs").exists()
    assert [part.tolist() for part in next(ValueCounter(dtype, tmp_path / "runs").ranges())] == [[], []]


def test_counts_above_four_billion_add_up() -> None:
    for counts in ([2**32 - 1, 5, 2**32 - 1], [2**32, 5, 2**40]):
        merged = merge_counts(
            [(np.array([7, 9], np.uint32), np.array(counts[:2])), (np.array([7], np.uint32), np.array(counts[2:]))]
        )
        assert [part.tolist() for part in merged] == [[7, 9], [counts[0] + counts[2], 5]]


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("limit", [30, 1 << 24])
@pytest.mark.parametrize(("min_count", "most"), [(1, None), (3, None), (1, 20), (2, 0), (10**6, None)])
def test_rows_follow_the_counts_and_then_the_values(
    tmp_path: Path, dtype: np.dtype, limit: int, min_count: int, most: int | None
) -> None:
    values = draw(dtype)
    counts = collections.Counter(values.tolist())
    expected = sorted((-count, value) for value, count in counts.items() if count >= min_count)[:most]
    counter = counter_of(values, 11, tmp_path / "runs", limit)
    files = tmp_path / "values", tmp_path / "counts"
    ranked = rank_values(counter.ranges, *files, count_type=np.dtype("<u4"), min_count=min_count, most=most)
    assert np.fromfile(files[0], dtype).tolist() == [value for _, value in expected]
    assert np.fromfile(files[1], "<u4").tolist() == [0, 0, *(-count for count, _ in expected)]
    kept_total = -sum(count for count, _ in expected)
    assert (ranked.distinct, ranked.kept) == (len(counts), len(expected))
    assert (ranked.total, ranked.kept_total) == (len(values), kept_total)


def test_nothing_counted_has_no_rows(tmp_path: Path) -> None:
    counter = ValueCounter(np.dtype("<u4"), tmp_path / "runs")
    files = tmp_path / "values", tmp_path / "counts"
    ranked = rank_values(counter.ranges, *files, count_type=np.dtype("<u4"), min_count=1, most=None)
    assert (ranked.distinct, ranked.kept, files[0].stat().st_size, files[1].stat().st_size) == (0, 0, 0, 8)


def test_counts_of_few_rows_of_a_large_table_lie_in_their_places(tmp_path: Path) -> None:
    rows, counts = np.array([0, 3, 1 << 20, (1 << 22) + 7], np.uint32), np.array([5, 1, 2, 3])
    pieces = [(rows[:3], counts[:3]), (rows[3:], counts[3:])]
    write_counts(tmp_path / "counts", np.dtype("<u4"), 1 << 23, pieces)
    found = np.fromfile(tmp_path / "counts", "<u4")
    assert len(found) == 1 << 23
    assert (np.flatnonzero(found).tolist(), found[rows].tolist()) == (rows.tolist(), counts.tolist())
