"""Calibration by decile, and the ROC curve."""

from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.console.pictures import picture
from dlrmctl.console.text import with_error

_CURVE_POINTS = 500


def deciles(logits_N: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Compares predicted probabilities with observed rates in ten equal parts by rising prediction.

    Means and rates are weighted if there are weights; a part without any weight is omitted.

    Returns:
        For each non-empty part: "examples", "predicted" (mean probability), "observed" (fraction of positives), "se"
        (standard error of "observed" if the predictions were right), "calibration" (predicted over observed; None
        without positives).
    """
    order = np.argsort(logits_N, kind="stable")
    probabilities = 1 / (1 + np.exp(-logits_N[order].astype(np.float64)))
    labels = labels_N[order].astype(np.float64)
    weights = np.ones(len(order)) if weights_N is None else weights_N[order].astype(np.float64)
    found = []
    for part in np.array_split(np.arange(len(order)), 10):
        p, w = probabilities[part], weights[part]
        whole = float(w.sum())
        if not whole:
            continue
        predicted, observed = float(w @ p) / whole, float(w @ labels[part]) / whole
        found.append(
            {
                "examples": len(part),
                "predicted": predicted,
                "observed": observed,
                "se": float(np.sqrt((w * w * p * (1 - p)).sum())) / whole,
                "calibration": predicted / observed if observed else None,
            }
        )
    return found


def roc_curve(
    logits_N: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every distinct threshold, from (0, 0) to (1, 1)."""
    _, groups_N = np.unique(-logits_N, return_inverse=True)
    weights = 1.0 if weights_N is None else weights_N.astype(np.float64)
    positives = np.bincount(groups_N, weights=labels_N * weights)
    negatives = np.bincount(groups_N, weights=(1 - labels_N.astype(np.float64)) * weights)
    false, true = np.cumsum(negatives), np.cumsum(positives)
    return np.append(0, false / (false[-1] or 1)), np.append(0, true / (true[-1] or 1))


def draw_calibration_and_roc(
    logits_N: np.ndarray, labels_N: np.ndarray, title: str, out: Path, weights_N: np.ndarray | None = None
) -> None:
    """Draws observed against predicted rates by decile, and the ROC curve with its area."""
    parts = deciles(logits_N, labels_N, weights_N)
    false, true = roc_curve(logits_N, labels_N, weights_N)
    area = float((np.diff(false) * (true[1:] + true[:-1]) / 2).sum())
    shown = np.unique(np.linspace(0, len(false) - 1, _CURVE_POINTS).astype(int))
    predicted, observed = (np.array([part[key] for part in parts]) for key in ("predicted", "observed"))
    errors = 2 * np.array([part["se"] for part in parts])
    with picture(out, width=9, height=4.5) as figure:
        figure.suptitle(title, fontsize="medium")
        left, right = figure.subplots(1, 2)
        top = 1.05 * max(predicted.max(), (observed + errors).max())
        left.plot([0, top], [0, top], color="0.5", linewidth=1, label="perfect calibration")
        left.errorbar(
            predicted,
            observed,
            yerr=[np.minimum(errors, observed), errors],  # rates are not negative
            fmt="o",
            markersize=4,
            capsize=2,
            label="a tenth of the examples\n± 2 standard errors",
        )
        left.set(
            xlim=(0, top), ylim=(0, top), xlabel="predicted probability, mean", ylabel="observed share of positives"
        )
        left.set_title("Calibration by decile of the prediction")
        left.legend()
        right.plot([0, 1], [0, 1], color="0.5", linewidth=1, label="chance, AUC 0.5")
        right.plot(false[shown], true[shown], color="C0", label=f"model, AUC {area:.4f}")
        right.set(xlim=(0, 1), ylim=(0, 1), xlabel="false positive rate", ylabel="true positive rate")
        right.set_title("ROC curve")
        right.set_aspect("equal")
        right.legend(loc="lower right")


def decile_rows(parts: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows for `print_table`."""
    rows = [
        [
            str(number + 1),
            f"{part['examples']:,}",
            f"{part['predicted']:.4f}",
            with_error(part["observed"], part["se"]),
            "-" if part["calibration"] is None else f"{part['calibration']:.3f}",
        ]
        for number, part in enumerate(parts)
    ]
    return ["decile", "examples", "predicted", "observed", "calibration"], rows
