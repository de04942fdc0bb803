"""Raw files become a store of exactly their good rows, or one clear line says why not."""

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.preparation.report import PrepareProgress, PrepareReport
from dlrmctl.data.reader import Reader
from dlrmctl.data.source import SPLITS
from dlrmctl.data.splits import Split
from dlrmctl.data.store.store import Store
from tests.data.criteo_files import Row, as_text, make_rows, prepare_criteo, write


def plain_vocabularies(rows: list[Row], min_count: int) -> list[dict[str, int]]:
    """Row by value per column, the slow and obvious way."""
    known = []
    for column in range(14, 40):
        counts = collections.Counter(row[column] for row in rows if row[column])
        kept = sorted((-count, value) for value, count in counts.items() if count >= min_count)
        known.append({value: number + 2 for number, (_, value) in enumerate(kept)})
    return known


def stored_ids(store: Store, split: str) -> np.ndarray:
    """[rows, 26], in the order of the store."""
    batches = Reader(store, split, batch_size=1, shuffle=False, prefetch=0).batches(0)
    return np.stack([batch.ids.numpy() for batch in batches])


@pytest.mark.parametrize("min_count", [1, 2, 5])
@pytest.mark.parametrize("names", [["train.txt"], ["day_0", "day_1.gz", "day_2"]])
def test_the_store_holds_what_a_plain_reading_finds(tmp_path: Path, min_count: int, names: list[str]) -> None:
    rows = make_rows(211)
    cuts = [0, *(70 * (i + 1) for i in range(len(names) - 1)), 211]
    paths = [write(tmp_path / name, rows[a:b]) for name, a, b in zip(names, cuts, cuts[1:], strict=False)]
    report = prepare_criteo(paths, tmp_path / "store", PrepareOptions(min_count=min_count, block_rows=32))
    store = Store(tmp_path / "store")
    assert [store.num_examples(split) for split in SPLITS] == [180, 15, 16]
    known = plain_vocabularies(rows[:180], min_count)  # the training rows alone
    assert [feature.rows for feature in store.schema.sparse] == [len(k) + 2 for k in known]
    expected = [[k.get(v, 1) if v else 0 for k, v in zip(known, row[14:], strict=True)] for row in rows]
    assert np.concatenate([stored_ids(store, split) for split in SPLITS]).tolist() == expected
    labels = [float(row[0]) for row in rows]
    blocks = [store.read_block("train", index) for index in range(6)]
    assert np.concatenate([block.labels_N for block in blocks]).tolist() == labels[:180]
    dense = np.concatenate([block.dense_IN for block in blocks], axis=1).T
    plain = [[np.log(max(int(x), -2) + 3.0) if x else np.nan for x in row[1:14]] for row in rows[:180]]
    # float16 has 11 significant bits.
    np.testing.assert_allclose(dense, plain, rtol=2**-11)

    assert (report.lines, report.rows, report.repaired, report.rejected) == (211, 211, {}, {})
    assert [(s.name, s.rows) for s in report.sources] == [(n, b - a) for n, a, b in zip(names, cuts, cuts[1:])]  # noqa: B905
    assert report.splits["train"].label_rate == pytest.approx(np.mean(labels[:180]))
    for column, told in enumerate(report.columns):
        ids = np.array(expected)[:, column]
        assert (told.rows, told.missing, told.rare) == (len(known[column]) + 2, (ids == 0).mean(), (ids == 1).mean())
    made = store.manifest.preparation
    assert made is not None
    assert PrepareReport.from_dict(made.report) == report
    assert made.min_count == min_count


def test_the_same_files_make_the_same_store(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", make_rows(50))
    for name in ("a", "b"):
        prepare_criteo([path], tmp_path / name)
    assert Store(tmp_path / "a").fingerprint() == Store(tmp_path / "b").fingerprint()
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_new_rows_can_be_encoded_like_the_old_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", make_rows(100))
    prepare_criteo([path], tmp_path / "store")
    store = Store(tmp_path / "store")
    encoders = store.features.encoders()
    values = np.array([int(row[14] or "0", 16) for row in make_rows(100)], dtype=np.uint32)
    present = np.array([bool(row[14]) for row in make_rows(100)])
    assert encoders["cat_1"].encode(values, present)[:85].tolist() == stored_ids(store, "train")[:, 0].tolist()


def test_stores_whose_values_get_equal_ids_say_so(tmp_path: Path) -> None:
    rows = make_rows(100)
    known = 0

    def meaning(rows: list[Row], **settings: Any) -> str:
        nonlocal known
        known += 1
        path, out = write(tmp_path / f"{known}.txt", rows), tmp_path / str(known)
        prepare_criteo([path], out, PrepareOptions(**settings))
        return Store(out).vocabulary_fingerprint()

    plain = meaning(rows)
    assert plain == meaning(rows, block_rows=16)
    assert plain == meaning([*rows[:85], *make_rows(15, 1)])  # other rows validate and test
    assert plain == meaning([[str(1 - int(row[0])), *["7"] * 13, *row[14:]] for row in rows])  # labels and integers
    assert plain != meaning([*make_rows(85, 1), *rows[85:]])
    swapped = [[*row[:14], row[15], row[14], *row[16:]] for row in rows]
    assert plain != meaning(swapped)
    assert plain != meaning(rows, min_count=1)
    hashed = meaning(rows, hash_rows=100)
    assert plain != hashed == meaning(make_rows(50, 3), hash_rows=100) != meaning(rows, hash_rows=101)


def test_the_minimum_count_matters_only_through_the_values_it_keeps(tmp_path: Path) -> None:
    rows = make_rows(10) * 12  # every value of the 102 rows that train comes ten times or more
    path = write(tmp_path / "train.txt", rows)
    for min_count in (1, 5, 10, 11):
        prepare_criteo([path], tmp_path / str(min_count), PrepareOptions(min_count=min_count))
    one, five, ten, more = (Store(tmp_path / str(n)).vocabulary_fingerprint() for n in (1, 5, 10, 11))
    assert one == five == ten != more


def test_hashed_ids_above_two_to_the_24th_survive(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", make_rows(60))
    report = prepare_criteo([path], tmp_path / "store", PrepareOptions(hash_rows=50_000_000))
    store = Store(tmp_path / "store")
    ids = stored_ids(store, "train")
    assert ids.max() > 2**24
    assert (ids[ids > 2**24] % 2 == 1).any()  # a float32 keeps even ones only
    assert {feature.rows for feature in store.schema.sparse} == {50_000_000}
    encoders = store.features.encoders()
    for column, name in enumerate(store.schema.keys):
        texts = [row[14 + column] for row in make_rows(60)[: len(ids)]]
        values = np.array([int(text or "0", 16) for text in texts], dtype=np.uint32)
        rows = encoders[name].encode(values, np.array([bool(text) for text in texts]))
        assert rows.tolist() == ids[:, column].tolist()
    assert report.columns[0].rare == 0
    assert not (tmp_path / "store" / "vocabulary").exists()


def test_the_last_file_can_be_the_one_that_validates(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"day_{day}", make_rows(20 + day, day)) for day in range(3)]
    report = prepare_criteo(paths, tmp_path / "store", PrepareOptions(split=Split("last-file")))
    assert {name: split.examples for name, split in report.splits.items()} == {
        "train": 41,
        "validation": 11,
        "test": 11,
    }


def test_repaired_and_rejected_lines_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    rows = make_rows(40)
    rows[4][38:] = ["0badcafe", ""]
    lines = as_text(rows).splitlines()
    lines[4] = lines[4].rstrip(b"\t")
    for index in range(10, 22):
        lines[index] = b"2" + lines[index][1:]
    lines[30] = b"hello"
    (tmp_path / "day_3.tsv").write_bytes(b"\n".join(lines) + b"\n")
    report = prepare_criteo([tmp_path / "day_3.tsv"], tmp_path / "store")
    assert (report.lines, report.rows) == (40, 27)
    assert (sum(report.repaired.values()), sum(report.rejected.values())) == (1, 13)
    assert report.rejected == {"label not 0 or 1": 12, "wrong number of fields": 1}
    assert len(report.examples) == 10
    assert str(report.examples[0]) == "day_3.tsv, line 11: the label is '2', expected 0 or 1"


def test_too_many_bad_lines_name_the_first_and_leave_nothing(tmp_path: Path) -> None:
    lines = as_text(make_rows(30)).splitlines()
    lines[7] = lines[7] + b"\t"
    lines[8] = b"x"
    (tmp_path / "day_3.tsv").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DataError, match=r"^day_3\.tsv, line 8: 41 fields, expected 40$") as caught:
        prepare_criteo([tmp_path / "day_3.tsv"], tmp_path / "store", PrepareOptions(max_bad_rows=1))
    assert str(caught.value.hint).startswith("2 of the first 30 lines were rejected, at most 1 were allowed")
    assert [path.name for path in tmp_path.iterdir()] == ["day_3.tsv"]
    assert prepare_criteo([tmp_path / "day_3.tsv"], tmp_path / "store", PrepareOptions(max_bad_rows=2)).rows == 28


def test_without_a_limit_a_hundred_lines_and_one_percent_may_be_bad(tmp_path: Path) -> None:
    good = as_text(make_rows(40))
    (tmp_path / "some").write_bytes(b"x\n" * 101 + good)
    report = prepare_criteo([tmp_path / "some"], tmp_path / "store")
    assert sum(report.rejected.values()) == 101  # 100 + 141 // 100
    (tmp_path / "many").write_bytes(b"x\n" * 102 + good)
    with pytest.raises(DataError, match="many, line 1: 1 field, expected 40"):
        prepare_criteo([tmp_path / "many"], tmp_path / "other")


def test_sources_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    good = write(tmp_path / "good", make_rows(20))
    (tmp_path / "empty").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "thesis.tex").touch()
    for sources, out, message in [
        ([], "store", "no file is given"),
        ([good, tmp_path / "nowhere"], "store", "nowhere: cannot read: no such file"),
        ([good, tmp_path / "empty"], "store", "empty: the file is empty"),
        ([tmp_path], "store", "a directory, expected a file"),
        ([good], "taken", "taken already exists"),
        ([good], "mine", r"mine\.partial exists, and is not an unfinished preparation"),
        ([good], "good/store", "cannot write: not a directory"),
    ]:
        with pytest.raises(DataError, match=message):
            prepare_criteo(sources, tmp_path / out)
    assert {path.name for path in tmp_path.iterdir()} == {"good", "empty", "taken", "mine.partial"}


def test_rows_that_do_not_fill_the_splits_are_refused(tmp_path: Path) -> None:
    for count, message in [(7, "7 good rows leave the validation split empty"), (1, "the train split empty")]:
        with pytest.raises(DataError, match=message):
            prepare_criteo([write(tmp_path / "few", make_rows(count))], tmp_path / "store")
    (tmp_path / "bad").write_bytes(b"hello\n")
    with pytest.raises(DataError, match=r"bad: no good row; bad, line 1: 1 field, expected 40"):
        prepare_criteo([tmp_path / "bad"], tmp_path / "store")
    with pytest.raises(DataError, match=r"^splitting by the last file needs at least two files$"):
        prepare_criteo([tmp_path / "few"], tmp_path / "store", PrepareOptions(split=Split("last-file")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_count": 0}, "a minimum count of 0 must be at least 1"),
        ({"hash_rows": 1}, "1 rows for hashed values must be at least 2"),
        ({"split": Split("files", sources=(1, 1)), "limit": 9}, "a limit of 9 rows and files of each split contradict"),
        ({"max_bad_rows": -1}, "a limit of -1 rejected lines must be at least 0"),
        ({"block_rows": 0}, "blocks of 0 examples must have at least 1"),
        ({"max_rows_per_table": 1}, "1 rows per table must be at least 2"),
        ({"limit": 0}, "a limit of 0 rows must be at least 1"),
        ({"sample_negatives": 0.0}, r"a share of 0\.0 of the negatives must be above 0 and at most 1"),
        ({"sample_negatives": float("nan")}, "a share of nan of the negatives must be above 0"),
        ({"seed": -1}, "a seed of -1 must be at least 0"),
        ({"hash_rows": 9, "vocabulary_from": "x"}, "hashed values cannot have a vocabulary"),
    ],
)
def test_options_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PrepareOptions(**settings)


def test_a_truncated_gzip_file_leaves_no_store(tmp_path: Path) -> None:
    path = write(tmp_path / "day_0.gz", make_rows(200))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"day_0\.gz: the gzip file is cut short"):
        prepare_criteo([path], tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["day_0.gz"]


def test_progress_ends_complete_in_every_phase(tmp_path: Path) -> None:
    told: list[PrepareProgress] = []
    paths = [write(tmp_path / name, make_rows(30)) for name in ("a", "b.gz")]
    prepare_criteo(paths, tmp_path / "store", PrepareOptions(block_rows=16), told.append)
    assert list(dict.fromkeys(p.phase for p in told)) == ["parse", "encode", "write"]
    last = {p.phase: p for p in told}
    assert all(p.done == p.total for p in last.values())
    assert {p.rows for p in last.values()} == {60}
    assert last["parse"].total == sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("hash_rows", [None, 100])
def test_progress_is_told_at_intervals_within_a_phase(tmp_path: Path, hash_rows: int | None) -> None:
    told: list[PrepareProgress] = []
    input = CriteoInput([write(tmp_path / "a", make_rows(70))], piece_bytes=1000)
    options = PrepareOptions(hash_rows=hash_rows, block_rows=16)
    prepare(input, tmp_path / "store", options, told.append, part_rows=16)
    at = {phase: [p.done for p in told if p.phase == phase] for phase in ("parse", "encode", "write")}
    assert np.diff(at["parse"]).max() <= 1000
    assert np.diff(at["encode"]).min() >= 0
    assert np.diff(at["encode"]).max() <= 70 / 3  # a column has four parts or five
    assert at["encode"][-1] == 26 * 70
    assert at["write"] == [16, 32, 48, 60, 65, 70]


def test_the_report_tells_about_sources_and_values(tmp_path: Path) -> None:
    rows = make_rows(140)
    paths = [write(tmp_path / "a", rows[:50]), write(tmp_path / "b", rows[50:])]
    report = prepare_criteo(paths, tmp_path / "store")
    rates = [np.mean([row[0] == "1" for row in part]) for part in (rows[:50], rows[50:])]
    assert [source.label_rate for source in report.sources] == pytest.approx(rates)
    for column, told in enumerate(report.columns):
        train = [row[14 + column] for row in rows[:120]]
        assert told.cardinality == len(set(train) - {""})
        known = {value for value, count in collections.Counter(train).items() if value and count > 1}
        held_out = [row[14 + column] for row in rows[120:]]
        assert told.rare_train == np.mean([bool(value) and value not in known for value in train])
        assert told.rare_held_out == np.mean([bool(value) and value not in known for value in held_out])
    for column, dense in enumerate(report.dense):
        texts = [row[1 + column] for row in rows]
        values = np.array([np.log(max(int(text), -2) + 3.0) for text in texts if text]).astype(np.float16)
        assert (dense.missing, dense.low, dense.high) == (texts.count("") / 140, values.min(), values.max())
        assert dense.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-14)  # a sum of at most 140 terms


def test_the_counts_of_rows_are_those_of_the_training_examples(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", make_rows(150))
    for name, options in [("ids", PrepareOptions()), ("hashed", PrepareOptions(hash_rows=50))]:
        prepare_criteo([path], tmp_path / name, options)
        store = Store(tmp_path / name)
        ids = stored_ids(store, "train")
        for column, feature in enumerate(store.schema.sparse):
            counts = store.features.counts(feature.name)
            assert counts is not None
            assert counts.tolist() == np.bincount(ids[:, column], minlength=feature.rows).tolist()
    (tmp_path / "ids" / "vocabulary" / "cat_1.counts").write_bytes(bytes(8))
    store = Store(tmp_path / "ids")
    with pytest.raises(DataError, match=r"cat_1\.counts: changed since it was prepared"):
        store.features.counts("cat_1")
