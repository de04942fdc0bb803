"""`dlrmctl predict` on raw rows: what evaluation would have predicted, to the bit."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import SMALL, in_process, run_as_ranks

MODEL = [*SMALL[2:], "--batch-size", "64"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("predict")
    (directory / "train.txt").write_text(criteo_lines(1400))
    assert in_process("prepare", "criteo", directory / "train.txt", "-o", directory / "store").status == 0
    done = in_process("train", *MODEL, "--data", directory / "store", "--run-dir", directory / "run")
    assert done.status == 0, done.err
    return directory


def test_rows_of_the_test_split_get_the_metrics_of_evaluation_bit_for_bit(place: Path):
    lines = (place / "train.txt").read_text().splitlines(keepends=True)
    test = json.loads((place / "run" / "results.json").read_text())["test"]
    (place / "new.tsv").write_text("".join(lines[-test["examples"] :]))
    out = place / "labelled.parquet"
    done = in_process("predict", place / "run", place / "new.tsv", "-o", out, "--labelled", "--json")
    assert done.status == 0, done.err
    assert done.json()["metrics"] == test
    frame = pl.read_parquet(out)
    assert frame["line"].to_list() == list(range(1, test["examples"] + 1))
    assert frame["label"].to_list() == [int(line[0]) for line in lines[-test["examples"] :]]


def test_unlabelled_rows_get_the_same_probabilities_in_their_order(place: Path):
    lines = (place / "train.txt").read_text().splitlines(keepends=True)[:300]
    (place / "with.tsv").write_text("".join(lines))
    (place / "without.tsv").write_text("".join(line.split("\t", 1)[1] for line in lines))
    assert in_process("predict", place / "run", place / "with.tsv", "-o", place / "a.csv", "--labelled").status == 0
    assert in_process("predict", place / "run", place / "without.tsv", "-o", place / "b.parquet").status == 0
    with_labels, without = pl.read_csv(place / "a.csv"), pl.read_parquet(place / "b.parquet")
    assert without.columns == ["source", "line", "probability", "problem"]
    assert without["problem"].null_count() == 300
    found = with_labels["probability"].cast(pl.Float32).to_numpy()
    assert np.array_equal(found, without["probability"].to_numpy())  # CSV holds every digit of a float32


def test_bad_lines_have_a_problem_in_place_of_a_probability_and_unknown_values_are_rare(place: Path):
    lines = (place / "train.txt").read_text().splitlines()
    good = lines[0].split("\t", 1)[1].split("\t")
    unknown = "\t".join([*good[:13], *[f"ffffff{i:02x}" for i in range(26)]])
    (place / "mixed.tsv").write_text("\t".join(good) + "\nbroken\n" + unknown + "\n")
    done = in_process("predict", place / "run", place / "mixed.tsv", "-o", place / "mixed.csv")
    assert done.status == 0
    assert "mixed.tsv, line 2: 1 field, expected 39" in done.err
    assert "2 predictions, 0 lines repaired, 1 bad" in done.out
    frame = pl.read_csv(place / "mixed.csv")
    assert frame["line"].to_list() == [1, 2, 3]
    assert frame["problem"].to_list() == [None, "1 field, expected 39", None]
    assert frame["probability"].is_null().to_list() == [False, True, False]
    assert frame["probability"].n_unique() == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "run", "new.tsv", "-o", "x.txt"], "must end in .parquet or .csv"),
        (
            ["predict", "run", "train.txt", "-o", "x.csv"],
            "at most 114 are allowed; train.txt, line 1: 40 fields, expected 39",
        ),
        (["predict", "run", "train.txt", "-o", "no/x.csv"], "no: no such directory"),
        (
            ["predict", "run", "train.txt", "-o", "train.csv", "--data", "nowhere"],
            "nowhere: no such directory",
        ),
        (["predict", "run", "absent.tsv", "-o", "x.csv"], "absent.tsv: cannot read"),
        (["predict", "store", "train.txt", "-o", "x.csv"], "is not a run directory"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    monkeypatch.chdir(place)
    done = in_process(*arguments)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("error: ") == 1
    assert not (place / arguments[4]).exists()


def test_a_feature_whose_values_are_all_unknown_is_a_warning(place: Path):
    rows = [line.split("\t")[1:] for line in (place / "train.txt").read_text().splitlines()[:40]]
    for number, row in enumerate(rows):
        row[15] = f"fffffe{number:02x}"
    (place / "other.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    done = in_process("predict", place / "run", place / "other.tsv", "-o", place / "other.csv")
    assert done.status == 0
    assert "warning: cat_3: none of its values is in the vocabulary of the model" in done.err
    assert done.err.count("warning:") == 1


def test_lines_that_lack_columns_are_one_warning_that_names_them(place: Path):
    lines = (place / "train.txt").read_text().splitlines()
    (place / "cut.tsv").write_text("".join("\t".join(line.split("\t")[1:20]) + "\n" for line in lines[:300]))
    done = in_process("predict", place / "run", place / "cut.tsv", "-o", place / "cut.csv")
    assert done.status == 0
    good = pl.read_csv(place / "cut.csv")["probability"].count()
    assert good > 150
    warning = f"warning: {good} of {good} rows lack columns at the end of the line, which were read as empty"
    assert f"{warning} (cat_7 to cat_26 without any value): the file may be cut" in done.err
    assert done.err.count("warning:") == 1


def test_what_others_left_beside_the_predictions_stays(place: Path, tmp_path: Path):
    (tmp_path / "p.csv.partial").write_text("mine")
    done = in_process("predict", place / "run", place / "train.txt", "-o", tmp_path / "p.csv", "--labelled")
    assert done.status == 0, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.csv.partial"]
    assert (tmp_path / "p.csv.partial").read_text() == "mine"


def test_a_few_lines_stripped_by_a_tool_are_no_warning(place: Path):
    rows = [line.split("\t")[1:] for line in (place / "train.txt").read_text().splitlines()[:40]]
    short = ["\t".join(row[:-1] if n < 10 and row[-2] else row) for n, row in enumerate(rows)]
    (place / "strip.tsv").write_text("".join(f"{line}\n" for line in short))
    done = in_process("predict", place / "run", place / "strip.tsv", "-o", place / "strip.csv")
    assert done.status == 0
    assert " 0 lines repaired" not in done.out
    assert "warning:" not in done.err


@pytest.mark.parametrize("rows", [3, 60, 1400])
def test_labels_that_are_not_there_are_refused_with_the_flag_to_leave_out(place: Path, tmp_path: Path, rows: int):
    lines = (place / "train.txt").read_text().splitlines()[:rows]
    (tmp_path / "un.tsv").write_text("".join(line.split("\t", 1)[1] + "\n" for line in lines))
    done = in_process("predict", place / "run", tmp_path / "un.tsv", "-o", tmp_path / "un.csv", "--labelled")
    assert done.status == 2
    assert "un.tsv, line 1: 39 fields, expected 40" in done.err
    assert "hint: omit --labelled if the rows have no labels" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["un.tsv"]


def test_more_bad_rows_than_allowed_are_refused_and_leave_nothing_behind(place: Path, tmp_path: Path):
    good = ["\t".join(line.split("\t")[1:]) for line in (place / "train.txt").read_text().splitlines()]
    lines = [line for number, line in enumerate(good) for line in ([line, "no row"] if number % 10 == 0 else [line])]
    (tmp_path / "new.tsv").write_text("\n".join(lines) + "\n")
    done = in_process("predict", place / "run", tmp_path / "new.tsv", "-o", tmp_path / "out.csv")
    assert done.status == 2
    assert (
        "error: 140 of the first 1,540 lines cannot be read, at most 115 are allowed; new.tsv, line 2: 1 field"
        in done.err
    )
    assert "hint: --max-bad-rows N allows more" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["new.tsv"]
    rows = [place / "run", tmp_path / "new.tsv"]
    allowed = in_process("predict", *rows, "-o", tmp_path / "out.csv", "--max-bad-rows", "140")
    assert allowed.status == 0, allowed.err
    frame = pl.read_csv(tmp_path / "out.csv")
    assert frame["line"].to_list() == list(range(1, 1541))
    assert [line == "no row" for line in lines] == frame["probability"].is_null().to_list()
    assert [line == "no row" for line in lines] == frame["problem"].is_not_null().to_list()
    assert in_process("predict", *rows, "-o", tmp_path / "x.csv", "--max-bad-rows", "139").status == 2


def test_rows_of_another_kind_are_one_warning_that_names_some_features(place: Path, tmp_path: Path):
    rows = ["\t".join([*["1"] * 13, *[f"f{n:03x}{f:04x}" for f in range(26)]]) for n in range(40)]
    (tmp_path / "other.tsv").write_text("\n".join(rows) + "\n")
    done = in_process("predict", place / "run", tmp_path / "other.tsv", "-o", tmp_path / "out.csv")
    assert done.status == 0
    words = (
        "warning: cat_1, cat_2, cat_3 and 23 more: none of their values is in the vocabulary of the model, "
        "which has values "
    )
    assert re.search(
        words + r"such as [0-9a-f]{8}, [0-9a-f]{8}, [0-9a-f]{8} of cat_1; are they of the same type", done.err
    )
    assert done.err.count("warning:") == 1


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table, and new rows as CSV, TSV and Parquet: the third has a wrong value, the fifth lacks a field."""
    directory = tmp_path_factory.mktemp("tables")
    (directory / "my.toml").write_text('label = "clicked"\ndense = ["age"]\nsparse = ["user"]\n')
    rows = "".join(f"{n % 2},{n % 7},u{n % 5},k{n}\n" for n in range(700))
    (directory / "t.csv").write_text("clicked,age,user,key\n" + rows)
    store = directory / "store"
    done = in_process("prepare", "--schema", directory / "my.toml", directory / "t.csv", "-o", store)
    assert done.status == 0, done.err
    assert in_process("train", *MODEL, "--data", store, "--run-dir", directory / "run").status == 0
    lines = ["key,age,user,at", "7,1,u1,noon", "8,2,u2,", "9,x,u3,ten", '"1,0",4,u4,dusk', "11,5", "12,6,u1,now"]
    (directory / "new.csv").write_text("\n".join(lines) + "\n")
    (directory / "new.tsv").write_text("\n".join(lines).replace('"1,0"', "1;0").replace(",", "\t") + "\n")
    frame = pl.DataFrame({"age": ["1", "x", None], "user": ["u1", "u2", "u3"], "key": [7, None, 2**60]})
    frame.with_columns(tags=pl.Series([["a"], [], ["b", "c"]])).write_parquet(directory / "new.parquet")
    return directory


@pytest.mark.parametrize(("name", "fourth"), [("new.csv", "1,0"), ("new.tsv", "1;0")])
def test_columns_that_are_kept_stand_beside_every_row(tables: Path, tmp_path: Path, name: str, fourth: str):
    out = tmp_path / "out.parquet"
    done = in_process("predict", tables / "run", tables / name, "-o", out, "--keep", "key,at,user")
    assert done.status == 0, done.err
    frame = pl.read_parquet(out)
    assert frame.columns == ["source", "line", "probability", "problem", "key", "at", "user"]
    assert frame["line"].to_list() == [2, 3, 4, 5, 6, 7]
    assert frame["key"].to_list() == ["7", "8", "9", fourth, None, "12"]  # the fifth row has no such field
    assert frame["at"].to_list() == ["noon", None, "ten", "dusk", None, "now"]
    assert frame["user"].to_list() == ["u1", "u2", "u3", "u4", None, "u1"]
    assert frame["probability"].is_null().to_list() == [False, False, True, False, True, False]
    assert frame["problem"].to_list()[2] == "age is 'x', expected a number"


def test_columns_of_parquet_keep_their_types(tables: Path, tmp_path: Path):
    out, again = tmp_path / "out.parquet", tmp_path / "again.parquet"
    shutil.copyfile(tables / "new.parquet", again)
    done = in_process("predict", tables / "run", tables / "new.parquet", again, "-o", out, "--keep", "key,tags")
    assert done.status == 0, done.err
    frame = pl.read_parquet(out)
    assert frame["key"].to_list() == [7, None, 2**60] * 2
    assert frame["tags"].to_list() == [["a"], [], ["b", "c"]] * 2
    assert frame["line"].to_list() == [1, 2, 3] * 2


def test_every_kind_of_table_keeps_the_same_columns(tables: Path, tmp_path: Path):
    frame = pl.read_parquet(tables / "new.parquet").drop("tags")
    frame.write_parquet(tmp_path / "new.parquet")
    frame.write_ipc(tmp_path / "new.arrow")
    frame.write_ndjson(tmp_path / "new.jsonl")
    frame.write_csv(tmp_path / "new.csv")
    found = []
    for kind in ("parquet", "arrow", "jsonl", "csv"):
        out = tmp_path / f"{kind}.out.csv"
        done = in_process("predict", tables / "run", tmp_path / f"new.{kind}", "-o", out, "--keep", "key,user")
        assert done.status == 0, done.err
        found.append(pl.read_csv(out).select("probability", "problem", "key", "user").rows())
    assert found == [found[0]] * 4
    assert [row[2:] for row in found[0]] == [(7, "u1"), (None, "u2"), (2**60, "u3")]


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("new.csv", "kei", "new.csv: no column 'kei' to keep"),
        ("new.csv", "line", "--keep line: the output has a column of that name"),
        ("new.parquet", "tags", "--keep tags: a CSV file cannot hold List(String)"),
    ],
)
def test_columns_that_cannot_be_kept_are_one_line(tables: Path, tmp_path: Path, name: str, keep: str, message: str):
    done = in_process("predict", tables / "run", tables / name, "-o", tmp_path / "out.csv", "--keep", keep)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("error: ") == 1
    assert not list(tmp_path.iterdir())


def test_rows_of_criteo_have_no_columns_to_keep(place: Path, tmp_path: Path):
    rows = [place / "train.txt", "--labelled"]
    done = in_process("predict", place / "run", *rows, "-o", tmp_path / "out.csv", "--keep", "cat_1")
    assert done.status == 2
    assert "--keep cat_1: rows of format 'criteo' have no other columns than the features" in done.err


def test_a_table_whose_labels_are_all_missing_is_unlabelled(tables: Path, tmp_path: Path):
    (tmp_path / "un.csv").write_text("clicked,age,user\n" + ",1,u1\n" * 50)
    done = in_process("predict", tables / "run", tmp_path / "un.csv", "-o", tmp_path / "out.csv", "--labelled")
    assert done.status == 2
    assert "clicked is missing" in done.err
    assert "hint: omit --labelled if the rows have no labels" in done.err


def test_rows_without_a_good_one_among_their_neighbours_stand_in_their_order(place: Path, tmp_path: Path):
    good = "\t".join((place / "train.txt").read_text().splitlines()[0].split("\t")[1:]) + "\n"
    for name, text in {"a": "x\n", "b": good, "c": "x\n" * 3, "d": good * 2, "e": "\n"}.items():
        (tmp_path / f"{name}.tsv").write_text(text)
    sources = [tmp_path / f"{name}.tsv" for name in "abcde"]
    done = in_process("predict", place / "run", *sources, "-o", tmp_path / "out.csv", "--max-bad-rows", "5")
    assert done.status == 0, done.err
    frame = pl.read_csv(tmp_path / "out.csv")
    assert frame["source"].to_list() == ["a.tsv", "b.tsv", *["c.tsv"] * 3, *["d.tsv"] * 2, "e.tsv"]
    assert frame["line"].to_list() == [1, 1, 1, 2, 3, 1, 2, 1]
    assert frame["probability"].is_null().to_list() == [True, False, True, True, True, False, False, True]


def test_tables_are_scored_by_the_schema_they_were_prepared_with(tmp_path: Path):
    schema = (
        'label = "clicked"\nlabel_positive = ">= 2"\ndense = ["age"]\nsparse = ["user", "genres"]\nmissing = ["NA"]\n'
    )
    schema += '[columns.genres]\nmax_ids = 2\ntruncate = "last"\n[columns.age]\ntransform = "log1p"\n'
    (tmp_path / "my.toml").write_text(schema)
    rows = [f"{n % 4},{n % 7 or 'NA'},u{n % 5},{'|'.join('abc'[: n % 4])}\n" for n in range(700)]
    (tmp_path / "t.csv").write_text("clicked,age,user,genres\n" + "".join(rows))
    store, run = tmp_path / "store", tmp_path / "run"
    assert in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "t.csv", "-o", store).status == 0
    assert in_process("train", *MODEL, "--data", store, "--run-dir", run).status == 0
    for name, flags in {"kept": [], "given": ["--schema", tmp_path / "my.toml"]}.items():
        done = in_process("predict", run, tmp_path / "t.csv", "-o", tmp_path / f"{name}.csv", "--labelled", *flags)
        assert done.status == 0, done.err
    assert (tmp_path / "kept.csv").read_text() == (tmp_path / "given.csv").read_text()
    assert pl.read_csv(tmp_path / "kept.csv")["label"].to_list() == [int(n % 4 >= 2) for n in range(700)]
    (tmp_path / "u.csv").write_text("age,user,genres\n1,u1,a\n")
    done = in_process("predict", run, tmp_path / "u.csv", "-o", tmp_path / "u.out.csv", "--labelled")
    assert done.status == 2
    assert "u.csv: no column 'clicked'" in done.err
    assert "hint: omit --labelled if the rows have no labels" in done.err


def test_preparing_lines_that_lack_columns_is_the_same_warning(place: Path, tmp_path: Path):
    cut = ["\t".join(line.split("\t")[:20]) for line in (place / "train.txt").read_text().splitlines()]
    lines = [line for line in cut if not line.endswith("\t")]  # the others are rejected
    (tmp_path / "cut.txt").write_text("\n".join(lines) + "\n")
    done = in_process("prepare", "criteo", tmp_path / "cut.txt", "-o", tmp_path / "store")
    assert done.status == 0, done.err
    number = f"{len(lines):,}"
    assert f"warning: {number} of {number} rows lack columns at the end of the line" in done.err
    assert "(cat_7 to cat_26 without any value): the file may be cut" in done.err


def test_a_run_and_its_compressed_model_score_raw_rows_when_the_data_is_gone(place: Path, tmp_path: Path):
    shutil.copytree(place / "store", tmp_path / "store")
    trained = in_process("train", *MODEL, "--data", tmp_path / "store", "--run-dir", tmp_path / "run")
    assert trained.status == 0, trained.err
    small = in_process(
        "compress-embeddings", tmp_path / "run", "-o", tmp_path / "small", "--method", "int8", "--min-rows", "1"
    )
    assert small.status == 0, small.err
    rows = [place / "train.txt", "--labelled"]
    for model in ("run", "small"):
        done = in_process("predict", tmp_path / model, *rows, "-o", tmp_path / f"{model}-before.csv")
        assert done.status == 0, done.err
    other = in_process("predict", tmp_path / "small", *rows, "-o", tmp_path / "x.csv", "--checkpoint", "last")
    assert other.status == 2
    assert "--checkpoint last: " in other.err
    assert "is a compressed model, made from one checkpoint" in other.err
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "moved").mkdir()
    for model in ("run", "small"):
        shutil.move(tmp_path / model, tmp_path / "moved" / model)
        after = tmp_path / f"{model}-after.csv"
        assert in_process("predict", tmp_path / "moved" / model, *rows, "-o", after).status == 0
        assert after.read_bytes() == (tmp_path / f"{model}-before.csv").read_bytes()
    vocabulary = next((tmp_path / "moved" / "run" / "features" / "vocabulary").glob("*.u*"))
    vocabulary.write_bytes(bytes(vocabulary.stat().st_size))
    damaged = in_process("predict", tmp_path / "moved" / "run", *rows, "-o", tmp_path / "x.csv")
    assert damaged.status == 2
    assert f"{vocabulary.name}: changed since" in damaged.err
    assert not (tmp_path / "x.csv").exists()


def test_scoring_loads_no_training_kernels(place: Path, tmp_path: Path):
    program = (
        "import sys\nfrom dlrmctl.cli.main import run_command\n"
        f"for command in (['evaluate', {str(place / 'run')!r}], ['compare', *2 * [{str(place / 'run')!r}]],\n"
        f"    ['predict', {str(place / 'run')!r}, {str(place / 'train.txt')!r}, '--labelled', '-o', 'out.csv']):\n"
        "    assert run_command(command) == 0\n"
        "    slow = {'torchrec', 'fbgemm_gpu', 'torch.distributed.checkpoint'} & set(sys.modules)\n"
        "    assert not slow, (command, slow)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_what_the_disk_refuses_is_one_line_and_leaves_nothing(place: Path, tmp_path: Path, suffix: str):
    """A limit on the size of files acts as a full disk does: the write itself fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        rows = place / "train.txt"
        done = in_process("predict", place / "run", rows, "--labelled", "-o", tmp_path / f"out{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.status == 2, done.err
    assert f"error: {tmp_path}/out{suffix}: cannot write: file too large" in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_on_several_ranks_one_writes_what_one_rank_alone_writes(place: Path, tmp_path: Path):
    arguments = ["predict", str(place / "run"), str(place / "train.txt"), "--labelled", "--json"]
    two = run_as_ranks(2, *arguments, "-o", tmp_path / "two.csv", cwd=tmp_path)
    assert two.status == 0, two.err
    one = in_process(*arguments, "-o", tmp_path / "one.csv")
    # Tables that are spread over ranks give the same rows; the sum of a list may be taken in another order.
    assert two.json()["metrics"]["log_loss"] == pytest.approx(one.json()["metrics"]["log_loss"], rel=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv", "two.csv"]


def test_a_table_through_a_pipe_is_refused_not_called_empty(place: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "rows.csv")
    (tmp_path / "schema.toml").write_text('label = "a"\ndense = ["b"]\nsparse = ["c"]\n')
    schema = ["--schema", tmp_path / "schema.toml"]
    done = in_process("prepare", tmp_path / "rows.csv", *schema, "-o", tmp_path / "store")
    assert done.status == 2
    assert "rows.csv: a pipe, expected a file: a table is read more than once" in done.err
