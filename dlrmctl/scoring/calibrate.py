"""Fits the calibration of a checkpoint on the validation split (`dlrmctl calibrate`).

N examples, K parameters.
"""

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.console.console import output, print_table
from dlrmctl.console.text import METRICS, with_error
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks, process_group
from dlrmctl.rundir.calibration import Calibration, identity_of
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import OpenedRun, open_run
from dlrmctl.scoring.paired import compare_scores, log_losses
from dlrmctl.scoring.scores import Scores, collect_scores, scoring_display
from dlrmctl.settings.config import Config, resolve

_MOST_STEPS, _MOST_HALVINGS = 100, 60
_CONVERGED = 1e-15  # predicted decrease of the mean log loss, in nats
_SHOWN = ("calibration", "log_loss", "ne")


@dataclass(frozen=True)
class LogitMap:
    """A calibrated logit is `slope * logit + bias`; `_se` are standard errors, 0 for a slope that was not fitted."""

    slope: float
    bias: float
    slope_se: float
    bias_se: float


def fit_map(logits_N: np.ndarray, labels_N: np.ndarray, method: str, weights_N: np.ndarray | None = None) -> LogitMap:
    """Minimizes the log loss of calibrated logits, in float64.

    Args:
        logits_N: finite.
        labels_N: bool.
        method: "platt" fits slope and bias, "bias" only the bias.
        weights_N: at least 0; None if all examples count 1.

    Raises:
        UserError: if there is no minimum, or no positive slope reaches it.

    Source: Platt, "Probabilistic outputs for support vector machines" (1999), without his prior on the labels.
    """
    if weights_N is not None:  # an example of weight 0 counts for nothing
        some_N = weights_N > 0
        logits_N, labels_N, weights_N = logits_N[some_N], labels_N[some_N], weights_N[some_N].astype(np.float64)
    if not len(labels_N):
        raise UserError("the validation split is empty, and the calibration is fitted on it", "pass other data: --data")
    if labels_N.all() or not labels_N.any():
        raise UserError("all validation labels are the same, so no calibration fits best", "pass other data: --data")
    logits_N = logits_N.astype(np.float64)
    ones_N = np.ones_like(logits_N)
    if method == "bias":
        (bias,), covariance_KK = _newton(
            ones_N[:, None], logits_N, labels_N, centre=float(np.median(logits_N)), weights_N=weights_N
        )
        return LogitMap(1.0, float(bias), 0.0, math.sqrt(covariance_KK[0, 0]))
    centre, width = float(logits_N.mean()), float(logits_N.std())
    positives, negatives = logits_N[labels_N], logits_N[~labels_N]
    if not width:
        raise UserError(
            "the model gives all validation rows the same logit, so no slope can be fitted", "--method bias"
        )
    if positives.min() >= negatives.max() or negatives.min() >= positives.max():
        raise UserError(
            "a threshold on the logits separates the validation labels, so the best slope is infinite", "--method bias"
        )
    # Standardized logits: the Hessian is well conditioned whatever their scale.
    standard_N = (logits_N - centre) / width
    (slope, bias), covariance_KK = _newton(
        np.stack([standard_N, ones_N], axis=1), 0 * ones_N, labels_N, centre=0.0, weights_N=weights_N
    )
    if slope <= 0:
        raise UserError(
            "the best slope is not positive: on the validation split, the model ranks no better than chance",
            "--method bias",
        )
    back_KK = np.array([[1 / width, 0.0], [-centre / width, 1.0]])  # parameters of the logits themselves
    slope, bias = back_KK @ [slope, bias]
    slope_se, bias_se = np.sqrt(np.diag(back_KK @ covariance_KK @ back_KK.T))
    return LogitMap(float(slope), float(bias), float(slope_se), float(bias_se))


def _newton(
    inputs_NK: np.ndarray,
    offset_N: np.ndarray,
    labels_N: np.ndarray,
    *,
    centre: float,
    weights_N: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression by Newton's method; the last input is 1.

    Args:
        offset_N: added to the logits `inputs_NK @ parameters_K`.
        centre: a typical offset; the search starts at the base rate there, where no logit is saturated.

    Returns:
        The parameters, and their covariance.
    """
    counts_N = np.ones(len(labels_N)) if weights_N is None else weights_N
    count = float(counts_N.sum())
    rate = float(counts_N @ labels_N) / count
    parameters_K = np.zeros(inputs_NK.shape[1])
    parameters_K[-1] = math.log(rate / (1 - rate)) - centre

    def loss(parameters_K: np.ndarray) -> float:
        return float(counts_N @ log_losses(inputs_NK @ parameters_K + offset_N, labels_N)) / count

    present = loss(parameters_K)
    for _ in range(_MOST_STEPS):
        probabilities_N = _sigmoid(inputs_NK @ parameters_K + offset_N)
        gradient_K = inputs_NK.T @ (counts_N * (probabilities_N - labels_N)) / count
        spreads_N = counts_N * probabilities_N * (1 - probabilities_N)
        hessian_KK = (inputs_NK * spreads_N[:, None]).T @ inputs_NK / count
        step_K = np.linalg.solve(hessian_KK, gradient_K)
        if float(gradient_K @ step_K) <= _CONVERGED:
            parameters_K = parameters_K - step_K  # converges quadratically: this last step is below rounding
            break
        for halving in range(_MOST_HALVINGS):
            tried_K = parameters_K - step_K / 2**halving
            if (lower := loss(tried_K)) < present:
                break
        else:
            break  # no decrease is left in float64
        parameters_K, present = tried_K, lower
    inverse_KK = np.linalg.inv(hessian_KK) / count
    if weights_N is None:
        return parameters_K, inverse_KK
    # The gradient's variance, for labels that are drawn with the fitted probabilities.
    variance_KK = (inputs_NK * (counts_N * spreads_N)[:, None]).T @ inputs_NK
    return parameters_K, inverse_KK @ variance_KK @ inverse_KK


def _sigmoid(logits_N: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -logits_N))


def calibrate_on_rank(settings: dict[str, Any], run: str, **options: Any) -> dict[str, Any]:
    """Joins the process group and calibrates.

    Args:
        settings: see `Config.to_dict`.
        options: further arguments of `calibrate_run`.
    """
    config = resolve(settings, {}, file_name="settings")
    with process_group(config.train.device) as ranks:
        return calibrate_run(config, RunDirectory(Path(run), writes=ranks.is_main), ranks, **options)


def calibrate_run(config: Config, run: RunDirectory, ranks: Ranks, *, checkpoint: str, method: str) -> dict[str, Any]:
    """Fits the calibration of a checkpoint on the validation split, and writes it to the run directory.

    Args:
        run: directory of a run or of a compressed model.
        checkpoint: "best", "last" or "step-N".
        method: "platt" or "bias".

    Returns:
        The map, and for both splits the metrics "before" and "after" and their paired "change"; the same on every rank.

    Raises:
        UserError, DataError: if something is missing or does not fit, or no calibration fits best.
    """

    def scores_of(split: str) -> tuple[OpenedRun, Scores | None]:
        opened = open_run(config, run, ranks, checkpoint=checkpoint, split=split)
        with scoring_display(split, ranks) as tell:
            return opened, collect_scores(opened.model, opened.reader, ranks, tell=tell)

    opened, validation = scores_of("validation")
    offset = opened.features.logit_offset("validation")  # of both splits; the calibration comes before it
    # Before the test split is scored, since it may be refused.
    found = LogitMap(*ranks.from_main(lambda: astuple(_fitted(validation, offset, method))))
    _, test = scores_of("test")
    bias, name = found.bias - offset, opened.checkpoint.name
    result: dict[str, Any] = {
        "run": str(run.path),
        "checkpoint": name,
        "method": method,
        "slope": found.slope,
        "slope_se": found.slope_se,
        "bias": bias,
        "bias_se": found.bias_se,
    }
    result["validation"] = ranks.from_main(lambda: _changed(validation, found, offset))
    result["test"] = ranks.from_main(lambda: _changed(test, found, offset))
    if run.writes:
        Calibration(method, found.slope, bias, name, identity_of(opened.checkpoint)).save(run)
    return result


def _fitted(scores: Scores | None, offset: float, method: str) -> LogitMap:
    assert scores is not None
    return fit_map(scores.logits_N - offset, scores.labels_N, method, scores.weights_N)


def _changed(scores: Scores | None, found: LogitMap, offset: float) -> dict[str, Any]:
    assert scores is not None
    after_N = (found.slope * (scores.logits_N.astype(np.float64) - offset) + found.bias).astype(np.float32)
    return change_of(scores, after_N)


def change_of(before: Scores, after_N: np.ndarray) -> dict[str, Any]:
    """Metrics before and after, with `calibration_se`, and the paired changes of log loss and NE, if defined."""
    counted = len(before.labels_N)
    changes = compare_scores(before.logits_N, after_N, before.labels_N, before.weights_N) if counted else {}
    return {
        "before": _metrics(before),
        "after": _metrics(replace(before, logits_N=after_N)),
        "change": {name: change.to_dict() for name, change in changes.items() if name in _SHOWN},
    }


def _metrics(scores: Scores) -> dict[str, Any]:
    found = scores.metrics().to_dict()
    return found | {"calibration_se": _calibration_se(scores, found["calibration"])}


def _calibration_se(scores: Scores, calibration: float | None) -> float | None:
    """Standard error of predicted over observed positives, by the delta method."""
    if calibration is None:
        return None
    labels_N = scores.labels_N
    off_N = _sigmoid(scores.logits_N.astype(np.float64)) - calibration * labels_N  # their mean is 0
    if scores.weights_N is None:
        return float(off_N.std()) / math.sqrt(len(labels_N)) / float(labels_N.mean())
    weights_N = scores.weights_N.astype(np.float64)
    return float(np.linalg.norm(weights_N * off_N)) / float(weights_N @ labels_N)


def show_calibration(result: Mapping[str, Any]) -> None:
    """Prints the map and the metrics before and after as tables."""
    alone = result["checkpoint"] == Path(result["run"]).name  # a compressed model has no checkpoints
    whose = result["run"] if alone else f"{result['checkpoint']} of {result['run']}"
    slope = f"({with_error(result['slope'], result['slope_se'])}) * " if result["method"] == "platt" else ""
    output.print(f"{whose}: calibrated logit = {slope}logit + ({with_error(result['bias'], result['bias_se'])})")
    for split in ("validation", "test"):
        found = result[split]
        rows = []
        for name in _SHOWN:
            cells = [with_error(found[when][name], found[when][f"{name}_se"]) for when in ("before", "after")]
            change = found["change"].get(name)
            rows.append(
                [METRICS[name], *cells, with_error(change["difference"], change["se"], "+.5f") if change else ""]
            )
        print_table(f"{split} split, {found['before']['examples']:,} examples", ["", "before", "after", "change"], rows)
