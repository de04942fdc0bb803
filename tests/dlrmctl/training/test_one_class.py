"""Equal labels: of the training split, which is refused; of others, where log loss chooses the best."""

import json
from pathlib import Path

import pytest

from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import SMALL, in_process

MODEL = [*SMALL[2:], "--batch-size", "64", "--evaluations", "6", "--keep-checkpoints", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("one")
    lines = criteo_lines(1400).splitlines()
    held_out = [f"0{line[1:]}" for line in lines[1200:]]
    (directory / "rows.txt").write_text("\n".join([*lines[:1200], *held_out]) + "\n")
    done = in_process("prepare", "criteo", directory / "rows.txt", "-o", directory / "store")
    assert done.status == 0, done.err
    done = in_process("train", *MODEL, "--data", directory / "store", "--run-dir", directory / "run")
    assert done.status == 0, done.err
    (directory / "messages").write_text(done.err)
    return directory


def _validations(run: Path) -> list[dict[str, float]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == "validation"]


def test_the_best_checkpoint_is_the_one_of_the_lowest_log_loss_and_that_is_said_once(place: Path):
    evaluations = _validations(place / "run")
    assert {entry["ne"] for entry in evaluations} == {None}
    lowest = min(evaluations, key=lambda entry: entry["log_loss"])
    results = json.loads((place / "run" / "results.json").read_text())
    assert results["best_step"] == lowest["step"]
    assert results["validation"]["log_loss"] == pytest.approx(lowest["log_loss"], rel=1e-12)
    words = "all validation labels are the same: without NE and AUC, log loss chooses the best"
    assert (place / "messages").read_text().count(words) == 1


def test_patience_counts_log_loss(place: Path, tmp_path: Path):
    settings = ["--patience", "2", "--sparse-lr", "3", "--epochs", "3"]
    done = in_process("train", *MODEL, *settings, "--data", place / "store", "--run-dir", tmp_path / "run")
    assert done.status == 0, done.err
    losses = [entry["log_loss"] for entry in _validations(tmp_path / "run")]
    gains = [loss < min(losses[:number], default=1e9) for number, loss in enumerate(losses)]
    assert len(losses) == 18 or gains[-2:] == [False, False]
    assert not any(gains[number : number + 2] == [False, False] for number in range(len(gains) - 2))


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "run"],
        ["evaluate", "run", "--split", "validation", "--deciles", "--slice", "cat_1", "--plot", "calibration.svg"],
        ["compare", "run", "run"],
        ["predict", "run", "rows.txt", "--labelled", "-o", "predictions.parquet"],
        ["export", "run", "-o", "model.pt2"],
        ["export", "run", "-o", "small.pt2", "--precision", "int8", "--max-ne-increase", "50%"],
        ["compress-embeddings", "run", "-o", "small", "--method", "int8", "--min-rows", "1"],
        ["compress-embeddings", "run", "-o", "budget", "--max-ne-increase", "50%", "--min-rows", "1"],
        ["plot", "run", "-o", "curves.svg"],
        ["runs", "."],
        ["train", "--resume", "run"],
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[3:6:2]),
)
def test_every_later_command_works(place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]):
    monkeypatch.chdir(place)
    done = in_process(*arguments)
    assert done.status == 0, done.err
    assert "None" not in done.out


def test_training_labels_that_are_all_the_same_are_refused_before_training(tmp_path: Path):
    (tmp_path / "my.toml").write_text('label = "stars"\nlabel_positive = "good"\nsparse = ["user"]\n')
    (tmp_path / "t.csv").write_text("stars,user\n" + "".join(f"{n % 5},u{n % 7}\n" for n in range(70)))
    done = in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "t.csv", "-o", tmp_path / "store")
    assert done.status == 0, done.err
    done = in_process("train", *MODEL, "--data", tmp_path / "store", "--run-dir", tmp_path / "run")
    assert done.status == 2
    assert f"error: all 60 training labels in {tmp_path / 'store'} are 0\n" in done.err
    assert "hint: check the column 'stars' and label_positive in the schema" in done.err
    assert not (tmp_path / "run").exists()


def test_a_calibration_needs_both_labels(place: Path):
    done = in_process("calibrate", place / "run")
    assert done.status == 2
    assert "all validation labels are the same" in done.err
    assert not (place / "run" / "calibration.json").exists()
