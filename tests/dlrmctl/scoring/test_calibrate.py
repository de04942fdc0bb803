"""`dlrmctl calibrate`: the map that fits validation best, kept with the run and applied on request."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dlrmctl.errors import UserError
from dlrmctl.scoring.calibrate import fit_map
from dlrmctl.scoring.paired import log_losses
from tests.dlrmctl.commands import SMALL, in_process

Scores = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def scores() -> Scores:
    """Logits that are 1.5 times too far from -1, and labels."""
    random = np.random.default_rng(0)
    true_N = random.normal(-1, 1, 20_000)
    labels_N = random.random(20_000) < 1 / (1 + np.exp(-true_N))
    return 1.5 * (true_N + 1) - 1, labels_N


@pytest.mark.parametrize("method", ["platt", "bias"])
def test_the_gradient_of_the_log_loss_is_zero_and_neighbours_are_worse(scores: Scores, method: str):
    logits_N, labels_N = scores
    found = fit_map(logits_N, labels_N, method)
    calibrated_N = found.slope * logits_N + found.bias
    errors_N = 1 / (1 + np.exp(-calibrated_N)) - labels_N
    assert abs(errors_N.mean()) < 1e-12  # float64 sums
    best = log_losses(calibrated_N, labels_N).mean()
    for bias in (-1e-4, 1e-4):
        assert log_losses(calibrated_N + bias, labels_N).mean() > best
    if method == "platt":
        assert abs((errors_N * logits_N).mean()) < 1e-12
        assert abs(found.slope - 1 / 1.5) < 4 * found.slope_se
        assert abs(found.bias + 1 / 3) < 4 * found.bias_se
    else:
        assert (found.slope, found.slope_se) == (1, 0)


@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0), (1e4, -3e5), (1, 300)])
def test_logits_of_any_scale_are_calibrated_to_the_same_probabilities(scores: Scores, scale: float, shift: float):
    logits_N, labels_N = scores
    found, moved = fit_map(logits_N, labels_N, "platt"), fit_map(scale * logits_N + shift, labels_N, "platt")
    expected_N = found.slope * logits_N + found.bias
    np.testing.assert_allclose(moved.slope * (scale * logits_N + shift) + moved.bias, expected_N, atol=1e-7)
    assert moved.slope_se * scale == pytest.approx(found.slope_se, rel=1e-6)
    if scale == 1:
        bias = fit_map(logits_N + shift, labels_N, "bias")
        assert bias.bias + shift == pytest.approx(fit_map(logits_N, labels_N, "bias").bias, abs=1e-9)


@pytest.mark.parametrize(
    ("logits", "labels", "method", "message"),
    [
        ([], [], "bias", "empty"),
        ([0, 1, 2], [1, 1, 1], "platt", "all validation labels are the same"),
        ([0, 1, 2], [0, 0, 0], "bias", "all validation labels are the same"),
        ([0, 1, 1, 2], [0, 0, 1, 1], "platt", "infinite"),
        ([0, 1, 1, 2], [1, 1, 0, 0], "platt", "infinite"),
        ([3, 3, 3], [0, 1, 1], "platt", "the same"),
        ([0, 1, 2, 3], [1, 0, 1, 0], "platt", "no better than chance"),
    ],
)
def test_what_has_no_best_map_is_refused(logits: list[float], labels: list[int], method: str, message: str):
    with pytest.raises(UserError, match=message):
        fit_map(np.array(logits, np.float32), np.array(labels, bool), method)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of sampled negatives, and a run on it."""
    directory = tmp_path_factory.mktemp("calibrate")
    assert in_process("data", "synthesize", "--rows", "2100", "-o", directory / "train.txt").status == 0
    store = ["prepare", "criteo", directory / "train.txt", "-o", directory / "store", "--sample-negatives", "0.5"]
    model = [*SMALL[2:], "--batch-size", "64", "--evaluations", "2", "--qr-threshold", "20"]
    for arguments in (store, ["train", *model, "--data", directory / "store", "--run-dir", directory / "run"]):
        done = in_process(*arguments)
        assert done.status == 0, done.err
    return directory


def _test_metrics(run: Path, *arguments: str) -> dict[str, float]:
    done = in_process("evaluate", run, "--json", *arguments)
    assert done.status == 0, done.err
    return done.json()["test"]


def test_every_command_applies_the_calibration_on_request(place: Path):
    before = _test_metrics(place / "run")
    assert "not calibrated" in in_process("evaluate", place / "run", "--calibrated").err
    done = in_process("calibrate", place / "run", "--json")
    assert done.status == 0, done.err
    found = done.json()
    assert found["validation"]["after"]["calibration"] == pytest.approx(1, abs=1e-6)  # float32 logits
    assert found["validation"]["change"]["log_loss"]["difference"] < 0
    assert found["test"]["before"]["log_loss"] == pytest.approx(before["log_loss"], rel=1e-9)
    assert _test_metrics(place / "run") == before  # unless requested
    after = _test_metrics(place / "run", "--calibrated")
    assert after["log_loss"] == pytest.approx(found["test"]["after"]["log_loss"], rel=1e-6)  # float32 logits
    assert after["auc"] == pytest.approx(before["auc"], abs=1e-4)  # ties by rounding

    (place / "new.tsv").write_text(
        "".join((place / "train.txt").read_text().splitlines(keepends=True)[-before["examples"] :])
    )
    predict = (
        "predict",
        place / "run",
        place / "new.tsv",
        "-o",
        place / "scored.parquet",
        "--labelled",
        "--calibrated",
    )
    assert in_process(*predict, "--json").json()["metrics"] == after
    text = in_process("calibrate", place / "run", "--method", "bias").out
    assert "calibrated logit = logit + (" in text
    assert "test split, 150 examples" in text


def test_a_calibration_of_other_weights_is_refused(place: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run, symlinks=True)
    assert in_process("calibrate", run, "--checkpoint", "last").status == 0
    steps = sorted((path.name for path in run.glob("checkpoints/step-*")), key=lambda name: int(name[5:]))
    done = in_process("evaluate", run, "--calibrated", "--checkpoint", steps[0])
    assert done.status == 2
    assert f"was fitted to {steps[-1]}, not to {steps[0]}" in done.err
    file = run / "calibration.json"
    file.write_text(file.read_text().replace('"weights": "', '"weights": "0'))
    done = in_process(
        "predict", run, place / "train.txt", "-o", tmp_path / "p.csv", "--calibrated", "--checkpoint", "last"
    )
    assert f"was fitted to an earlier {steps[-1]}" in done.err
    file.write_text("{}")
    assert "damaged" in in_process("evaluate", run, "--calibrated").err


def test_a_compressed_model_has_a_calibration_of_its_own(place: Path, tmp_path: Path):
    small = tmp_path / "small"
    done = in_process("compress-embeddings", place / "run", "-o", small, "--method", "int4")
    assert done.status == 0, done.err
    done = in_process("calibrate", small, "--json")
    assert done.status == 0, done.err
    found = done.json()
    after = _test_metrics(small, "--calibrated")
    assert after["log_loss"] == pytest.approx(found["test"]["after"]["log_loss"], rel=1e-6)  # float32 logits
    assert (small / "calibration.json").exists()
