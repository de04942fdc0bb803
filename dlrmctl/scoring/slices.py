"""Metrics for the examples of each id of a feature: where a model is good, and where it is not.

Whether predictions mean what they say: observed rates by decile, and a picture of that beside the ROC curve."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlrmctl.console.pictures import picture
from dlrmctl.console.text import number_text, with_error
from dlrmctl.data.features.encoders import Vocabulary
from dlrmctl.data.schema import MISSING_ROW, RARE_ROW
from dlrmctl.data.source import Source
from dlrmctl.scoring.metrics import StreamingMetrics
from dlrmctl.scoring.scores import Scores

SHOWN = 10  # ids with a slice of their own
_CURVE_POINTS = 500


def slices(scores: Scores, feature: str, source: Source) -> list[dict[str, Any]]:
    """Metrics of the examples of each of the most frequent ids, and of all others together.

    Args:
        scores: with the ids of `feature`.
        feature: its name.
        source: of the scores; a store with a vocabulary knows the raw value of an id.

    Returns:
        Per slice "slice" (its name), "id" (None for the others) and the metrics, the most frequent first.
    """
    assert scores.ids_N is not None
    ids, counts = np.unique(scores.ids_N, return_counts=True)
    shown = ids[np.argsort(-counts, kind="stable")][:SHOWN]
    names = _names(feature, source)
    found = [
        {"slice": names(int(row)), "id": int(row), **_metrics(scores, scores.ids_N == row)} for row in shown.tolist()
    ]
    others_N = ~np.isin(scores.ids_N, shown)
    if others_N.any():
        found.append({"slice": f"{len(ids) - len(shown):,} others", "id": None, **_metrics(scores, others_N)})
    return found


def _metrics(scores: Scores, chosen_N: np.ndarray) -> dict[str, Any]:
    metrics = StreamingMetrics(torch.device("cpu"))
    metrics.update(torch.from_numpy(scores.logits_N[chosen_N]), torch.from_numpy(scores.labels_N[chosen_N]).float())
    return metrics.compute().to_dict()


def _names(feature: str, source: Source) -> Any:
    encoder = source.features.encoder(feature)

    def name(row: int) -> str:
        if row == MISSING_ROW:
            return "missing"
        if isinstance(encoder, Vocabulary):
            return "rare" if row == RARE_ROW else f"{int(encoder.values[row - 2]):08x}"
        return f"id {row}"

    return name


def slice_rows(found: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for people."""
    rows = [
        [
            part["slice"],
            f"{part['examples']:,}",
            number_text(part["log_loss"]),
            with_error(part["ne"], part["ne_se"]),
            with_error(part["auc"], part["auc_se"]),
            number_text(part["calibration"]),
        ]
        for part in found
    ]
    return ["", "examples", "log loss", "NE", "AUC", "calibration"], rows


def deciles(logits_N: np.ndarray, labels_N: np.ndarray, parts: int = 10) -> list[dict[str, Any]]:
    """Examples in equal parts by rising prediction: what was predicted, and what was observed.

    Returns:
        Per part that is not empty: "examples", "predicted" (mean probability), "observed" (share of positives), "se"
        (standard error of the observed share, if the predictions were right), "calibration" (predicted over observed;
        None without a positive).
    """
    order = np.argsort(logits_N, kind="stable")
    probabilities = 1 / (1 + np.exp(-logits_N[order].astype(np.float64)))
    labels = labels_N[order].astype(np.float64)
    found = []
    for part in np.array_split(np.arange(len(order)), parts):
        if not len(part):
            continue
        p, observed = probabilities[part], float(labels[part].mean())
        found.append(
            {
                "examples": len(part),
                "predicted": float(p.mean()),
                "observed": observed,
                "se": float(np.sqrt((p * (1 - p)).sum())) / len(part),
                "calibration": float(p.mean()) / observed if observed else None,
            }
        )
    return found


def roc_curve(logits_N: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every different threshold, from (0, 0) to (1, 1)."""
    _, groups_N = np.unique(-logits_N, return_inverse=True)
    positives = np.bincount(groups_N, weights=labels_N)
    negatives = np.bincount(groups_N, weights=1 - labels_N.astype(np.float64))
    false, true = np.cumsum(negatives), np.cumsum(positives)
    return np.append(0, false / max(false[-1], 1)), np.append(0, true / max(true[-1], 1))


def draw_calibration_and_roc(logits_N: np.ndarray, labels_N: np.ndarray, out: Path) -> None:
    """Writes the picture: deciles with two standard errors beside the diagonal, and the ROC curve."""
    parts = deciles(logits_N, labels_N)
    false, true = roc_curve(logits_N, labels_N)
    shown = np.unique(np.linspace(0, len(false) - 1, _CURVE_POINTS).astype(int))
    with picture(out, width=8, height=4) as figure:
        left, right = figure.subplots(1, 2)
        predicted, observed = [part["predicted"] for part in parts], [part["observed"] for part in parts]
        top = 1.05 * max(*predicted, *observed)
        left.plot([0, top], [0, top], color="grey", linewidth=1)
        left.errorbar(predicted, observed, yerr=[2 * part["se"] for part in parts], fmt="o", markersize=4)
        left.set_xlabel("predicted, mean of the decile")
        left.set_ylabel("observed share of positives")
        right.plot([0, 1], [0, 1], color="grey", linewidth=1)
        right.plot(false[shown], true[shown])
        right.set_xlabel("false positive rate")
        right.set_ylabel("true positive rate")
        right.set_aspect("equal")


def decile_rows(parts: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for people."""
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
