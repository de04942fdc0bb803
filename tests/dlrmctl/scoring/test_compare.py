"""`dlrmctl compare` and `dlrmctl evaluate` by slice and decile, on trained runs."""

from pathlib import Path

import numpy as np
import pytest

from dlrmctl.scoring.auc import StreamingAuc
from dlrmctl.scoring.calibration import deciles, roc_curve
from tests.dlrmctl.commands import SMALL, in_process, run_as_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compare")
    for name, rate in (("good", "0.1"), ("poor", "0")):
        done = in_process(
            *(
                "train",
                *SMALL,
                "--synthetic-rows",
                30_000,
                "--sparse-lr",
                rate,
                "--qr-lr",
                rate,
                "--evaluations",
                1,
                "--no-wide",
            ),
            *("--run-dir", directory / name),
        )
        assert done.status == 0, done.err
    return directory


def test_the_better_run_is_said_to_be_better_with_the_metrics_of_evaluate(runs: Path):
    result = in_process("compare", runs / "good", runs / "poor", "--json").json()
    for side, name in (("a", "good"), ("b", "poor")):
        evaluated = in_process("evaluate", runs / name, "--json").json()["test"]
        for metric in ("log_loss", "ne", "auc"):
            # float64 sums in another order
            assert result[metric][side] == pytest.approx(evaluated[metric], rel=1e-12)
    assert result["ne"]["difference"] > 0
    assert result["ne"]["p"] < 1e-6
    text = in_process("compare", runs / "good", runs / "poor").out
    assert "NE: A is better by" in text
    assert "AUC: A is better by" in text


def test_a_run_compared_with_itself_is_said_to_be_identical(runs: Path):
    done = in_process("compare", runs / "good", runs / "good")
    assert done.out.splitlines()[-1] == "the scores are identical"
    assert "chance" not in done.out
    assert in_process("compare", runs / "good", runs / "good", "--json").json()["identical"] is True
    assert in_process("compare", runs / "good", runs / "poor", "--json").json()["identical"] is False


def test_two_ranks_compare_as_one(runs: Path):
    alone = in_process("compare", runs / "good", runs / "poor", "--json").json()
    done = run_as_ranks(2, "compare", runs / "good", runs / "poor", "--json", cwd=runs)
    assert done.status == 0, done.err
    together = done.json()
    assert together["examples"] == alone["examples"]
    for metric in ("log_loss", "ne", "auc"):
        # float32 logits of tables looked up on two ranks: pooled sums in another order
        assert together[metric]["difference"] == pytest.approx(alone[metric]["difference"], rel=1e-5)


def test_slices_and_deciles_add_up_to_the_whole(runs: Path, tmp_path: Path):
    picture = tmp_path / "calibration.png"
    arguments = ["evaluate", runs / "good", "--slice", "cat_9", "--deciles", "--plot", picture]
    result = in_process(*arguments, "--json").json()
    whole = result["test"]
    for parts in (result["slices"], result["deciles"]):
        assert sum(part["examples"] for part in parts) == whole["examples"]
    loss = sum(part["log_loss"] * part["examples"] for part in result["slices"]) / whole["examples"]
    assert loss == pytest.approx(whole["log_loss"], rel=1e-12)  # float64 sums in another order
    assert [part["predicted"] for part in result["deciles"]] == sorted(p["predicted"] for p in result["deciles"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert whole == in_process("evaluate", runs / "good", "--json").json()["test"]
    text = in_process(*arguments).out
    assert "by cat_9" in text
    assert "± is the standard error of observed" in text
    assert "missing" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Said before the checkpoint is loaded.
        (["evaluate", "good", "--slice", "cat_99", "--checkpoint", "step-7"], "no sparse feature 'cat_99'"),
        (["evaluate", "good", "--slice", "cat99"], "did you mean 'cat_9'?"),
        (
            ["evaluate", "good", "--slice", "int_1"],
            "int_1 is a dense feature; slices need a sparse one",
        ),
        (["evaluate", "good", "--plot", "roc.gif"], "must end in .png or .svg"),
        (["compare", "good", "nowhere"], "nowhere: no such run directory"),
        (["compare", "good", "poor", "--checkpoint", "step-7"], "has no checkpoint 'step-7'"),
        (["compare", "good", "poor", "--split", "tset"], "--split = 'tset' must be one of"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    runs: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    monkeypatch.chdir(runs)
    done = in_process(*arguments)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("error: ") == 1


def test_predictions_that_are_right_lie_on_the_diagonal():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=200_000) - 1
    labels = generator.random(200_000) < 1 / (1 + np.exp(-logits))
    for part in deciles(logits, labels):
        # 4 standard errors; ten parts exceed it once in 1,500 seeds, and the seed is fixed.
        assert abs(part["predicted"] - part["observed"]) < 4 * part["se"]


def test_the_area_under_the_roc_curve_is_the_auc():
    import torch

    generator = np.random.default_rng(1)
    logits = (generator.normal(size=5_000)).round(1)
    labels = generator.random(5_000) < 1 / (1 + np.exp(-logits))
    false, true = roc_curve(logits, labels)
    single = StreamingAuc(torch.device("cpu"))
    single.update(torch.from_numpy(logits), torch.from_numpy(labels))
    area = np.diff(false) @ (true[1:] + true[:-1]) / 2
    assert area == pytest.approx(single.compute().value, rel=1e-12)  # float64 sums in another order
