import math

import numpy as np
import pytest

from dlrmctl.scoring.paired import auc_difference, compare_scores, mean_difference
from tests import reference


def two_models(count: int, seed: int, gain: float = 0.15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of two models that share most of their noise, and labels; scores are rounded, so that there are ties."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=count) - 1
    labels = generator.random(count) < 1 / (1 + np.exp(-truth))
    shared = generator.normal(size=count)
    a = truth + shared + generator.normal(size=count) * 0.5
    b = truth + (1 - gain) * shared + generator.normal(size=count) * 0.5
    return a.round(1), b.round(1), labels


def test_metrics_of_each_model_equal_the_plain_definitions():
    a, b, labels = two_models(400, 0)
    found = compare_scores(a, b, labels)
    for name, logits in (("a", a), ("b", b)):
        probabilities = (1 / (1 + np.exp(-logits))).tolist()
        # float64 sums in another order
        assert getattr(found["log_loss"], name) == pytest.approx(reference.log_loss(probabilities, labels), rel=1e-12)
        assert getattr(found["auc"], name) == pytest.approx(reference.auc(logits.tolist(), labels.tolist()), rel=1e-12)


def test_standard_errors_equal_the_spread_of_the_difference_over_samples():
    samples = [compare_scores(*two_models(500, seed)) for seed in range(400)]
    for name in ("log_loss", "ne", "auc"):
        values = np.array([sample[name].difference for sample in samples])
        claimed = np.mean([sample[name].se for sample in samples])
        # The deviation of 400 samples is itself known to 1 / sqrt(800) = 3.5 %; four of those.
        assert claimed / values.std(ddof=1) == pytest.approx(1, abs=0.14), name


def test_p_is_uniform_where_the_models_are_equally_good():
    small = dict.fromkeys(("log_loss", "ne", "auc"), 0)
    for seed in range(400):
        for name, found in compare_scores(*two_models(500, seed, gain=0.0)).items():
            small[name] += found.p < 0.1
    # Binomial(400, .1) has deviation 6; four of those around 40.
    assert all(abs(count - 40) <= 24 for count in small.values()), small


def test_pairing_sees_what_two_separate_errors_cannot():
    a, b, labels = two_models(4000, 1)
    paired = auc_difference(a, b, labels)
    unpaired = math.hypot(
        auc_difference(a, np.zeros_like(a), labels).se, auc_difference(b, np.zeros_like(b), labels).se
    )
    assert paired.se < 0.6 * unpaired


def test_the_same_model_twice_differs_by_nothing():
    a, _, labels = two_models(300, 2)
    for found in compare_scores(a, a, labels).values():
        assert (found.difference, found.se, found.p) == (0, 0, 1)


def test_one_class_alone_has_no_ne_and_no_auc():
    assert set(compare_scores(np.zeros(5), np.ones(5), np.ones(5, dtype=bool))) == {"log_loss"}


def test_a_constant_difference_is_certain():
    found = mean_difference(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    assert (found.difference, found.se, found.p) == (1, 0, 0)
