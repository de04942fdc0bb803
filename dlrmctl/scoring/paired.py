"""Two models on the same rows: differences of their metrics, with what the pairing says about chance.

N examples; A and B are the two models, and every difference is B minus A.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dlrmctl.scoring.metrics import entropy


@dataclass(frozen=True)
class Difference:
    """A metric of both models and its difference.

    Attributes:
        a, b: the metric of each model.
        difference: b - a.
        se: standard error of the difference, from the pairs.
        p: two-sided probability of a difference at least as large if the models were equally good.
    """

    a: float
    b: float
    difference: float
    se: float
    p: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def relative(self) -> tuple[float, float]:
        """The difference and its standard error as shares of `a`."""
        if not self.a:
            return (math.inf if self.difference else 0.0), 0.0
        return self.difference / self.a, self.se / self.a


def relative_rise(found: Mapping[str, Difference]) -> tuple[float, float]:
    """The relative rise of NE and its standard error, from the result of `compare_scores`; of log loss without NE.

    With the labels held fixed the two are equal: NE is log loss over a constant.
    """
    return (found["ne"] if "ne" in found else found["log_loss"]).relative()


def compare_scores(logits_a_N: np.ndarray, logits_b_N: np.ndarray, labels_N: np.ndarray) -> dict[str, Difference]:
    """Differences of "log_loss", and where both labels occur of "ne" and "auc"."""
    labels_N = labels_N.astype(bool)
    losses_a_N, losses_b_N = log_losses(logits_a_N, labels_N), log_losses(logits_b_N, labels_N)
    found = {"log_loss": mean_difference(losses_a_N, losses_b_N)}
    if labels_N.any() and not labels_N.all():
        found["ne"] = ne_difference(losses_a_N, losses_b_N, labels_N)
        found["auc"] = auc_difference(logits_a_N, logits_b_N, labels_N)
    return found


def log_losses(logits_N: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Log loss of every example, float64, in nats."""
    logits_N = logits_N.astype(np.float64)
    return np.logaddexp(0.0, np.where(labels_N, -logits_N, logits_N))


def mean_difference(a_N: np.ndarray, b_N: np.ndarray) -> Difference:
    """The difference of two means over paired values."""
    return _difference(float(a_N.mean()), float(b_N.mean()), _se_of_mean(b_N - a_N))


def ne_difference(losses_a_N: np.ndarray, losses_b_N: np.ndarray, labels_N: np.ndarray) -> Difference:
    """The difference in NE (delta method: both NEs share the base rate of these rows)."""
    rate = float(labels_N.mean())
    base = entropy(rate)
    a, b = float(losses_a_N.mean()) / base, float(losses_b_N.mean()) / base
    slope = -(b - a) * math.log((1 - rate) / rate)
    return _difference(a, b, _se_of_mean((losses_b_N - losses_a_N + slope * labels_N) / base))


def auc_difference(logits_a_N: np.ndarray, logits_b_N: np.ndarray, labels_N: np.ndarray) -> Difference:
    """The difference in AUC; ties count half.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), for the variance of a paired difference.
    """
    a, b = _placements(logits_a_N, labels_N), _placements(logits_b_N, labels_N)
    variance = _se_of_mean((b - a)[labels_N]) ** 2 + _se_of_mean((b - a)[~labels_N]) ** 2
    return _difference(float(a[labels_N].mean()), float(b[labels_N].mean()), math.sqrt(variance))


def _placements(logits_N: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """For each positive the share of negatives below it; for each negative the share of positives above it."""
    _, groups_N, counts = np.unique(logits_N, return_inverse=True, return_counts=True)
    positives = np.bincount(groups_N, weights=labels_N, minlength=len(counts))
    negatives = counts - positives
    below = (np.cumsum(negatives) - negatives / 2) / negatives.sum()
    above = 1 - (np.cumsum(positives) - positives / 2) / positives.sum()
    return np.where(labels_N, below[groups_N], above[groups_N])


def _se_of_mean(values_N: np.ndarray) -> float:
    return float(values_N.std(ddof=1)) / math.sqrt(len(values_N)) if len(values_N) > 1 else 0.0


def _difference(a: float, b: float, se: float) -> Difference:
    difference = b - a
    in_errors = abs(difference) / se if se else math.inf if difference else 0.0
    p = math.erfc(in_errors / math.sqrt(2))
    return Difference(a, b, difference, se, p)
