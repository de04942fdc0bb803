import math

import numpy as np
import pytest

from dlrmctl.scoring.paired import compare_scores, compare_seeds, two_sided_p
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
    paired = compare_scores(a, b, labels)["auc"]
    constant = np.zeros_like(a)
    unpaired = math.hypot(*(compare_scores(model, constant, labels)["auc"].se for model in (a, b)))
    assert paired.se < 0.6 * unpaired


def test_the_same_model_twice_differs_by_nothing():
    a, _, labels = two_models(300, 2)
    for found in compare_scores(a, a, labels).values():
        assert (found.difference, found.se, found.p) == (0, 0, 1)


def test_one_class_alone_has_no_ne_and_no_auc():
    assert set(compare_scores(np.zeros(5), np.ones(5), np.ones(5, dtype=bool))) == {"log_loss"}


def seeds_of_two_settings(
    number: int, *, seeds: int, wobble: float = 0.05, noise: float = 0.3, gain: float = 0.0, rows: int = 400
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Logits of two settings with several seeds: a seed shifts all logits, and each by noise of its own."""
    generator = np.random.default_rng(number)
    truth = generator.normal(size=rows) - 1
    labels = generator.random(rows) < 1 / (1 + np.exp(-truth))
    shared = generator.normal(size=rows)

    def side(gain: float) -> list[np.ndarray]:
        return [
            truth + (1 - gain) * shared + generator.normal(scale=wobble) + generator.normal(scale=noise, size=rows)
            for _ in range(seeds)
        ]

    return side(0.0), side(gain), labels


@pytest.mark.parametrize("wobble", [0.0, 0.2])
def test_p_is_uniform_for_retrained_models_of_one_setting(wobble: float):
    small = dict.fromkeys(("log_loss", "ne", "auc"), 0)
    for number in range(400):
        for name, found in compare_seeds(*seeds_of_two_settings(number, seeds=3, wobble=wobble)).items():
            small[name] += found.p < 0.1
    # Binomial(400, .1) has deviation 6; four of those around 40.
    assert all(abs(count - 40) <= 24 for count in small.values()), small


def test_rows_alone_call_two_seeds_different_too_often():
    """What `compare` of single runs cannot know, and why it says so."""
    small = 0
    for number in range(400):
        a, b, labels = seeds_of_two_settings(number, seeds=1, wobble=0.2, rows=2000)
        small += compare_scores(a[0], b[0], labels)["log_loss"].p < 0.1
    assert small > 80  # twice the 40 that chance allows


def test_standard_errors_over_seeds_equal_the_spread_over_samples_of_rows_and_seeds():
    samples = [compare_seeds(*seeds_of_two_settings(number, seeds=3, gain=0.5)) for number in range(400)]
    for name in ("log_loss", "ne", "auc"):
        values = np.array([sample[name].difference for sample in samples])
        claimed = math.sqrt(np.mean([sample[name].se ** 2 for sample in samples]))
        # The deviation of 400 samples is itself known to 1 / sqrt(800) = 3.5 %; four of those.
        assert claimed / values.std(ddof=1) == pytest.approx(1, abs=0.14), name
        assert 0 < samples[0][name].se_seeds < samples[0][name].se


def test_one_seed_of_each_is_a_comparison_of_two_runs():
    a, b, labels = two_models(300, 5)
    assert compare_seeds([a], [b], labels) == compare_scores(a, b, labels)
    assert all(found.se_seeds == 0 for found in compare_scores(a, b, labels).values())


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [
        (12.7062, 1, 0.05),  # tables of Student's distribution
        (4.30265, 2, 0.05),
        (2.306, 8, 0.05),
        (3.35539, 8, 0.01),
        (1.95996, 1e9, 0.05),
        (1.0, 1, 0.5),
        (0.0, 3, 1.0),
    ],
)
def test_students_distribution_equals_its_tables(t: float, freedom: float, p: float):
    assert two_sided_p(t, freedom) == pytest.approx(p, rel=1e-4)  # the tables' digits
