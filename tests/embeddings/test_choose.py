from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrmctl.embeddings.choose import RatioError, Scheme, fit_ratio, num_parameters
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.embeddings.words import EMBEDDINGS, OPERATIONS_OF

# Distinct values per categorical column of Criteo's Kaggle data set.
# fmt: off
KAGGLE = (1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10,
          5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572)
# fmt: on
FEATURES = [(f"c{i}", rows, 1) for i, rows in enumerate(KAGGLE)]
FULL = sum(KAGGLE) * 16


def choose_tables(features: Sequence[tuple[str, int, int]], **settings: Any) -> list[FeatureTable]:
    """One method for all features."""
    return [Scheme(**{"qr_threshold": 200} | settings).table(feature) for feature in features]


def test_small_features_stay_full():
    chosen = choose_tables(
        [("a", 199, 1), ("b", 200, 3)], embedding="qr", collisions=4, operation="add", qr_threshold=200
    )
    assert chosen == [FeatureTable("a", 199), FeatureTable("b", 200, 3, "qr", 4, "add")]


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_a_feature_whose_tables_would_not_shrink_stays_full(kind):
    assert choose_tables([("a", 300, 1)], embedding=kind, collisions=1, qr_threshold=1)[0].embedding == "full"
    assert choose_tables([("a", 1, 1)], embedding=kind, collisions=5, qr_threshold=1)[0].embedding == "full"
    assert choose_tables([("a", 5, 1)], embedding="qr", collisions=5, qr_threshold=1)[0].embedding == "full"


def test_networks_count_with_their_width():
    # 75 rows of D and 4 of 16 D are fewer than 300; 200 collisions are 2 rows and 200 networks.
    assert choose_tables([("a", 300, 1)], embedding="qr", operation="path", collisions=4)[0].embedding == "qr"
    assert choose_tables([("a", 300, 1)], embedding="qr", operation="path", collisions=200)[0].embedding == "full"


def test_compression_reaches_the_ratio_asked_for():
    chosen = choose_tables([("a", 1_000_000, 1)], embedding="qr", collisions=50)
    assert sum(t.rows for t in chosen[0].tables(16)) == 20_000 + 50


@given(rows=st.integers(200, 10**6), collisions=st.integers(2, 100), share=st.floats(0.01, 0.99))
def test_head_and_tail_share_the_rows_there_are(rows, collisions, share):
    [chosen] = choose_tables([("a", rows, 1)], embedding="head", collisions=collisions, head_share=share)
    if chosen.embedding == "full":
        assert rows // collisions <= 2
        return
    budget = -(-rows // collisions)
    [table] = chosen.tables(16)
    # The tail's collisions are a whole number, so it may have fewer rows than are left: at most by the rounding, which
    # is largest where two ids share a row and 1.01 would have done.
    assert chosen.head <= table.rows <= budget
    assert abs(chosen.head - budget * share) <= 1
    assert -(-(rows - chosen.head) // (budget - chosen.head)) == chosen.collisions


@pytest.mark.parametrize("kind", EMBEDDINGS[1:])
@pytest.mark.parametrize("ratio", [2, 4, 7.3, 60])
def test_a_ratio_is_met_closely_on_tables_like_criteos(kind, ratio):
    chosen = fit_ratio(FEATURES, [Scheme(kind, qr_threshold=200)] * 26, [False] * 26, ratio=ratio, dim=16)
    reached = FULL / num_parameters(chosen, 16)
    # Five large tables, 30 % of all rows at most, take c or c + 1 collisions each; coprime moduli move in larger steps.
    assert ratio <= reached < ratio * (1.1 if kind == "crt" else 1.05)
    assert [t.embedding for t in chosen if t.rows < 200] == ["full"] * 8


def test_larger_tables_have_no_fewer_collisions_than_the_ratio_needs():
    chosen = fit_ratio(FEATURES, [Scheme("hash", qr_threshold=200)] * 26, [False] * 26, ratio=4, dim=16)
    assert {t.collisions for t in chosen if t.embedding == "hash"} <= {4, 5}


def test_a_ratio_beyond_the_smallest_tables_says_the_best():
    schemes = [Scheme("qr", qr_threshold=200)] * 26
    with pytest.raises(RatioError) as caught:
        fit_ratio(FEATURES, schemes, [False] * 26, ratio=10**6, dim=16)
    best = caught.value.best
    # Two tables of sqrt(rows) rows each are the smallest, and tables below 200 rows are whole.
    smallest = sum(2 * rows**0.5 if rows >= 200 else rows for rows in KAGGLE)
    # The search steps by a tenth, where x + 1 / x is 1 + 0.05^2 / 2 times its smallest, and rounds rows up.
    assert 0.98 * sum(KAGGLE) / smallest <= best <= sum(KAGGLE) / smallest
    reached = fit_ratio(FEATURES, schemes, [False] * 26, ratio=best * 0.999, dim=16)
    assert FULL / num_parameters(reached, 16) >= best * 0.999


@pytest.mark.parametrize("kind", OPERATIONS_OF)
def test_every_operation_counts_as_it_is(kind):
    for operation in OPERATIONS_OF[kind]:
        scheme = Scheme(kind, operation=operation, ways=2, tail="qr")
        chosen = fit_ratio(FEATURES, [scheme] * 26, [False] * 26, ratio=9, dim=16)
        weights = sum(t.rows * t.dim for f in chosen for t in f.tables(16))
        assert FULL / 10 < weights <= FULL / 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fit_ratio([("a", 5, 1), ("a", 6, 1)], [Scheme(), Scheme()], [False, False], ratio=2, dim=16),
            r"feature names must be unique; repeated: \['a'\]",
        ),
        (
            lambda: choose_tables([("a", 5, 1)], head_share=1.0),
            r"feature a: head_share=1.0 must be above 0 and below 1",
        ),
        (lambda: choose_tables([("a", 5, 1)], collisions=0), "collisions=0 must be at least 1"),
        (lambda: fit_ratio(FEATURES, [Scheme()] * 26, [False] * 26, ratio=1, dim=16), "ratio=1 must be above 1"),
        (
            lambda: fit_ratio(FEATURES, [Scheme()] * 26, [False] * 26, ratio=2, dim=16),
            "cannot be 2 times smaller; with these settings, 1",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
