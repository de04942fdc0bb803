"""Every kind of feature, and every option, gives the store that a plain reading gives."""

import collections
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.raw import RawFeature
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.preparation.report import PrepareReport
from dlrmctl.data.preparation.selection import is_kept
from dlrmctl.data.source import SPLITS
from dlrmctl.data.splits import Split
from dlrmctl.data.store.store import Store
from tests.data.raw_inputs import FEATURES, ArrayInput

ROWS = [260, 160]


def prepared(input: ArrayInput, out: Path, options: PrepareOptions | None = None, **steps: Any) -> Store:
    prepare(input, out, options or PrepareOptions(block_rows=64), **steps)
    return Store(out)


def report_of(store: Store) -> PrepareReport:
    assert store.manifest.preparation is not None
    return PrepareReport.from_dict(store.manifest.preparation.report)


def stored(store: Store, split: str) -> tuple[list[list[list[int]]], list[int], np.ndarray]:
    """Lists of ids by feature and example, labels, and dense values [I, N]."""
    blocks = [store.read_block(split, index) for index in range(-(-store.num_examples(split) // store.block_rows))]
    lists_FN = []
    for f in range(len(store.schema.sparse)):
        lists: list[list[int]] = []
        for block in blocks:
            lengths_N = np.ones(len(block), int) if block.lengths_FN is None else block.lengths_FN[f]
            lists += [part.tolist() for part in np.split(np.asarray(block.ids_F[f]), np.cumsum(lengths_N)[:-1])]
        lists_FN.append(lists)
    labels = [label for block in blocks for label in np.asarray(block.labels_N).tolist()]
    return lists_FN, labels, np.concatenate([np.asarray(block.dense_IN) for block in blocks], axis=1)


def plain_ids(
    input: ArrayInput, train: list[int], min_count: int = 2, most: int | None = None
) -> list[list[list[int]]]:
    """Lists of ids by feature and row, the slow and obvious way; the vocabulary is that of some rows."""
    ids_FN = []
    for feature, lists_N in zip(input.sparse, input.lists_FN, strict=True):
        counts = collections.Counter(value for row in train for value in lists_N[row])
        kept = sorted((-count, value) for value, count in counts.items() if count >= min_count)[:most]
        known = {value: number + 2 for number, (_, value) in enumerate(kept)}
        ids_N = [list(values) if feature.as_rows else [known.get(value, 1) for value in values] for values in lists_N]
        ids_FN.append([ids or [0] for ids in ids_N] if feature.max_ids == 1 else ids_N)
    return ids_FN


def check(store: Store, input: ArrayInput, rows: dict[str, list[int]], ids_FN: list[list[list[int]]]) -> None:
    """Compares all splits with the rows that belong to them."""
    for split in SPLITS:
        lists_FN, labels, dense_IN = stored(store, split)
        assert labels == input.labels_N[rows[split]].tolist()
        assert dense_IN.tolist() == input.dense_IN[:, rows[split]].tolist()
        assert lists_FN == [[ids_N[row] for row in rows[split]] for ids_N in ids_FN]
    for f, feature in enumerate(store.schema.sparse):
        seen = collections.Counter(value for row in rows["train"] for value in ids_FN[f][row])
        counts = store.features.counts(feature.name)
        assert counts is not None
        assert counts.tolist() == [seen[row] for row in range(feature.rows)]


def cut(total: int, train: int) -> dict[str, list[int]]:
    middle = train + (total - train) // 2
    return {"train": [*range(train)], "validation": [*range(train, middle)], "test": [*range(middle, total)]}


@pytest.mark.parametrize("steps", [{}, {"part_rows": 30, "most_in_memory": 7, "workers": 3}])
@pytest.mark.parametrize("features", [FEATURES, FEATURES[:2] + FEATURES[4:5]])
def test_wide_values_lists_and_rows_are_stored(tmp_path: Path, features: Any, steps: dict[str, Any]) -> None:
    input = ArrayInput(ROWS, features=features)
    store = prepared(input, tmp_path / "store", **steps)
    check(store, input, cut(420, 360), plain_ids(input, [*range(360)]))
    assert store.schema.label == "clicked"
    for feature, sparse, lists_N in zip(features, store.schema.sparse, input.lists_FN, strict=True):
        assert sparse.max_ids == feature.max_ids
        if feature.as_rows:
            assert sparse.rows == max(value for values in lists_N for value in values) + 1


@pytest.mark.parametrize("options", [{}, {"sample_negatives": 0.4}, {"hash_rows": 77}, {"limit": 301}])
def test_neither_workers_nor_parts_nor_memory_change_a_byte(tmp_path: Path, options: dict[str, Any]) -> None:
    found = []
    for number, steps in enumerate(
        [{"workers": 1}, {"workers": 5, "part_rows": 21}, {"most_in_memory": 3, "part_rows": 90}]
    ):
        out = tmp_path / str(number)
        prepare(ArrayInput(ROWS, piece_rows=20), out, PrepareOptions(block_rows=32, **options), **steps)
        found.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert found[0] == found[1] == found[2]


def test_a_limit_of_rows_per_table_keeps_the_most_frequent_values(tmp_path: Path) -> None:
    input = ArrayInput(ROWS)
    store = prepared(input, tmp_path / "store", PrepareOptions(min_count=1, max_rows_per_table=9))
    check(store, input, cut(420, 360), plain_ids(input, [*range(360)], 1, most=7))
    assert store.schema.sparse[0].rows == 9


def test_a_limit_takes_the_first_good_rows(tmp_path: Path) -> None:
    input = ArrayInput(ROWS)
    store = prepared(input, tmp_path / "store", PrepareOptions(limit=301))
    check(store, input, cut(301, 258), plain_ids(input, [*range(258)]))
    assert [source.rows for source in report_of(store).sources] == [260, 41]


def test_negatives_are_sampled_in_training_alone(tmp_path: Path) -> None:
    input = ArrayInput(ROWS)
    options = PrepareOptions(sample_negatives=0.4, seed=7, split=Split("last-file"))
    rows = cut(420, 260)
    kept = [row for row in rows["train"] if is_kept(row, input.labels_N[row : row + 1], 0.4, 7)[0]]
    assert sum(input.labels_N[kept]) == sum(input.labels_N[:260])
    store = prepared(input, tmp_path / "store", options, part_rows=30)
    check(store, input, {**rows, "train": kept}, plain_ids(input, kept))
    assert store.manifest.preparation is not None
    sampling = store.manifest.preparation.sampling
    assert sampling is not None
    assert (sampling.rate, sampling.seed, sampling.logit_offset) == (0.4, 7, math.log(0.4))
    assert [store.features.logit_offset(split) for split in ("train", "test", None)] == [
        0,
        math.log(0.4),
        math.log(0.4),
    ]
    report = report_of(store)
    assert report.splits["train"].label_rate == np.mean(input.labels_N[kept])
    assert report.splits["train"].label_rate_before == np.mean(input.labels_N[:260])
    assert report.splits["test"].label_rate_before is None


def test_the_offset_of_a_sample_brings_the_odds_back() -> None:
    labels_N = (np.arange(400_000) % 4 == 0).astype(np.uint8)
    after = labels_N[is_kept(0, labels_N, 0.1, 3)].mean()
    logit = math.log(after / (1 - after)) + math.log(0.1)
    # 30,000 of 300,000 negatives stay, with a deviation of 164: half a percent of the odds.
    assert logit == pytest.approx(math.log(1 / 3), abs=5 * 164 / 30_000)


def test_a_sample_depends_on_seed_and_row_alone() -> None:
    labels_N = np.zeros(10_000, np.uint8)
    whole = is_kept(0, labels_N, 0.3, 1)
    assert (
        np.concatenate([is_kept(at, labels_N[:1000], 0.3, 1) for at in range(0, 10_000, 1000)]).tolist()
        == whole.tolist()
    )
    assert abs(is_kept(0, labels_N, 0.3, 2)[whole].mean() - 0.3) < 0.045  # five deviations of 0.009
    assert (is_kept(0, labels_N, 0.1, 1) <= whole).all()  # a smaller sample is a part of a larger one
    assert is_kept(2**32, labels_N, 0.3, 1).tolist() != whole.tolist()


def test_another_store_lends_its_vocabulary(tmp_path: Path) -> None:
    features = [feature for feature in FEATURES if not feature.as_rows]
    first, second = ArrayInput(ROWS, features=features), ArrayInput([100, 100], features=features, seed=5)
    lender = prepared(first, tmp_path / "lender")
    store = prepared(
        second, tmp_path / "store", PrepareOptions(vocabulary_from=lender.path), most_in_memory=9, part_rows=50
    )
    assert store.vocabulary_fingerprint() == lender.vocabulary_fingerprint()
    first.lists_FN, split = [a + b for a, b in zip(first.lists_FN, second.lists_FN, strict=True)], cut(200, 171)
    ids_FN = [ids_N[420:] for ids_N in plain_ids(first, [*range(360)])]
    check(store, second, split, ids_FN)
    hashed = prepared(ArrayInput(ROWS, features=features), tmp_path / "hashed", PrepareOptions(hash_rows=50))
    again = prepared(second, tmp_path / "again", PrepareOptions(vocabulary_from=hashed.path))
    assert again.vocabulary_fingerprint() == hashed.vocabulary_fingerprint()


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    lender = prepared(ArrayInput(ROWS, features=FEATURES[:1] + FEATURES[4:5]), tmp_path / "lender").path
    wide = RawFeature("user", "<u8")
    rows = RawFeature("user", as_rows=True)
    for features, message in [
        (FEATURES[:2], r"lender has no feature 'url', only user, hour"),
        ((wide,), "user has values of 32 bits there, of 64 here"),
        ((rows,), "user holds values there, and rows of tables here"),
    ]:
        with pytest.raises(DataError, match=message):
            prepare(ArrayInput(ROWS, features=features), tmp_path / "no", PrepareOptions(vocabulary_from=lender))
    other = ArrayInput(ROWS, features=FEATURES[4:5], seed=1)
    other.lists_FN[0][3] = [10**6]
    with pytest.raises(DataError, match=r"hour: row 1,000,000 is outside the [\d,]+ of"):
        prepare(other, tmp_path / "no", PrepareOptions(vocabulary_from=lender))
    assert [path.name for path in tmp_path.iterdir()] == ["lender"]
