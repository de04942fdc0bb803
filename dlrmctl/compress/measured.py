"""The differences between two models on the examples of a trial, as plain values."""

from typing import Any

import numpy as np

from dlrmctl.compress.trial import Trial
from dlrmctl.paired import compare_scores


def measured(trial: Trial, logits_a_N: np.ndarray, logits_b_N: np.ndarray) -> dict[str, Any]:
    """Differences of two models' metrics on the trial's examples: B minus A."""
    found = compare_scores(logits_a_N, logits_b_N, trial.labels_N)
    values: dict[str, Any] = {name: difference.to_dict() for name, difference in found.items()}
    values["examples"] = len(trial.labels_N)
    if "ne" in found:
        values["ne_increase"] = found["ne"].difference / found["ne"].a
        values["ne_increase_se"] = found["ne"].se / found["ne"].a
    return values
