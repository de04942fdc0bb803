"""Weights of examples, and gAUC, in metrics and comparisons."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dlrmctl.scoring.auc import StreamingAuc
from dlrmctl.scoring.calibrate import fit_map
from dlrmctl.scoring.groups import StreamingGroupAuc
from dlrmctl.scoring.metrics import Metrics, StreamingMetrics
from dlrmctl.scoring.paired import compare_scores
from tests import reference
from tests.ranks import run_ranks

CPU = torch.device("cpu")
ERRORS = ("log_loss_se", "ne_se", "auc_se")


def _rows(count: int = 600, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=count) - 1).round(1).astype(np.float32)  # there are ties
    labels = rng.random(count) < 1 / (1 + np.exp(-logits))
    groups = rng.integers(-1, 40, count)
    return {"logits": logits, "labels": labels, "weights": rng.integers(0, 4, count), "groups": groups}


def _metrics(rows: dict[str, np.ndarray], *, weighted: bool = False, grouped: bool = False, **limits: int) -> Metrics:
    metrics = StreamingMetrics(CPU, weighted=weighted, grouped=grouped)
    metrics.auc = StreamingAuc(CPU, weighted=weighted, **limits)
    for part in np.array_split(np.arange(len(rows["labels"])), 5):
        metrics.update(
            torch.from_numpy(rows["logits"][part]),
            torch.from_numpy(rows["labels"][part]).float(),
            torch.from_numpy(rows["weights"][part]).float() if weighted else None,
            torch.from_numpy(rows["groups"][part]) if grouped else None,
        )
    return metrics.compute()


def test_a_row_of_weight_3_scores_like_three_rows():
    rows = _rows()
    repeated = {name: np.repeat(values, rows["weights"]) for name, values in rows.items()}
    found, expected = _metrics(rows, weighted=True, grouped=True), _metrics(repeated, grouped=True)
    assert found.examples == 600
    assert found.weight == expected.examples
    for name in ("log_loss", "ne", "auc", "calibration", "accuracy", "base_rate", "gauc"):
        # float64 sums in another order
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12), name
    assert found.groups == expected.groups
    changed = {**rows, "logits": rows["logits"] * np.float32(0.8)}
    there, twice = (
        compare_scores(r["logits"], r["logits"] * np.float32(0.8), r["labels"], w, r["groups"])
        for r, w in ((rows, rows["weights"]), (repeated, None))
    )
    assert changed["logits"].dtype == np.float32
    for name in ("log_loss", "ne", "auc", "gauc"):
        assert there[name].difference == pytest.approx(twice[name].difference, rel=1e-9, abs=1e-12), name
    fitted, again = (
        fit_map(r["logits"], r["labels"], "platt", w) for r, w in ((rows, rows["weights"]), (repeated, None))
    )
    assert (fitted.slope, fitted.bias) == pytest.approx((again.slope, again.bias), rel=1e-9)


@pytest.mark.parametrize("limits", [{}, {"exact_scores": 64, "intervals": 4096}])
def test_equal_weights_of_any_size_change_no_metric_and_no_standard_error(limits: dict[str, int]):
    rows = _rows()
    plain, heavy = _metrics(rows), _metrics({**rows, "weights": np.full(600, 7)}, weighted=True, **limits)
    for name in ("log_loss", "ne", "auc", "calibration", *ERRORS):
        assert getattr(heavy, name) == pytest.approx(getattr(plain, name), rel=1e-9), name
    sevens = np.full(600, 7.0)
    b_N = rows["logits"] * np.float32(0.5) + 1
    one, many = (compare_scores(rows["logits"], b_N, rows["labels"], w) for w in (None, sevens))
    for name, found in one.items():
        assert (many[name].se, many[name].p) == pytest.approx((found.se, found.p), rel=1e-9), name
    fitted, again = (fit_map(rows["logits"], rows["labels"], "platt", w) for w in (None, sevens))
    assert (fitted.slope_se, fitted.bias_se) == pytest.approx((again.slope_se, again.bias_se), rel=1e-6)


def test_standard_errors_with_weights_equal_the_spread_over_samples():
    samples = [_metrics(_rows(seed=seed), weighted=True, grouped=True) for seed in range(300)]
    for name, error in (("log_loss", "log_loss_se"), ("ne", "ne_se"), ("auc", "auc_se"), ("gauc", "gauc_se")):
        spread = np.std([getattr(sample, name) for sample in samples], ddof=1)
        # The spread of 300 samples is known to 1 / sqrt(600) = 4 %; three times that.
        assert np.mean([getattr(sample, error) for sample in samples]) == pytest.approx(spread, rel=0.13), name


def test_gauc_is_the_mean_auc_of_the_groups_by_their_rows():
    rows = _rows()
    total = weight = number = 0
    for group in range(40):
        mine = rows["groups"] == group
        scores, truth = rows["logits"][mine].tolist(), rows["labels"][mine].astype(float).tolist()
        if 0 < sum(truth) < len(truth):
            total, weight, number = total + len(truth) * reference.auc(scores, truth), weight + len(truth), number + 1
    found = _metrics(rows, grouped=True)
    assert found.gauc == pytest.approx(total / weight, rel=1e-12)
    assert found.groups == number
    one_class = _metrics({**rows, "labels": np.ones(600, bool)}, grouped=True).to_dict()
    assert (one_class["gauc"], one_class["groups"]) == (None, 0)


def test_many_scores_are_sampled_by_group():
    rng = np.random.default_rng(1)
    groups = rng.integers(-(2**63), 2**63 - 1, 3000)[rng.integers(0, 3000, 60_000)]
    scores, labels = rng.normal(size=60_000).astype(np.float32), rng.random(60_000) < 0.3
    whole, sampled = StreamingGroupAuc(CPU), StreamingGroupAuc(CPU, most_scores=20_000)
    for part in np.array_split(np.arange(60_000), 20):
        columns = [torch.from_numpy(column[part]) for column in (scores, labels.astype(np.float32), groups)]
        whole.update(*columns, None)
        sampled.update(*columns, None)
    assert sampled._size <= 20_000
    everyone, some = whole.compute(), sampled.compute()
    assert some.groups < 0.4 * everyone.groups
    assert some.value == pytest.approx(everyone.value, abs=4 * some.se)


def _on_rank(weighted: bool, most_scores: int) -> dict[str, float]:
    rank, rows = dist.get_rank(), _rows()
    mine = slice(0, 450) if rank == 0 else slice(450, 600)
    metrics = StreamingMetrics(CPU, dist.get_world_size(), weighted=weighted, grouped=True)
    metrics.groups = StreamingGroupAuc(CPU, dist.get_world_size(), most_scores=most_scores)
    columns = [torch.from_numpy(rows[name][mine]) for name in ("logits", "labels", "weights", "groups")]
    metrics.update(columns[0], columns[1].float(), columns[2].float() if weighted else None, columns[3])
    return metrics.compute(dist.group.WORLD).to_dict()


@pytest.mark.parametrize("weighted", [False, True])
def test_two_ranks_find_what_one_finds(weighted: bool):
    both = run_ranks(_on_rank, 2, weighted, 1 << 20)
    assert both[0] == both[1]
    # float64 sums in another order
    assert both[0] == pytest.approx(_metrics(_rows(), weighted=weighted, grouped=True).to_dict(), rel=1e-12)
