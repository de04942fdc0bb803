"""One line after a training where its numbers call for a change of settings."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from dlrmctl.settings.config import MOST_EPOCHS, Config

FEWEST_STEPS = 100
_FEWEST_OF_A_LABEL = 20  # examples, with which NE is mostly chance
_LEAST_NE = 0.001  # below, no further training can gain much
_ROSE = 0.05  # of NE, above the best: more than an evaluation wavers
_FAR = 0.1  # calibration this far from 1 is worth a look,
_ERRORS = 4.0  # if the number of clicks cannot explain it


def advice(
    config: Config,
    results: Mapping[str, Any],
    *,
    last_ne: float | None,
    dead_units: float = 0.0,
    normalized: bool = True,
    train_rate: float | None = None,
) -> str | None:
    """What to try next, most important first; None if nothing stands out.

    Args:
        results: of the run, as `run_training` gives them.
        last_ne: of the last evaluation on the validation split.
        dead_units: share of the units of the bottom MLP's last layer that no example activates.
        normalized: whether dense features are, if there are any.
        train_rate: share of label 1 in the training split; None if it is not known.
    """
    found = results["validation"]
    ne, steps = found.get("ne"), results["steps"]
    ends_past_its_best = config.train.epochs is None  # with --epochs auto
    cut = config.train.max_steps == steps
    more = "" if ends_past_its_best else ", or more --epochs"
    few = f"only {steps:,} steps were taken; use {'more --max-steps' if cut else f'a smaller --batch-size{more}'}"
    if ne is not None and ne >= 1:
        poor = f"validation NE {ne:.4f} is no better than a constant prediction"
        rate = found["base_rate"]
        rarer = round(found["examples"] * min(rate, 1 - rate))
        if rarer < _FEWEST_OF_A_LABEL:
            return f"{poor}, but that split has only {rarer} examples of the rarer label; use more rows"
        if (off := _calibration(found, train_rate)) and off.rates_differ:
            return f"{poor}: {off.text}"
        if not normalized:
            return f"{poor}; dense features are not normalized: try --dense-inputs quantile"
        if steps < FEWEST_STEPS:
            return f"{poor}: {few}"
        return f"{poor}; try smaller --dense-lr and --sparse-lr, and check labels and columns with `dlrmctl data show`"
    if ne is not None and last_ne is not None and last_ne > ne + _ROSE and not ends_past_its_best:
        return (
            f"validation NE rose from {ne:.4f} at step {results['best_step']:,} to {last_ne:.4f}; "
            "try smaller --dense-lr and --sparse-lr"
        )
    if steps < FEWEST_STEPS:
        return few
    baseline = found.get("baseline_ne")
    if ne is not None and baseline is not None and ne > baseline:
        return (
            f"validation NE {ne:.4f} is above {baseline:.4f}, that of the logistic regression {results['baseline']}; "
            "try a smaller --batch-size, or other --dense-lr and --sparse-lr"
        )
    if dead_units > 0.5:
        return (
            f"{dead_units:.0%} of the units of the bottom MLP's last layer are dead; "
            "try more --warmup-steps or a smaller --dense-lr"
        )
    if off := _calibration(found, train_rate):
        return off.text
    if results["best_step"] == steps and (ne is None or ne > _LEAST_NE):
        best = "the last evaluation was the best"
        if cut:
            return f"{best}; more --max-steps may improve the model"
        if config.train.epochs is None:
            return f"{best} after {MOST_EPOCHS} epochs; try a larger --dense-lr and --sparse-lr, or more --epochs"
        if "epochs" not in config.derived:
            return f"{best}; more --epochs may improve the model, or --epochs auto"
    return None


class _Off(NamedTuple):
    """Predictions that are far from the observed rate, and whether another rate in training explains it."""

    text: str
    rates_differ: bool


def _calibration(found: Mapping[str, Any], train_rate: float | None) -> _Off | None:
    """Returns None if predictions are near the observed rate, or if chance explains the difference."""
    calibration, rate = found.get("calibration"), found.get("base_rate") or 0.0
    clicks = found["examples"] * rate
    if calibration is None or not clicks:
        return None
    far = max(_FAR, _ERRORS / math.sqrt(clicks))
    if abs(calibration - 1) <= far:
        return None
    text = f"predictions on the validation split average {calibration:.2f} times the observed rate"
    if train_rate is not None and abs(train_rate / rate - 1) > far:
        text = f"{text}: {100 * rate:.3g} % of its labels are 1, and {100 * train_rate:.3g} % in training"
        return _Off(f"{text}; `dlrmctl calibrate` fits the model to it", rates_differ=True)
    return _Off(f"{text}; `dlrmctl calibrate` corrects that", rates_differ=False)
