"""Training on sampled negatives: predictions are corrected for the sampling."""

from pathlib import Path

import pytest

from tests.dlrmctl.commands import SMALL, in_process


def test_a_model_of_sampled_negatives_is_calibrated_on_the_whole_splits(tmp_path: Path):
    rows = tmp_path / "rows.tsv"
    assert in_process("data", "synthesize", "--rows", "60k", "-o", rows).status == 0
    calibrations, rates = {}, {}
    for name, flags in {"all": [], "sampled": ["--sample-negatives", "0.2"]}.items():
        store, run = tmp_path / name, tmp_path / f"run-{name}"
        prepared = in_process("prepare", "criteo", rows, "-o", store, *flags, "--json")
        assert prepared.status == 0, prepared.err
        rates[name] = {split: part["label_rate"] for split, part in prepared.json()["splits"].items()}
        done = in_process("train", *SMALL[2:], "--data", store, "--run-dir", run, "--evaluations", "1", "--json")
        assert done.status == 0, done.err
        calibrations[name] = done.json()["test"]["calibration"]
    assert rates["sampled"]["train"] > 2 * rates["all"]["train"]
    assert rates["sampled"]["test"] == rates["all"]["test"]
    # Without the correction, odds would be five times too high: calibration would be near 2.5.
    assert calibrations["sampled"] == pytest.approx(calibrations["all"], abs=0.15)
    predicted = in_process("predict", tmp_path / "run-sampled", rows, "-o", tmp_path / "p.csv", "--labelled", "--json")
    assert predicted.json()["metrics"]["calibration"] == pytest.approx(1, abs=0.15)
