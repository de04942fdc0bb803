"""Raw files become a store of exactly their good rows, or one clear line says why not."""

import collections
import functools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import columns, prepare
from data.columns import ColumnFiles
from data.errors import DataError
from data.lines import read_lines
from data.prepare import PrepareOptions, PrepareProgress, prepare_criteo
from data.raw import RawColumn, RawPiece
from data.reader import Reader
from data.source import SPLITS
from data.store import Store
from tests.data.criteo_files import Row, as_text, make_rows, write


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
    plain = [[np.log(max(int(x), -2) + 3.0) if x else -1.0 for x in row[1:14]] for row in rows[:180]]
    # float16 has 11 significant bits.
    np.testing.assert_allclose(dense, plain, rtol=2**-11)

    assert (report.lines, report.rows, report.repaired, report.rejected) == (211, 211, 0, {})
    assert [(s.name, s.rows) for s in report.sources] == [(n, b - a) for n, a, b in zip(names, cuts, cuts[1:])]  # noqa: B905
    assert report.splits["train"].label_rate == pytest.approx(np.mean(labels[:180]))
    for column, told in enumerate(report.columns):
        ids = np.array(expected)[:, column]
        assert (told.rows, told.missing, told.rare) == (len(known[column]) + 2, (ids == 0).mean(), (ids == 1).mean())
    assert json.loads(json.dumps(report.to_dict())) == store.manifest["report"]
    assert store.manifest["ids"]["min_count"] == min_count


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
    encoders = store.encoders()
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
    encoders = store.encoders()
    for column, name in enumerate(store.schema.keys):
        texts = [row[14 + column] for row in make_rows(60)[: len(ids)]]
        values = np.array([int(text or "0", 16) for text in texts], dtype=np.uint32)
        rows = encoders[name].encode(values, np.array([bool(text) for text in texts]))
        assert rows.tolist() == ids[:, column].tolist()
    assert report.columns[0].rare == 0
    assert not (tmp_path / "store" / "vocabulary").exists()


def test_the_last_file_can_be_the_one_that_validates(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"day_{day}", make_rows(20 + day, day)) for day in range(3)]
    report = prepare_criteo(paths, tmp_path / "store", PrepareOptions(split="last-file"))
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
    assert (report.lines, report.rows, report.repaired, report.num_rejected) == (40, 27, 1, 13)
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
    assert prepare_criteo([tmp_path / "some"], tmp_path / "store").num_rejected == 101  # 100 + 141 // 100
    (tmp_path / "many").write_bytes(b"x\n" * 102 + good)
    with pytest.raises(DataError, match="many, line 1: 1 field, expected 40"):
        prepare_criteo([tmp_path / "many"], tmp_path / "other")


def test_sources_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    good = write(tmp_path / "good", make_rows(20))
    (tmp_path / "empty").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "mine.partial").mkdir()
    for sources, out, message in [
        ([], "store", "no file to prepare"),
        ([good, tmp_path / "nowhere"], "store", "nowhere: cannot read: no such file"),
        ([good, tmp_path / "empty"], "store", "empty: the file is empty"),
        ([tmp_path], "store", "a directory, expected a file"),
        ([good], "taken", "taken: exists already"),
        ([good], "mine", r"mine\.partial: exists, and is not an unfinished preparation"),
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
        prepare_criteo([tmp_path / "few"], tmp_path / "store", PrepareOptions(split="last-file"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_count": 0}, "a minimum count of 0 must be at least 1"),
        ({"hash_rows": 1}, "1 rows for hashed values must be at least 2"),
        ({"split": "random"}, "splitting by 'random' is not known: choose 'order' or 'last-file'"),
        ({"max_bad_rows": -1}, "a limit of -1 rejected lines must be at least 0"),
        ({"block_rows": 0}, "blocks of 0 examples must have at least 1"),
    ],
)
def test_options_out_of_range_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PrepareOptions(**settings)  # type: ignore[arg-type]


def test_a_truncated_gzip_file_leaves_no_store(tmp_path: Path) -> None:
    path = write(tmp_path / "day_0.gz", make_rows(200))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"day_0\.gz: the gzip file is cut short"):
        prepare_criteo([path], tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["day_0.gz"]


def test_a_full_disk_is_said_in_one_line_and_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "train.txt", make_rows(50))
    opened = ColumnFiles.__init__

    def on_a_full_disk(self: ColumnFiles, where: Path, *names: tuple[str, ...]) -> None:
        opened(self, where, *names)
        self._files["cat_3"].close()
        self._files["cat_3"] = open("/dev/full", "wb", buffering=0)  # noqa: SIM115

    monkeypatch.setattr(ColumnFiles, "__init__", on_a_full_disk)
    with pytest.raises(DataError, match=r"cat_3: cannot write: no space left on device") as caught:
        prepare_criteo([path], tmp_path / "store")
    assert "free some space" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]


def _prepare_slowly(path: Path, out: Path, phase: str) -> None:
    def wait(progress: PrepareProgress) -> None:
        if progress.phase == phase:
            (out.parent / "reached").touch()
            time.sleep(60)

    prepare_criteo([path], out, PrepareOptions(block_rows=8), wait)


@pytest.mark.parametrize("phase", ["parse", "write"])
def test_a_killed_preparation_leaves_no_store_and_is_started_over(tmp_path: Path, phase: str) -> None:
    path, out = write(tmp_path / "train.txt", make_rows(60)), tmp_path / "store"
    process = multiprocessing.get_context("spawn").Process(target=_prepare_slowly, args=(path, out, phase))
    process.start()
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "reached").exists():
            assert time.monotonic() < deadline
            assert process.is_alive()
            time.sleep(0.02)
        with pytest.raises(DataError, match=r"store\.partial: another process is preparing it"):
            prepare_criteo([path], out)
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert not out.exists()
    with pytest.raises(DataError, match=r"no manifest\.json, so not a store"):
        Store(tmp_path / "store.partial")
    assert prepare_criteo([path], out).rows == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reached", "store", "train.txt"]
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        "test.bin",
        "test.blocks",
        "train.bin",
        "train.blocks",
        "validation.bin",
        "validation.blocks",
        "vocabulary",
    ]


def test_an_interrupted_preparation_cleans_up(tmp_path: Path) -> None:
    def interrupt(_: PrepareProgress) -> None:
        assert (tmp_path / "store.partial").exists()
        raise KeyboardInterrupt

    path = write(tmp_path / "train.txt", make_rows(50))
    with pytest.raises(KeyboardInterrupt):
        prepare_criteo([path], tmp_path / "store", None, interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt"]


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
def test_progress_is_told_at_intervals_within_a_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hash_rows: int | None
) -> None:
    monkeypatch.setattr(prepare, "read_lines", functools.partial(read_lines, piece_bytes=1000))
    for module in (prepare, columns):
        monkeypatch.setattr(module, "PIECE_ROWS", 16)
    told: list[PrepareProgress] = []
    path = write(tmp_path / "a", make_rows(70))  # 60 of them train
    prepare_criteo([path], tmp_path / "store", PrepareOptions(hash_rows=hash_rows, block_rows=16), told.append)
    at = {phase: [p.done for p in told if p.phase == phase] for phase in ("parse", "encode", "write")}
    assert np.diff(at["parse"]).max() <= 1000
    encoded = [16, 32, 48, 64, 70]
    per_column = encoded if hash_rows else [16, 32, 48, 60, *(60 + rows for rows in encoded)]  # counted before
    assert at["encode"] == [column * per_column[-1] + rows for column in range(26) for rows in per_column]
    assert at["write"] == [16, 32, 48, 60, 65, 70]


def test_column_files_count_their_rows(tmp_path: Path) -> None:
    files = ColumnFiles(tmp_path / "columns", ("x",), ("a", "b"))
    values, present = np.array([[7, 8], [9, 0]], np.uint32), np.array([[True, True], [True, False]])
    dense = np.array([[0.5, -1]], np.float16)
    with files:
        sparse = [RawColumn(*column) for column in zip(values, present, strict=True)]
        files.append(RawPiece(np.arange(2), np.array([0, 1], np.uint8), dense, sparse, {}, []))
        files.close()
        assert files.rows == 2
        assert [piece.tolist() for piece in files.present_values("b", 2)] == [[9]]
        assert files.dense_rows(1, 1).tolist() == [[-1]]
        assert files.labels(0, 2).tolist() == [0, 1]
    assert not (tmp_path / "columns").exists()
