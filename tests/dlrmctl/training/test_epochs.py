"""`--epochs auto`: further passes while validation NE falls, the best kept, and the same after an interruption."""

import json
from pathlib import Path

import pytest

from tests.dlrmctl.checkpoints import assert_bitwise_equal
from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import in_process, start, wait_for_checkpoint

MODEL = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--evaluations", "2", "--qr-threshold", "10"]
FAST = ["--sparse-lr", "1", "--qr-lr", "1", "--dense-lr", "0.1"]  # soon past its best


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("epochs")
    (directory / "rows.txt").write_text(criteo_lines(2800))
    done = in_process("prepare", "criteo", directory / "rows.txt", "-o", directory / "store")
    assert done.status == 0, done.err
    return directory / "store"


def _evaluations(run: Path) -> list[dict[str, float]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == "validation"]


def _expected_number(evaluations: list[dict[str, float]], *, per_epoch: int) -> int:
    """Evaluations until four bring no gain or one is two standard errors worse, but never within the first pass."""
    best, without_gain = float("inf"), 0
    for number, entry in enumerate(evaluations, 1):
        without_gain = 0 if entry["ne"] < best else without_gain + 1
        worse = number > per_epoch and entry["ne"] > best + 2 * entry["ne_se"]
        best = min(best, entry["ne"])
        if number >= per_epoch and (worse or without_gain >= 4):
            return number
    return -1


def test_it_ends_once_evaluations_no_longer_gain_and_keeps_the_best(store: Path, tmp_path: Path):
    done = in_process("train", *MODEL, *FAST, "--data", store, "--run-dir", tmp_path / "run", "--json")
    found = done.json()
    assert done.err.count("training ends: ") == 1
    evaluations = _evaluations(tmp_path / "run")
    scores = [entry["ne"] for entry in evaluations]
    best = scores.index(min(scores))
    assert len(scores) == _expected_number(evaluations, per_epoch=2)
    assert len(scores) > 2, "this test needs a second epoch"
    assert found["best_step"] == _evaluations(tmp_path / "run")[best]["step"]
    assert found["validation"]["ne"] == pytest.approx(min(scores), rel=1e-12)  # float64 sums in another order
    settings = (tmp_path / "run" / "run.toml").read_text()
    assert "batch_size = 64" in settings  # what was chosen is written down
    assert "epochs = " not in settings
    assert in_process("train", "--resume", tmp_path / "run", "--json").json() == found  # advice included


def test_a_number_of_epochs_is_kept_to(store: Path, tmp_path: Path):
    found = in_process(
        *("train", *MODEL, *FAST, "--data", store, "--run-dir", tmp_path / "run", "--epochs", 3, "--json")
    ).json()
    assert found["steps"] == 3 * (2400 // 64)


@pytest.mark.slow
def test_a_killed_run_ends_like_one_that_was_never_killed(store: Path, tmp_path: Path):
    slow = ["--sparse-lr", "0.05", "--qr-lr", "0.05", "--checkpoint-every", "10", "--keep-checkpoints", "100"]
    arguments = ["train", *MODEL, *slow, "--data", store]
    whole = in_process(*arguments, "--run-dir", tmp_path / "whole", "--json").json()
    assert whole["steps"] > 2400 // 64, "this test needs a second epoch"
    process = start(*arguments, "--run-dir", tmp_path / "cut", cwd=tmp_path)
    wait_for_checkpoint(tmp_path / "cut", process, "step-40")
    process.kill()
    process.communicate()
    resumed = in_process("train", "--resume", tmp_path / "cut", "--json").json()
    assert {**resumed, "run": ""} == {**whole, "run": ""}
    last = f"checkpoints/step-{whole['steps']}"
    assert_bitwise_equal(tmp_path / "whole" / last, tmp_path / "cut" / last)
