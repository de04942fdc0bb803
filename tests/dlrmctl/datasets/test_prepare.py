"""`dlrmctl prepare` and `dlrmctl data show` on every file format."""

import json
import os
import random
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrmctl.console.text import duration
from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.preparation.report import PrepareProgress
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import write_store
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.datasets.prepare import about_progress
from dlrmctl.datasets.show import frequencies_of
from dlrmctl.datasets.table_example import EXAMPLE
from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import Done, in_process

SCHEMA = """
label = "clicked"
dense = ["age", "price"]
sparse = ["user", "genres"]
[columns.genres]
max_ids = 3
truncate = "last"
"""
TRAIN = [
    "--batch-size",
    "64",
    "--epochs",
    "1",
    "--dim",
    "8",
    "--bottom-mlp",
    "16-8",
    "--top-mlp",
    "16-1",
    "--dense-optimizer",
    "adagrad",
]
ROWS = 1400


def _columns(rows: int = ROWS) -> dict[str, list[Any]]:
    draw = random.Random(0)
    return {
        "clicked": [draw.randrange(2) for _ in range(rows)],
        "age": [draw.choice([None, 18, 40, 77]) for _ in range(rows)],
        "price": [round(100 * draw.random(), 2) for _ in range(rows)],
        "user": [f"user {min(int(draw.paretovariate(0.8)), 300)}" for _ in range(rows)],
        "genres": [draw.choices(["drama", "comedy", "sf"], k=draw.randrange(5)) for _ in range(rows)],
    }


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the same rows as t.csv and t.parquet, and their schema."""
    path = tmp_path_factory.mktemp("tables")
    frame = pl.DataFrame(_columns())
    frame.write_parquet(path / "t.parquet")
    frame.with_columns(pl.col("genres").list.join("|")).write_csv(path / "t.csv")
    (path / "my.toml").write_text(SCHEMA)
    return path


@pytest.fixture(scope="module")
def store(tables: Path) -> Path:
    done = in_process("prepare", "--schema", tables / "my.toml", tables / "t.csv", "-o", tables / "store")
    assert done.status == 0, done.err
    return tables / "store"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "train.txt"
    path.write_text(criteo_lines(2000))
    return path


def _refused(done: Done, *words: str) -> None:
    assert done.status == 2, done.err
    lines = [line for line in done.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert sum(line.startswith("error: ") for line in lines) == 1, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in "\n".join(lines), done.err
    assert done.out == ""


def _trains(store: Path, tmp_path: Path) -> None:
    done = in_process("train", "--data", store, *TRAIN, "--run-dir", tmp_path / "run", "--json")
    assert done.status == 0, done.err
    assert 0 < done.json()["test"]["log_loss"] < 1


# Tables.


def test_tables_of_ones_own_are_prepared_and_trained_on(store: Path, tables: Path, tmp_path: Path):
    schema = Store(store).schema
    assert schema.dense == ("age", "price")
    assert [(feature.name, feature.max_ids) for feature in schema.sparse] == [("user", 1), ("genres", 3)]
    _trains(store, tmp_path)


def test_text_and_parquet_make_the_same_store(store: Path, tables: Path, tmp_path: Path):
    arguments = ["prepare", "--schema", tables / "my.toml", tables / "t.parquet", "-o", tmp_path / "s", "--json"]
    done = in_process(*arguments)
    assert done.status == 0, done.err
    report = done.json()
    assert report["rows"] == ROWS
    long = sum(len(genres) > 3 for genres in _columns()["genres"])
    assert report["repaired"] == {"genres cut to its last 3 values": long}
    assert Store(tmp_path / "s").fingerprint() == Store(store).fingerprint()
    assert Store(tmp_path / "s").vocabulary_fingerprint() == Store(store).vocabulary_fingerprint()


def test_a_store_without_dense_features_trains(tables: Path, tmp_path: Path):
    (tmp_path / "my.toml").write_text('label = "clicked"\nsparse = ["user"]\n')
    done = in_process("prepare", "--schema", tmp_path / "my.toml", tables / "t.csv", "-o", tmp_path / "s")
    assert done.status == 0, done.err
    _trains(tmp_path / "s", tmp_path)


def test_a_wrong_value_is_shown_with_file_and_row(tables: Path, tmp_path: Path):
    lines = (tables / "t.csv").read_text().splitlines()
    lines[7] = lines[7].replace(lines[7].split(",")[2], "cheap")
    (tmp_path / "bad.csv").write_text("\n".join([*lines, ""]))
    arguments = ["prepare", "--schema", tables / "my.toml", tmp_path / "bad.csv", "-o", tmp_path / "s"]
    _refused(in_process(*arguments, "--max-bad-rows", "0"), "bad.csv, line 8: price is 'cheap', expected a number")
    done = in_process(*arguments)
    assert done.status == 0, done.err
    assert "rejected: 1 lines, not a number" in done.out
    assert "bad.csv, line 8: price is 'cheap'" in done.out


def test_the_example_in_the_help_is_a_schema():
    schema = read_schema(tomllib.loads(EXAMPLE), "my.toml")
    columns = ("clicked", "age", "price", "visited", "signed_up", "user", "item", "genres", "genre_weights")
    assert schema.columns == columns
    assert [c.name for c in schema.sparse][-2:] == ["visited_hour", "visited_weekday"]
    assert "[columns.genres]" in in_process("prepare", "--help").out


# NumPy.


def _triplet(path: Path, *, multi_hot: bool) -> Path:
    draw = np.random.default_rng(0)
    np.save(path / "day_0_dense.npy", draw.normal(size=(700, 3)).astype(np.float32))
    np.save(path / "day_0_labels.npy", draw.integers(0, 2, (700, 1)).astype(np.int32))
    if multi_hot:
        ids = {str(f): draw.integers(0, 50, (700, f + 1)).astype(np.int32) for f in range(2)}
        np.savez(path / "day_0_sparse_multi_hot.npz", **ids)
    else:
        np.save(path / "day_0_sparse.npy", draw.integers(0, 50, (700, 2)).astype(np.int32))
    return path


@pytest.mark.parametrize("multi_hot", [False, True])
def test_arrays_are_prepared_and_trained_on(tmp_path: Path, multi_hot: bool):
    _triplet(tmp_path, multi_hot=multi_hot)
    done = in_process("prepare", "npy", tmp_path, "-o", tmp_path / "s")
    assert done.status == 0, done.err
    assert "rare" not in done.err
    block = Store(tmp_path / "s").read_block("train", 0)
    if multi_hot:
        with np.load(tmp_path / "day_0_sparse_multi_hot.npz") as archive:
            expected = [archive[str(f)][: len(block)].reshape(-1) for f in range(2)]
    else:
        expected = list(np.load(tmp_path / "day_0_sparse.npy")[: len(block)].T)
    for ids, ours in zip(block.ids_F, expected, strict=True):
        assert np.array_equal(ids, ours)  # rows are taken as they are
    _trains(tmp_path / "s", tmp_path)


def test_arrays_of_values_get_a_vocabulary_on_request(tmp_path: Path):
    _triplet(tmp_path, multi_hot=False)
    done = in_process("prepare", "npy", tmp_path, "-o", tmp_path / "s", "--ids", "vocabulary", "--json")
    assert done.status == 0, done.err
    assert [column["rows"] for column in done.json()["columns"]] == [52, 52]


# Options.


def test_options_reach_the_preparation(raw: Path, tmp_path: Path):
    first = ["prepare", "criteo", raw, "--json"]
    done = in_process(*first, "-o", tmp_path / "a", "--min-count", "1", "--limit", "1k", "--max-rows-per-table", "4")
    assert done.status == 0, done.err
    assert done.json()["rows"] == 1000
    assert max(column["rows"] for column in done.json()["columns"]) == 4
    done = in_process(*first, "-o", tmp_path / "b", "--vocabulary-from", tmp_path / "a")
    assert done.status == 0, done.err
    assert Store(tmp_path / "b").vocabulary_fingerprint() == Store(tmp_path / "a").vocabulary_fingerprint()
    done = in_process(*first, "-o", tmp_path / "c", "--sample-negatives", "0.5", "--seed", "3")
    assert done.status == 0, done.err
    train = done.json()["splits"]["train"]
    assert train["label_rate"] > 1.3 * train["label_rate_before"]
    assert "before sampling" in in_process("data", "show", tmp_path / "c").out
    done = in_process(*first, "-o", tmp_path / "d", "--ids", "hash", "--hash-rows", "70")
    assert done.status == 0, done.err
    assert {column["rows"] for column in done.json()["columns"]} == {70}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["critoe", "RAW"], ["'critoe' is not a format", "did you mean 'criteo'?"]),
        (["RAW"], ["is not a format", "--schema"]),
        (["csv", "RAW"], ["'csv' is not a format", "--schema FILE.toml"]),
        (["criteo"], ["no file after 'criteo'"]),
        (["npy", "gone"], ["gone: cannot read"]),
        (["criteo", "--schema", "my.toml"], ["'criteo' and --schema my.toml contradict"]),
        (["--schema", "gone.toml", "RAW"], ["gone.toml: no such file"]),
        (["criteo", "RAW", "--ids", "hsah"], ["--ids = 'hsah' must be one of", "'hash'"]),
        (["criteo", "RAW", "--ids", "rows"], ["--ids = 'rows' must be one of vocabulary, hash"]),
        (["criteo", "RAW", "--split", "randm"], ["--split = 'randm' must be one of order, last-file", "'random'"]),
        (["criteo", "RAW", "--split", "time"], ["--split = 'time' needs a column", "--split time:COLUMN"]),
        (["criteo", "RAW", "--split", "time:int_1"], ["criteo data has no column of times"]),
        (["criteo", "RAW", "--split", "group:cat_99"], ["criteo data has no column 'cat_99'", "did you mean 'cat_9'?"]),
        (["criteo", "RAW", "--until", "5,7"], ["--until = '5,7' needs --split time:COLUMN"]),
        (["criteo", "RAW", "--split", "last-file", "--fractions", ".8,.1,.1"], ["--fractions and --split last-file"]),
        (["criteo", "RAW", "--fractions", "0.5,0.4"], ["fractions 0.5, 0.4: 2 values, expected 3"]),
        (["criteo", "RAW", "--fractions", "0.5,0.2,0.2"], ["fractions 0.5, 0.2, 0.2 add up to 0.9, expected 1"]),
        (["criteo", "RAW", "--fractions", "0.8,0.2,0"], ["--fractions = 0 must be above 0"]),
        (["criteo", "--train", "RAW", "--test", "RAW"], ["--train without --validation"]),
        (
            ["criteo", "RAW", "--train", "a", "--validation", "b", "--test", "c"],
            ["--train and the file", "contradict: each split has its own files"],
        ),
        (["criteo", "--train", "a", "--validation", "b", "--test", "c", "--split", "order"], ["--train and --split"]),
        (["criteo", "RAW", "--hash-rows", "100"], ["--hash-rows is for --ids hash"]),
        (["criteo", "RAW", "--ids", "hash", "--min-count", "3"], ["--min-count is for --ids vocabulary, not for hash"]),
        (["criteo", "RAW", "--min-count", "2", "--vocabulary-from", "s"], ["--min-count and --vocabulary-from"]),
        (["criteo", "RAW", "--vocabulary-from", "gone"], ["gone: no such directory"]),
        (["criteo", "RAW", "--min-count", "0"], ["--min-count = 0 must be at least 1"]),
        (["criteo", "RAW", "--limit", "many"], ["--limit = 'many' is not a whole number"]),
        (["criteo", "RAW", "--sample-negatives", "0"], ["--sample-negatives = 0 must be above 0 and at most 1"]),
        (["criteo", "RAW", "--max-bad-rows", "-1"], ["--max-bad-rows = -1 must be at least 0"]),
        (["criteo", "RAW", "--max-rows-per-table", "1"], ["--max-rows-per-table = 1 must be at least 2"]),
        (["criteo", "RAW", "--lmit", "5"], ["--lmit", "--limit"]),
        (["criteo", "RAW", "--ids", "hash", "--hash-rows", "5G"], ["--hash-rows = 5G must be at most 4,294,967,296"]),
        (["criteo", "RAW", "--ids", "hash", "--hash-rows", "1"], ["--hash-rows = 1 must be at least 2"]),
    ],
)
def test_wrong_arguments_are_one_line(raw: Path, tmp_path: Path, arguments: list[str], words: list[str]):
    replaced = [str(raw) if argument == "RAW" else argument for argument in arguments]
    _refused(in_process("prepare", *replaced, "-o", tmp_path / "s"), *words)
    assert not (tmp_path / "s").exists()


def test_each_split_can_have_its_own_files(tables: Path, tmp_path: Path):
    lines = (tables / "t.csv").read_text().splitlines()
    for name, part in (("a1", lines[1:700]), ("a2", lines[700:1100]), ("b", lines[1100:1200]), ("c", lines[1200:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([lines[0], *part, ""]))
    own = ["--train", tmp_path / "a*.csv", "--validation", tmp_path / "b.csv", "--test", tmp_path / "c.csv"]
    done = in_process("prepare", "--schema", tables / "my.toml", *own, "-o", tmp_path / "s")
    assert done.status == 0, done.err
    assert "splits, from their own files" in done.out
    shown = in_process("data", "show", tmp_path / "s", "--json").json()
    assert [shown["splits"][split]["examples"] for split in ("train", "validation", "test")] == [1099, 100, 201]
    assert shown["split_rule"] == {"by": "files", "sources": [2, 1]}


def test_no_output_directory_is_one_line(raw: Path, tmp_path: Path):
    _refused(in_process("prepare", "criteo", raw), "--out")
    missing = tmp_path / "no" / "such"
    words = f"{missing}: no such directory", f"mkdir -p {missing}"
    _refused(in_process("prepare", "criteo", raw, "-o", missing / "s"), *words)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_text_has_rows_and_not_lines(tables: Path, tmp_path: Path):
    frame = pl.read_parquet(tables / "t.parquet").with_columns(clicked=pl.col("clicked").cast(pl.Int64))
    wrong = frame.with_columns(clicked=pl.when(pl.int_range(pl.len()) == 2).then(7).otherwise("clicked"))
    for name in ("a", "b"):
        wrong.write_parquet(tmp_path / f"{name}.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    done = in_process("prepare", "--schema", tables / "my.toml", *files, "-o", tmp_path / "s")
    assert done.status == 0, done.err
    shown = in_process("data", "show", tmp_path / "s")
    for out in (done.out, shown.out):
        assert "rejected: " in out
        assert "a.parquet, row 3: clicked is 7" in out
        assert "good rows" in out
        assert "line" not in out.replace("training lookups", "")
    refused = in_process(
        *("prepare", "--schema", tables / "my.toml", *files, "-o", tmp_path / "t", "--max-bad-rows", "0")
    )
    _refused(refused, "a.parquet, row 3:", "rows were rejected", "--max-bad-rows N allows more")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label = \n", ["my.toml: not valid TOML", "line 1"]),
        ('label = "clicked"\nsparse = ["usr"]\n', ["t.csv: no column 'usr', which", "did you mean 'user'?"]),
        ('label = "clicked"\nsprase = ["user"]\n', ["sprase is not a key of a schema", "did you mean 'sparse'?"]),
    ],
)
def test_a_wrong_schema_is_one_line(tables: Path, tmp_path: Path, text: str, words: list[str]):
    (tmp_path / "my.toml").write_text(text)
    arguments = ["prepare", "--schema", tmp_path / "my.toml", tables / "t.csv", "-o", tmp_path / "s"]
    _refused(in_process(*arguments), *words)


# Progress.


@pytest.mark.parametrize(
    ("progress", "seconds", "expected"),
    [
        (PrepareProgress("parse", 250, 1000, 5000), 10.0, "5,000 rows, 500 rows/s"),
        # Half of what is done was done before: this run has read 100 bytes and 2,500 rows.
        (PrepareProgress("parse", 200, 1000, 5000, 100), 10.0, "5,000 rows, 250 rows/s"),
        (PrepareProgress("parse", 250, 0, 5000), 10.0, "5,000 rows, 500 rows/s"),
        (PrepareProgress("encode", 25_000, 50_000, 5000), 3.0, "5,000 rows, column 6 of 10"),
        (PrepareProgress("write", 5000, 5000, 5000), 2.0, "5,000 rows, 2,500 rows/s"),
        (PrepareProgress("write", 0, 5000, 5000), 0.0, "5,000 rows"),
        # What a phase does at once says nothing of the rest.
        (PrepareProgress("encode", 5000, 50_000, 5000), 0.0, "5,000 rows, column 2 of 10"),
        (PrepareProgress("write", 400, 5000, 5000), 0.5, "5,000 rows, 800 rows/s"),
    ],
)
def test_progress_says_rows_and_their_rate(progress: PrepareProgress, seconds: float, expected: str):
    assert about_progress(progress, seconds) == expected


def test_durations_are_said_as_people_do():
    assert [duration(s) for s in (0.4, 59.4, 59.6, 3599, 3600, 7500)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "2 h 5 min",
    ]


# Showing.


def test_a_store_shows_the_report_again(tables: Path, store: Path):
    done = in_process("data", "show", store)
    assert done.status == 0, done.err
    for words in (f"{ROWS:,} rows of {ROWS:,} lines", "genres cut to its last 3 values", "label rate", "top 10 %", "█"):
        assert words in done.out
    shown = in_process("data", "show", store, "--json").json()
    manifest = json.loads((store / "manifest.json").read_text())
    assert {key: shown[key] for key in manifest["report"]} == manifest["report"]


def test_the_curve_is_that_of_the_counts(store: Path):
    shown = in_process("data", "show", store, "--json").json()["frequencies"]
    features = Store(store).features
    for curve, name in zip(shown, features.schema.keys, strict=True):
        kept = features.counts(name)
        assert kept is not None
        counts = np.sort(kept)[::-1]
        assert curve["lookups"] == counts.sum()
        assert curve["rows"] == len(counts)
        top = len(counts) // 10
        assert curve["covered"]["top 10 %"] == (counts[:top].sum() / counts.sum() if top else None)
        assert curve["curve"]["count"] == [counts[rank - 1] for rank in curve["curve"]["rank"]]
        assert curve["curve"]["rank"][0] == 1
        assert curve["curve"]["rank"][-1] == len(counts)


def test_the_blocks_fall_from_full_to_empty_whatever_the_counts():
    draw = np.random.default_rng(0)
    for rows in (1, 2, 3, 10, 1000):
        for _ in range(300):
            counts = np.sort(draw.zipf(1.3, rows).clip(max=10**6) - draw.integers(0, 2))[::-1]
            blocks = frequencies_of("x", counts).blocks()
            assert len(blocks) == 16
            assert list(blocks) == sorted(blocks, key="·▁▂▃▄▅▆▇█".index, reverse=True)
            assert blocks[0] == ("█" if counts[0] else "·")
            assert (blocks[-1] == "·") == (counts[-1] == 0)


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_the_curves_can_be_drawn(store: Path, tmp_path: Path, name: str, start: bytes):
    done = in_process("data", "show", store, "--plot", tmp_path / name)
    assert done.status == 0, done.err
    assert (tmp_path / name).read_bytes().startswith(start)
    assert f"wrote {tmp_path / name}" in done.err


def test_a_store_without_counts_says_so(tmp_path: Path):
    write_store(Synthetic(0, 200, 100, 100), tmp_path / "s")
    done = in_process("data", "show", tmp_path / "s")
    assert done.status == 0, done.err
    assert "no report" in done.out
    assert "no id counts" in done.out
    _refused(in_process("data", "show", tmp_path / "s", "--plot", tmp_path / "a.png"), "has no id counts")


def test_what_cannot_be_shown_is_one_line(store: Path, tmp_path: Path):
    _refused(in_process("data", "show", tmp_path / "gone"), "gone: no such directory")
    _refused(in_process("data", "show", store, "--plot", tmp_path / "a.jpg"), "a.jpg", ".png or .svg")
    _refused(in_process("data", "shwo", store), "shwo")


def test_columns_named_like_parts_of_modules_or_paths_train_compress_and_export(tmp_path: Path):
    lines = [f"{i % 3 == 0:d},{i},t{i % 90},u{i % 61},v{i % 17}" for i in range(600)]
    (tmp_path / "rows.csv").write_text("\n".join(["clicked,age,type,user.id,values", *lines]) + "\n")
    (tmp_path / "my.toml").write_text('label = "clicked"\ndense = ["age"]\nsparse = ["type", "user.id", "values"]\n')
    done = in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "rows.csv", "-o", tmp_path / "store")
    assert done.status == 0, done.err
    _trains(tmp_path / "store", tmp_path)
    for command in (
        ["compress-embeddings", tmp_path / "run", "-o", tmp_path / "small", "--method", "int8"],
        ["evaluate", tmp_path / "small"],
        ["export", tmp_path / "run", "-o", tmp_path / "model.pt2"],
    ):
        done = in_process(*command)
        assert done.status == 0, (command, done.err)


def test_features_that_are_the_same_in_every_row_are_one_warning(tmp_path: Path):
    (tmp_path / "my.toml").write_text(
        'label = "y"\ndense = ["age", "unit", "gone"]\nsparse = ["user", "site", "none"]\n'
    )
    rows = "".join(f"{n % 2},{n % 7},1,,u{n % 5},s1,\n" for n in range(70))
    (tmp_path / "t.csv").write_text("y,age,unit,gone,user,site,none\n" + rows)
    done = in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "t.csv", "-o", tmp_path / "store")
    assert done.status == 0, done.err
    words = "gone, none without any value and unit, site with one value in all rows"
    assert f"warning: nothing can be learned from {words}" in done.err
    assert done.err.count("warning:") == 1


def test_times_as_numbers_are_a_warning(tmp_path: Path):
    rows = [f"{i % 2},{1_767_225_600 + 977 * i},{i},{i % 5}" for i in range(200)]
    (tmp_path / "t.csv").write_text("\n".join(["clicked,at,price,user", *rows, ""]))
    (tmp_path / "my.toml").write_text('label = "clicked"\ndense = ["at", "price"]\nsparse = ["user"]')
    done = in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "t.csv", "-o", tmp_path / "s")
    assert done.status == 0, done.err
    (warning,) = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert "at looks like seconds since 1970" in warning


def test_negative_numbers_that_the_logarithm_makes_one_are_a_warning(tmp_path: Path):
    dense = '["cold", "west", "delta", "count"]'
    (tmp_path / "my.toml").write_text(f'label = "y"\ndense = {dense}\nsparse = ["user"]\n')
    rows = "".join(f"{n % 2},{n % 10 - 4},{n / 300 - 74},{n % 10 - 4},{n % 3 - 1},u{n % 7}\n" for n in range(350))
    (tmp_path / "t.csv").write_text("y,cold,west,delta,count,user\n" + rows)
    command = ["prepare", "--schema", tmp_path / "my.toml", tmp_path / "t.csv", "-o", tmp_path / "store"]
    done = in_process(*command)
    assert done.status == 0, done.err
    # Of the digits of 0 to 299, the training rows, three in ten are 0, 1 or 2.
    said = "warning: cold (30 %), west (100 %), delta (30 %): this share of the values is -2 or less"
    assert said in done.err
    assert 'set transform = "none" in ' in done.err
    with (tmp_path / "my.toml").open("a") as schema:
        schema.write('transform = "none"\n')
    done = in_process(*command[:-1], tmp_path / "other")
    assert done.status == 0, done.err
    assert "warning:" not in done.err


def test_labels_that_are_all_the_same_are_a_warning(tmp_path: Path):
    (tmp_path / "my.toml").write_text('label = "stars"\nlabel_positive = "good"\nsparse = ["user"]\n')
    (tmp_path / "t.csv").write_text("stars,user\n" + "".join(f"{n % 5},u{n % 7}\n" for n in range(70)))
    done = in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "t.csv", "-o", tmp_path / "store")
    assert done.status == 0, done.err
    assert "warning: all 60 training labels are 0: check label and label_positive in " in done.err


def test_values_that_are_new_in_every_row_are_one_warning_that_names_their_share(tmp_path: Path):
    (tmp_path / "my.toml").write_text('label = "y"\nsparse = ["user", "day", "row"]\n')
    rows = "".join(f"{n % 2},u{n % 7},2026-{1 + n // 28:02}-{1 + n % 28:02},r{n}\n" for n in range(300))
    (tmp_path / "t.csv").write_text("y,user,day,row\n" + rows)
    done = in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "t.csv", "-o", tmp_path / "store")
    assert done.status == 0, done.err
    assert "warning: day (100 %), row (100 %): this share of the values in validation and test is rare" in done.err
    assert done.err.count("warning:") == 1


@pytest.mark.parametrize("columns", ["", '[columns.genres]\ntype = "string"\n'], ids=["not said", "strings"])
def test_lists_that_are_read_as_strings_are_a_warning(tmp_path: Path, columns: str):
    (tmp_path / "my.toml").write_text(f'label = "y"\nsparse = ["user", "genres"]\n{columns}')
    lines = "".join(f"{n % 2},u{n % 7},g{n % 3}{f'|g{n % 5}' if n % 3 else ''}\n" for n in range(70))
    (tmp_path / "t.csv").write_text("y,user,genres\n" + lines)
    done = in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "t.csv", "-o", tmp_path / "store")
    assert done.status == 0, done.err
    assert ("to read lists, set max_ids under [columns.genres]" in done.err) == (not columns)
    assert done.err.count("warning:") == (0 if columns else 1)


@pytest.mark.parametrize("name", ["c" * 300, "\u5e7f\u544a" * 60], ids=["letters", "signs"])
def test_a_column_of_a_long_name_is_prepared_like_any_other(tmp_path: Path, name: str):
    (tmp_path / "rows.csv").write_text(f"y,{name},{name}2\n" + "1,a,b\n0,c,d\n" * 20)
    (tmp_path / "my.toml").write_text(f'label = "y"\nsparse = ["{name}", "{name}2"]\n')
    arguments = ["prepare", tmp_path / "rows.csv", "--schema", tmp_path / "my.toml", "-o", tmp_path / "store"]
    done = in_process(*arguments)
    assert done.status == 0, done.err
    shown = in_process("data", "show", tmp_path / "store", "--json")
    assert [feature["name"] for feature in shown.json()["schema"]["sparse"]] == [name, f"{name}2"]


def test_a_pipe_in_place_of_a_manifest_is_one_line_at_once(tmp_path: Path):
    (tmp_path / "store").mkdir()
    os.mkfifo(tmp_path / "store" / "manifest.json")
    done = in_process("data", "show", tmp_path / "store")
    assert done.status == 2
    assert "manifest.json is not a file" in done.err
