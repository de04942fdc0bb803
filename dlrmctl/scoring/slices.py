"""Metrics by the ids of a feature."""

from typing import Any

import numpy as np

from dlrmctl.console.text import METRICS, number_text, with_error
from dlrmctl.data.source import Source
from dlrmctl.datasets.values import row_names
from dlrmctl.scoring.scores import Scores

SHOWN = 10  # ids with a slice of their own


def slices(scores: Scores, feature: str, source: Source) -> list[dict[str, Any]]:
    """Metrics of the examples of each of the most frequent ids, and of all others together.

    Args:
        scores: scores with the ids of `feature`.
        feature: its name.
        source: data of the scores; a store with a vocabulary names the values of ids.

    Returns:
        For each slice, most frequent first: "slice" (its name), "id" (None for the others), "value" (None if there is
        not exactly one) and the metrics.

    Raises:
        DataError: if a file with values is missing or changed.
    """
    assert scores.ids_N is not None
    ids, counts = np.unique(scores.ids_N, return_counts=True)
    shown = ids[np.argsort(-counts, kind="stable")][:SHOWN]
    rows: list[int] = shown.tolist()
    values = source.features.values_of(feature, rows)
    names = row_names(source.features, feature, rows, values)
    found = [
        {"slice": name, "id": row, "value": value, **_metrics(scores, scores.ids_N == row)}
        for name, row, value in zip(names, rows, values, strict=True)
    ]
    others_N = ~np.isin(scores.ids_N, shown)
    if others_N.any():
        name = f"{len(ids) - len(shown):,} others"
        found.append({"slice": name, "id": None, "value": None, **_metrics(scores, others_N)})
    return found


def _metrics(scores: Scores, chosen_N: np.ndarray) -> dict[str, Any]:
    return scores.metrics(chosen_N).to_dict()


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
    return ["", "examples", *(METRICS[name] for name in ("log_loss", "ne", "auc", "calibration"))], rows
