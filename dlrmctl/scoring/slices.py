"""Metrics for the examples of each id of a feature: where a model is good, and where it is not."""

from typing import Any

import numpy as np
import torch

from dlrmctl.console.text import number_text, with_error
from dlrmctl.data.features.encoders import Vocabulary
from dlrmctl.data.schema import MISSING_ROW, RARE_ROW
from dlrmctl.data.source import Source
from dlrmctl.scoring.metrics import StreamingMetrics
from dlrmctl.scoring.scores import Scores

SHOWN = 10  # ids with a slice of their own


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
    """Headings and rows for `print_table`."""
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
