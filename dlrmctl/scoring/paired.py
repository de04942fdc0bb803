"""Paired comparison of two models on the same rows: differences of metrics and their significance.

N examples; A and B are the two models, and every difference is B minus A. A model may be a setting that was trained
with several seeds; its variance then has two parts, from the rows and from the seeds.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dlrmctl.scoring.groups import auc_of_groups
from dlrmctl.scoring.metrics import entropy


@dataclass(frozen=True)
class Difference:
    """A metric of both models, and its difference.

    Attributes:
        a, b: the metric of each model.
        difference: b - a.
        se: standard error of the difference, from the rows and, with several seeds, from the seeds.
        p: two-sided probability of a difference at least as large if the models were equally good.
        se_seeds: the part of `se` that comes from the seeds; 0 if each side is one run.
    """

    a: float
    b: float
    difference: float
    se: float
    p: float
    se_seeds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def relative(self) -> tuple[float, float]:
        """The difference and its standard error relative to `a`."""
        if not self.a:
            return (math.inf if self.difference else 0.0), 0.0
        return self.difference / self.a, self.se / self.a


def relative_rise(found: Mapping[str, Difference]) -> tuple[float, float]:
    """The relative increase of NE (or log loss without NE) and its standard error, from a result of `compare_scores`.

    Given the labels the two are equal: NE is log loss over a constant.
    """
    return (found["ne"] if "ne" in found else found["log_loss"]).relative()


def compare_scores(
    logits_a_N: np.ndarray,
    logits_b_N: np.ndarray,
    labels_N: np.ndarray,
    weights_N: np.ndarray | None = None,
    groups_N: np.ndarray | None = None,
) -> dict[str, Difference]:
    """Differences of "log_loss" and, if both labels occur, of "ne" and "auc", and "gauc" of groups, of two runs."""
    return compare_seeds([logits_a_N], [logits_b_N], labels_N, weights_N, groups_N)


def compare_seeds(
    logits_a: Iterable[np.ndarray],
    logits_b: Iterable[np.ndarray],
    labels_N: np.ndarray,
    weights_N: np.ndarray | None = None,
    groups_N: np.ndarray | None = None,
) -> dict[str, Difference]:
    """Like `compare_scores`, for two settings that were each trained with one or more seeds.

    The metric of a side is the mean over its seeds. The variance of the difference has two parts. The first, from the
    rows, is the variance of the rows' contributions averaged over the seeds, minus the noise of the seeds in it. The
    second, from the seeds, is s^2 (1/n_a + 1/n_b), where s^2 is the variance between seeds, pooled over both sides and
    including the noise in single rows. p is from Student's t distribution with the degrees of freedom of Welch and
    Satterthwaite. With one seed on each side, only the rows count.

    Args:
        logits_a, logits_b: float [N] of each seed.
        weights_N: of the rows, at least 0; None if all count 1.
        groups_N: int64, the groups of the rows, for "gauc", whose rows are the groups with both labels.

    With weights, a row's contribution is its part of the error of the weighted mean.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), for the contribution of a row to the AUC.
    """
    labels_N = labels_N.astype(bool)
    counts_N = np.ones(len(labels_N)) if weights_N is None else weights_N.astype(np.float64)
    both = bool(counts_N @ labels_N > 0 and counts_N @ ~labels_N > 0)
    rows = _Rows(labels_N, None if weights_N is None else counts_N, groups_N)
    a, b = (_Side.of(logits, rows, with_auc=both) for logits in (logits_a, logits_b))
    variance = _variance_of_rows(a.losses, b.losses)
    found = {"log_loss": _difference(a.losses.means_S, b.losses.means_S, variance)}
    if both:
        # Both NEs share the base rate of these rows, which is random, too (delta method).
        rate = float(counts_N @ labels_N) / float(counts_N.sum())
        base = entropy(rate)
        slope = (a.losses.mean - b.losses.mean) / base * math.log((1 - rate) / rate)
        variance = _variance_of_rows(a.losses, b.losses, slope * _as_errors(labels_N, rows.weights_N)) / base**2
        found["ne"] = _difference(a.losses.means_S / base, b.losses.means_S / base, variance)
        variance = _variance_of_rows(a.positives, b.positives) + _variance_of_rows(a.negatives, b.negatives)
        found["auc"] = _difference(a.positives.means_S, b.positives.means_S, variance)
    if both and groups_N is not None and a.has_groups:
        variance = _variance_of_rows(a.groups, b.groups)
        found["gauc"] = _difference(a.groups.means_S, b.groups.means_S, variance)
    return found


@dataclass(frozen=True)
class _Rows:
    """Labels (bool), weights (float64, None if all are 1) and groups of the rows, if they have them."""

    labels_N: np.ndarray
    weights_N: np.ndarray | None
    groups_N: np.ndarray | None


def _as_errors(values_N: np.ndarray, weights_N: np.ndarray | None) -> np.ndarray:
    """Returns values whose mean is the weighted mean, and whose variance is that of its linear approximation."""
    if weights_N is None:
        return values_N
    shares_N = weights_N * (len(weights_N) / weights_N.sum())
    mean = float(shares_N @ values_N) / len(values_N)
    return shares_N * (values_N - mean) + mean


class _Values:
    """Sums over the seeds of one number per row and seed (S seeds, N rows)."""

    def __init__(self) -> None:
        self.sum_N: np.ndarray | float = 0.0
        self.sum_of_squares = 0.0
        self._means: list[float] = []

    def add(self, values_N: np.ndarray) -> None:
        self.sum_N = self.sum_N + values_N
        self.sum_of_squares += float(values_N @ values_N)
        self._means.append(float(values_N.mean()))

    @property
    def means_S(self) -> np.ndarray:
        """The mean over the rows for each seed."""
        return np.array(self._means)

    @property
    def mean_N(self) -> np.ndarray:
        """The mean over the seeds for each row."""
        return np.asarray(self.sum_N) / len(self._means)

    @property
    def mean(self) -> float:
        return float(self.means_S.mean())

    def noise(self) -> float:
        """Residual sum of squares, with (S - 1)(N - 1) degrees of freedom."""
        mean_N, means_S = self.mean_N, self.means_S
        of_rows = self.sum_of_squares - len(means_S) * float(mean_N @ mean_N)
        return max(0.0, of_rows - len(mean_N) * float(((means_S - means_S.mean()) ** 2).sum()))


@dataclass(frozen=True)
class _Side:
    """The contributions of the rows to each metric of one setting.

    Attributes:
        losses: log losses.
        positives, negatives: for each positive the fraction of negatives below it, and vice versa.
        groups: the AUC of each group with both labels.
    """

    losses: _Values
    positives: _Values
    negatives: _Values
    groups: _Values

    @property
    def has_groups(self) -> bool:
        return bool(len(self.groups.means_S))

    @classmethod
    def of(cls, logits: Iterable[np.ndarray], rows: _Rows, *, with_auc: bool) -> "_Side":
        side = cls(_Values(), _Values(), _Values(), _Values())
        labels_N, weights_N = rows.labels_N, rows.weights_N
        of_positives, of_negatives = (None if weights_N is None else weights_N[w] for w in (labels_N, ~labels_N))
        for logits_N in logits:
            side.losses.add(_as_errors(log_losses(logits_N, labels_N), weights_N))
            if with_auc:
                placements_N = _placements(logits_N, labels_N, weights_N)
                side.positives.add(_as_errors(placements_N[labels_N], of_positives))
                side.negatives.add(_as_errors(placements_N[~labels_N], of_negatives))
            if rows.groups_N is not None:
                found = auc_of_groups(rows.groups_N, logits_N, labels_N, weights_N)
                if len(found.auc_G):
                    side.groups.add(_as_errors(found.auc_G, found.weight_G))
        return side


def _variance_of_rows(a: _Values, b: _Values, shift_N: np.ndarray | float = 0.0) -> float:
    """Variance of the difference of two means that comes from the rows."""
    changes_N = b.mean_N - a.mean_N + shift_N
    if len(changes_N) < 2:
        return 0.0
    seeds_a, seeds_b = len(a.means_S), len(b.means_S)
    variance = float(changes_N.var(ddof=1))
    if freedom := (seeds_a + seeds_b - 2) * (len(changes_N) - 1):
        variance -= (a.noise() + b.noise()) / freedom * (1 / seeds_a + 1 / seeds_b)
    return max(0.0, variance) / len(changes_N)


def _difference(values_a_S: np.ndarray, values_b_S: np.ndarray, of_rows: float) -> Difference:
    """The difference of the means over the seeds.

    Args:
        of_rows: its variance that comes from the rows.
    """
    a, b = float(values_a_S.mean()), float(values_b_S.mean())
    freedom, of_seeds = len(values_a_S) + len(values_b_S) - 2, 0.0
    if freedom:
        squares = float(((values_a_S - a) ** 2).sum() + ((values_b_S - b) ** 2).sum())
        of_seeds = squares / freedom * (1 / len(values_a_S) + 1 / len(values_b_S))
    variance = of_rows + of_seeds
    difference, se = b - a, math.sqrt(variance)
    in_errors = abs(difference) / se if se else math.inf if difference else 0.0
    p = two_sided_p(in_errors, freedom * (variance / of_seeds) ** 2 if of_seeds else math.inf)
    return Difference(a, b, difference, se, p, math.sqrt(of_seeds))


def two_sided_p(t: float, freedom: float) -> float:
    """Probability that the absolute value of Student's t is at least `t`.

    With t = sqrt(freedom) tan(angle), the density is proportional to cos(angle)^(freedom - 1).
    """
    if freedom > 1e4:  # the normal distribution differs by at most 1e-4 of p
        return math.erfc(t / math.sqrt(2))
    nodes, weights = np.polynomial.legendre.leggauss(200)
    start = math.atan(t / math.sqrt(freedom))
    angles = start + (math.pi / 2 - start) * (nodes + 1) / 2
    tail = float(weights @ np.cos(angles) ** (freedom - 1)) * (math.pi / 2 - start) / 2
    whole = math.sqrt(math.pi) * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    return min(1.0, 2 * tail / whole)


def log_losses(logits_N: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Log loss of each example, float64, in nats."""
    logits_N = logits_N.astype(np.float64)
    return np.logaddexp(0.0, np.where(labels_N, -logits_N, logits_N))


def _placements(logits_N: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray | None) -> np.ndarray:
    """For each positive the fraction of negatives below it; for each negative the fraction of positives above it."""
    _, groups_N, counts = np.unique(logits_N, return_inverse=True, return_counts=True)
    if weights_N is None:
        positives = np.bincount(groups_N, weights=labels_N, minlength=len(counts))
        negatives = counts - positives
    else:
        positives, negatives = (
            np.bincount(groups_N, weights=weights_N * which, minlength=len(counts)) for which in (labels_N, ~labels_N)
        )
    below = (np.cumsum(negatives) - negatives / 2) / negatives.sum()
    above = 1 - (np.cumsum(positives) - positives / 2) / positives.sum()
    return np.where(labels_N, below[groups_N], above[groups_N])
