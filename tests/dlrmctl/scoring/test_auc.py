"""The AUC against its definition, on one rank and on two, exact and bounded."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dlrmctl.scoring.auc import Auc, StreamingAuc
from tests import reference
from tests.ranks import run_ranks

CPU = torch.device("cpu")
ROWS = 200_000
SCORES = {
    "usual": lambda normal: normal - 1,
    "hardly varying": lambda normal: 0.001 * normal - 3,
    "around +20": lambda normal: normal + 20,
    "hardly varying around +20": lambda normal: 0.001 * normal + 20,
    "around -90": lambda normal: normal - 90,
    "of few values": lambda normal: normal.round(),
    "one value": lambda normal: 0 * normal,
    "of both zeros and denormal ones": lambda normal: np.where(np.abs(normal) < 1, normal * 0, normal * 1e-41),
    "one value in half of them": lambda normal: np.where(normal < 0, -0.5, normal),
    "of heavy tails": lambda normal: normal**7,
}


def _rows(kind: str, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    normal = generator.normal(size=rows)
    labels = generator.random(rows) < 1 / (1 + np.exp(1 - normal))
    return SCORES[kind](normal).astype(np.float32), labels


def _plain(scores_N: np.ndarray, labels_N: np.ndarray) -> tuple[float, float]:
    """AUC by mean ranks of the positives, and its standard error by placements (DeLong)."""
    values, groups_N, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    positives = np.bincount(groups_N[labels_N], minlength=len(values))
    negatives = counts - positives
    below = (np.cumsum(negatives) - negatives / 2) / negatives.sum()
    above = 1 - (np.cumsum(positives) - positives / 2) / positives.sum()
    variance = 0.0
    for placements in (below[groups_N[labels_N]], above[groups_N[~labels_N]]):
        variance += placements.var(ddof=1) / len(placements)
    return float(below[groups_N[labels_N]].mean()), math.sqrt(variance)


def _streamed(scores_N: np.ndarray, labels_N: np.ndarray, ranks: int = 1, **limits: int) -> StreamingAuc:
    streaming = StreamingAuc(CPU, ranks, **limits)
    for start in range(0, len(scores_N), 4096):
        rows = slice(start, start + 4096)
        streaming.update(torch.from_numpy(scores_N[rows]), torch.from_numpy(labels_N[rows]).float())
    return streaming


@pytest.mark.parametrize("kind", SCORES)
def test_the_auc_is_exact_however_the_scores_are_spread(kind: str):
    scores_N, labels_N = _rows(kind)
    found = _streamed(scores_N, labels_N).compute()
    value, se = _plain(scores_N, labels_N)
    # float64 means of 200,000 placements
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.se == pytest.approx(se, rel=1e-9)
    assert found.bound == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_auc_is_the_share_of_pairs_in_the_right_order(seed: int):
    generator = np.random.default_rng(seed)
    rows = int(generator.integers(2, 300))
    scores_N = generator.normal(size=rows).round(int(generator.integers(0, 3))).astype(np.float32)
    labels_N = generator.random(rows) < generator.uniform(0.1, 0.9)
    labels_N[:2] = True, False
    expected = reference.auc(scores_N.tolist(), labels_N.tolist())
    assert _streamed(scores_N, labels_N).compute().value == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("intervals", [64, 2048])
def test_beyond_the_limit_the_exact_value_lies_within_the_bound(kind: str, intervals: int):
    scores_N, labels_N = _rows(kind)
    found = _streamed(scores_N, labels_N, exact_scores=20_000, intervals=intervals).compute()
    value, se = _plain(scores_N, labels_N)
    assert found.value is not None
    assert abs(found.value - value) <= found.bound + 1e-12
    # An interval has at most twice its share; later scores may lie within it, and intervals of later ones across it.
    assert found.bound <= 6 / intervals
    assert found.se == pytest.approx(se, rel=20 / intervals)


def test_scores_that_rise_with_time_stay_within_the_bound():
    scores_N, labels_N = _rows("usual")
    scores_N = (scores_N + np.linspace(-10, 10, ROWS)).astype(np.float32)
    found = _streamed(scores_N, labels_N, exact_scores=20_000, intervals=1024).compute()
    assert found.value is not None
    assert abs(found.value - _plain(scores_N, labels_N)[0]) <= found.bound <= 6 / 1024


def test_few_different_scores_stay_exact_beyond_the_limit():
    scores_N, labels_N = _rows("of few values")
    found = _streamed(scores_N, labels_N, exact_scores=20_000, intervals=16).compute()
    assert found.bound == 0
    assert found.value == pytest.approx(_plain(scores_N, labels_N)[0], rel=1e-12)


def test_memory_is_bounded_whatever_the_number_of_scores():
    scores_N, labels_N = _rows("usual", 400_000)
    streaming = _streamed(scores_N, labels_N, exact_scores=20_000, intervals=500)
    assert streaming._kept <= 20_000
    assert streaming._intervals is not None
    assert len(streaming._intervals.low_K) <= 3 * 500


def _share(kind: str, first: int, limits: dict[str, int]) -> Auc:
    scores_N, labels_N = _rows(kind)
    rows = slice(None, first) if dist.get_rank() == 0 else slice(first, None)
    return _streamed(scores_N[rows], labels_N[rows], 2, **limits).compute(dist.group.WORLD)


@pytest.mark.parametrize("kind", ["usual", "hardly varying", "around +20", "of few values"])
@pytest.mark.parametrize("first", [ROWS // 2, 10, 0])
def test_two_ranks_find_what_one_finds(kind: str, first: int):
    one = _streamed(*_rows(kind)).compute()
    two, other = run_ranks(_share, 2, kind, first, {})
    assert two == other
    assert two.value == one.value  # sums of whole numbers
    assert two.se == pytest.approx(one.se, rel=1e-12)  # float64 sums in another order


@pytest.mark.parametrize("first", [ROWS // 2, 10, 0])  # with 10, one rank alone is beyond the limit
def test_two_ranks_beyond_the_limit_keep_the_bound(first: int):
    value, _ = _plain(*_rows("usual"))
    two, other = run_ranks(_share, 2, "usual", first, {"exact_scores": 40_000, "intervals": 1024})
    assert two == other
    assert two.value is not None
    assert abs(two.value - value) <= two.bound <= 6 / 1024


@pytest.mark.parametrize("label", [False, True])
def test_one_class_has_no_auc(label: bool):
    assert _streamed(np.zeros(5, np.float32), np.full(5, label)).compute() == Auc(None, None)
