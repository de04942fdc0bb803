"""`dlrmctl predict` on raw rows: what evaluation would have predicted, to the bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import SMALL, in_process

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
    assert without.columns == ["source", "line", "probability"]
    found = with_labels["probability"].cast(pl.Float32).to_numpy()
    assert np.array_equal(found, without["probability"].to_numpy())  # CSV holds every digit of a float32


def test_bad_lines_are_left_out_and_said_and_unknown_values_are_rare(place: Path):
    lines = (place / "train.txt").read_text().splitlines()
    good = lines[0].split("\t", 1)[1].split("\t")
    unknown = "\t".join([*good[:13], *[f"ffffff{i:02x}" for i in range(26)]])
    (place / "mixed.tsv").write_text("\t".join(good) + "\nbroken\n" + unknown + "\n")
    done = in_process("predict", place / "run", place / "mixed.tsv", "-o", place / "mixed.csv")
    assert done.status == 0
    assert "mixed.tsv, line 2: 1 field, expected 39" in done.err
    assert "2 predictions, 0 lines repaired, 1 left out" in done.out
    frame = pl.read_csv(place / "mixed.csv")
    assert frame["line"].to_list() == [1, 3]
    assert frame["probability"].n_unique() == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "run", "new.tsv", "-o", "x.txt"], "ending in .parquet or .csv"),
        (["predict", "run", "train.txt", "-o", "x.csv"], "no good row; train.txt, line 1: 40 fields, expected 39"),
        (["predict", "run", "train.txt", "-o", "no/x.csv"], "no: there is no such directory"),
        (
            ["predict", "run", "train.txt", "-o", "train.csv", "--data", "nowhere"],
            "nowhere: there is no such directory",
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
    assert "warning: cat_3: none of its values is known to the model" in done.err
    assert done.err.count("warning:") == 1


def test_lines_that_lack_columns_are_one_warning_that_names_them(place: Path):
    lines = (place / "train.txt").read_text().splitlines()
    (place / "cut.tsv").write_text("".join("\t".join(line.split("\t")[1:20]) + "\n" for line in lines[:300]))
    done = in_process("predict", place / "run", place / "cut.tsv", "-o", place / "cut.csv")
    assert done.status == 0
    good = len(pl.read_csv(place / "cut.csv"))
    assert good > 150
    warning = f"warning: {good} of {good} rows are of lines that lack columns at their end, which were read as empty"
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


def test_labels_that_are_not_there_are_said_with_the_flag_to_leave_out(place: Path, tmp_path: Path):
    lines = (place / "train.txt").read_text().splitlines()
    (place / "un.tsv").write_text("".join(line.split("\t", 1)[1] + "\n" for line in lines))
    done = in_process("predict", place / "run", place / "un.tsv", "-o", place / "un.csv", "--labelled")
    words = "un.tsv, line 1: 39 fields, expected 40; leave out --labelled, if the rows have no labels"
    assert f"warning: most lines were left out, the first because of {words}" in done.err  # some look as if labelled
    (place / "un3.tsv").write_text("".join(line.split("\t", 1)[1] + "\n" for line in lines[:3]))
    done = in_process("predict", place / "run", place / "un3.tsv", "-o", place / "un3.csv", "--labelled")
    assert done.status == 2
    assert "no good row" in done.err
    assert "hint: leave out --labelled, if the rows have no labels" in done.err


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
    assert "hint: leave out --labelled, if the rows have no labels" in done.err


def test_preparing_lines_that_lack_columns_is_the_same_warning(place: Path, tmp_path: Path):
    cut = ["\t".join(line.split("\t")[:20]) for line in (place / "train.txt").read_text().splitlines()]
    lines = [line for line in cut if not line.endswith("\t")]  # the others are rejected
    (tmp_path / "cut.txt").write_text("\n".join(lines) + "\n")
    done = in_process("prepare", "criteo", tmp_path / "cut.txt", "-o", tmp_path / "store")
    assert done.status == 0, done.err
    number = f"{len(lines):,}"
    assert f"warning: {number} of {number} rows are of lines that lack columns at their end" in done.err
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
