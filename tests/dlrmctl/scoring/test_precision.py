"""Scores are computed in the precision of the run, or in the requested one."""

import json
from pathlib import Path

import pytest

from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import SMALL, in_process

MODEL = [*SMALL[2:], "--batch-size", "64"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("precision")
    (directory / "rows.txt").write_text(criteo_lines(1400))
    assert in_process("prepare", "criteo", directory / "rows.txt", "-o", directory / "store").status == 0
    for precision in ("fp32", "bf16"):
        arguments = ["--precision", precision, "--data", directory / "store", "--run-dir", directory / precision]
        done = in_process("train", *MODEL, *arguments, "--json")
        assert done.status == 0, done.err
        (directory / f"{precision}.json").write_text(done.out)
    return directory


def _evaluated(place: Path, run: str, *flags: str) -> dict[str, float]:
    done = in_process("evaluate", place / run, *flags, "--json")
    assert done.status == 0, done.err
    return done.json()["test"]


def test_a_run_of_bf16_is_scored_in_bf16_as_training_scored_it(place: Path):
    trained = json.loads((place / "bf16" / "results.json").read_text())["test"]
    assert _evaluated(place, "bf16") == trained
    assert _evaluated(place, "bf16", "--precision", "fp32") != trained


def test_a_precision_that_is_asked_for_changes_the_scores_by_its_rounding_alone(place: Path):
    exact, rounded = _evaluated(place, "fp32"), _evaluated(place, "fp32", "--precision", "bf16")
    assert exact != rounded
    # bfloat16 has 8 bits: logits of size 1 move by up to 2^-8, in both directions.
    assert rounded["log_loss"] == pytest.approx(exact["log_loss"], abs=2**-8)


def test_predict_and_compare_compute_as_evaluate_does(place: Path, tmp_path: Path):
    rows = (place / "rows.txt").read_text().splitlines(keepends=True)[-100:]
    (tmp_path / "test.txt").write_text("".join(rows))
    arguments = [tmp_path / "test.txt", "--labelled", "-o", tmp_path / "p.csv", "--precision", "bf16", "--json"]
    predicted = in_process("predict", place / "fp32", *arguments).json()["metrics"]
    assert predicted == _evaluated(place, "fp32", "--precision", "bf16")
    compared = in_process("compare", place / "fp32", place / "fp32", "--precision", "bf16", "--json").json()
    assert compared["log_loss"]["a"] == pytest.approx(predicted["log_loss"], rel=1e-12)  # summed in another order


def test_an_export_computes_in_float32_and_says_so(place: Path, tmp_path: Path):
    done = in_process("export", place / "bf16", "-o", tmp_path / "m.pt2", "--check-rows", "50")
    assert done.status == 0, done.err
    assert "the run computes in bf16; the exported model computes in float32" in done.err
