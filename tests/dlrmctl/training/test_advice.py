"""One line after a training where its numbers call for it, the most important first, and none where they do not."""

from typing import Any

import pytest

from dlrmctl.settings.config import Config
from dlrmctl.training.advice import advice


def _results(**changes: Any) -> dict[str, Any]:
    validation = {"examples": 10_000, "base_rate": 0.25, "ne": 0.85, "log_loss": 0.47, "calibration": 1.01}
    values = {"steps": 500, "best_step": 400, **changes}
    return {**{k: v for k, v in values.items() if k not in validation}, "validation": validation | changes}


@pytest.mark.parametrize(
    ("changes", "last_ne", "words"),
    [
        ({}, 0.86, None),
        ({"ne": 1.02}, 1.02, "no better than a constant prediction; try smaller --dense-lr"),
        (
            {"ne": 1.02, "base_rate": 0.0012},
            1.02,
            "but that split has only 12 examples of the rarer label; use more rows",
        ),
        ({"ne": 1.02, "base_rate": 0.9988}, 1.02, "but that split has only 12 examples of the rarer label"),
        ({"ne": 1.02, "base_rate": 0.003}, 1.02, "try smaller --dense-lr"),
        ({"ne": 1.02, "steps": 20}, 1.02, "constant prediction: only 20 steps were taken; use a smaller --batch-size"),
        ({}, 1.3, None),  # with --epochs auto, a run ends past its best
        ({"steps": 53, "best_step": 53}, 0.85, "only 53 steps"),
        ({"baseline": "runs/b", "baseline_ne": 0.84}, 0.86, "is above 0.8400, that of the logistic regression runs/b"),
        ({"baseline": "runs/b", "baseline_ne": 0.86}, 0.86, None),
        ({"calibration": 1.5}, 0.86, "1.50 times the observed rate"),
        # Few clicks: chance alone moves it so far.
        ({"calibration": 1.5, "examples": 100}, 0.86, None),
        ({"ne": None, "calibration": None, "base_rate": 0.0}, None, None),
        ({"calibration": 1.5}, 0.86, "observed rate; `dlrmctl calibrate` corrects that"),
    ],
)
def test_what_stands_out_is_said(changes: dict[str, Any], last_ne: float | None, words: str | None):
    found = advice(Config.of(path="store"), _results(**changes), last_ne=last_ne)
    assert (found is None) if words is None else (words in str(found))


def test_a_rise_of_ne_within_the_given_epochs_calls_for_smaller_rates():
    found = advice(Config.of(path="store", epochs=2), _results(), last_ne=1.3)
    assert "rose from 0.8500 at step 400 to 1.3000; try smaller --dense-lr" in str(found)


def test_dead_units_are_told():
    found = advice(Config.of(path="store"), _results(), last_ne=0.86, dead_units=0.6875)
    assert "69% of the units" in str(found)


def test_what_ended_the_run_is_what_to_raise_if_the_last_evaluation_was_the_best():
    at_the_end = _results(best_step=500)
    for settings, words in (
        ({"path": "store", "epochs": 2}, "more --epochs"),
        ({"path": "store", "max_steps": 500}, "more --max-steps"),
        ({"path": "store", "epochs": 2, "max_steps": 500}, "more --max-steps"),
        ({"path": "store", "max_steps": 900}, "after 30 epochs; try a larger --dense-lr"),
        ({"path": "store"}, "after 30 epochs; try a larger --dense-lr"),
        ({"dataset": "synthetic"}, "None"),
    ):
        assert words in str(advice(Config.of(**settings), at_the_end, last_ne=0.85))
        assert advice(Config.of(**settings), _results(), last_ne=0.86) is None
        nothing_left = _results(best_step=500, ne=1e-5)
        assert advice(Config.of(**settings), nothing_left, last_ne=1e-5) is None


def test_more_epochs_are_advised_only_where_their_number_was_given():
    few = _results(steps=37, best_step=23)
    assert "or more --epochs" in str(advice(Config.of(path="store", epochs=2), few, last_ne=0.86))
    assert "epochs" not in str(advice(Config.of(path="store"), few, last_ne=0.86))
    assert "use more --max-steps" in str(advice(Config.of(path="store", max_steps=37), few, last_ne=0.86))


def test_inputs_that_are_not_normalized_are_named_where_the_model_is_poor():
    config = Config.of(path="store", dense_inputs="raw")
    assert "try --dense-inputs quantile" in str(advice(config, _results(ne=4.9), last_ne=4.9, normalized=False))
    assert advice(config, _results(), last_ne=0.86, normalized=False) is None


def test_a_rate_that_training_does_not_have_is_named_where_it_explains_the_calibration():
    store = Config.of(path="store")
    off, poor = _results(calibration=0.48), _results(calibration=0.48, ne=1.13)
    other = "0.48 times the observed rate: 25 % of its labels are 1, and 12 % in training"
    assert other in str(advice(store, off, last_ne=0.86, train_rate=0.12))
    assert f"constant prediction: predictions on the validation split average {other}" in str(
        advice(store, poor, last_ne=1.13, train_rate=0.12)
    )
    assert "in training" not in str(advice(store, off, last_ne=0.86, train_rate=0.25))
    assert "try smaller --dense-lr" in str(advice(store, poor, last_ne=1.13, train_rate=0.25))
    assert advice(store, _results(), last_ne=0.86, train_rate=0.12) is None  # the model follows the rate
