"""Dense features are fitted exactly, whatever pieces their values come in."""

import json
import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.dense import (
    KNOTS,
    CountedKeys,
    FittedDense,
    count_keys,
    fit,
    float16_suffices,
    read_fitted,
    to_keys,
    to_values,
)
from dlrmctl.data.preparation.counting import merge_counts
from dlrmctl.data.sealed import Values


def values_of(kind: str, rows: int = 3000) -> np.ndarray:
    """float32, with ties, zeros of both signs, and NaN."""
    draw = np.random.default_rng(0)
    values = {
        "few": draw.integers(-3, 4, rows).astype(np.float32) * np.float32(-0.1),
        "many": draw.normal(size=rows).astype(np.float32) ** 3,
        "zeros": np.where(draw.random(rows) < 0.9, -0.0, draw.pareto(1, rows)).astype(np.float32),
        "float16": np.log(draw.integers(0, 10**6, rows) + 3.0).astype(np.float16),
    }[kind]
    values[draw.random(rows) < 0.1] = np.nan
    return values


def ranges_of(values: np.ndarray, pieces: int = 1, ranges: int = 1) -> tuple[Callable[[], Iterator[CountedKeys]], int]:
    counted = [count_keys(part) for part in np.array_split(values, pieces)]
    keys, counts = merge_counts([part for part, _ in counted])
    cuts = zip(np.array_split(keys, ranges), np.array_split(counts, ranges), strict=True)
    whole = list(cuts)
    return (lambda: iter(whole)), sum(missing for _, missing in counted)


@pytest.mark.parametrize("kind", ["few", "many", "zeros", "float16"])
def test_a_fit_is_what_a_plain_computation_gives(kind: str) -> None:
    values = values_of(kind)
    fitted = fit("x", *ranges_of(values))
    there = values[~np.isnan(values)].astype(np.float64)
    assert (fitted.present, fitted.missing) == (len(there), int(np.isnan(values).sum()))
    # Sums of 3,000 numbers, each rounded to 53 bits, and 15 decimal digits.
    assert fitted.mean == pytest.approx(there.mean(), rel=1e-13, abs=1e-13)
    assert fitted.deviation == pytest.approx(there.std(), rel=1e-13)
    distinct = np.unique(there)
    assert len(fitted.values) == len(distinct) if len(distinct) <= KNOTS else 10 < len(fitted.values) <= KNOTS
    for value, rank in zip(fitted.values, fitted.ranks, strict=True):
        exact = float(np.float32(value))
        assert exact in distinct
        assert rank == pytest.approx(((there < exact).sum() + (there == exact).sum() / 2) / len(there), rel=1e-13)
    assert (np.float32(fitted.values[0]), np.float32(fitted.values[-1])) == (distinct[0], distinct[-1])


def test_between_knots_a_score_is_close() -> None:
    draw = np.random.default_rng(1)
    values = np.exp(draw.normal(size=100_000)).astype(np.float32)
    fitted = fit("x", *ranges_of(values))
    scores = np.interp(values, fitted.values, fitted.normal_scores())
    ranks = (np.argsort(np.argsort(values)) + 0.5) / len(values)
    exact = np.array([NormalDist().inv_cdf(rank) for rank in ranks])
    inside = np.abs(exact) < 3.5
    # Knots are 7 / 126 apart there, and both sides of a segment bound the score.
    assert np.abs(scores - exact)[inside].max() < 7 / 126
    assert fitted.quantile(0.5) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["few", "many", "zeros", "float16"])
def test_the_pieces_do_not_matter(kind: str) -> None:
    values = values_of(kind)
    expected = fit("x", *ranges_of(values))
    for pieces, ranges in [(1, 7), (13, 1), (50, 40)]:
        assert fit("x", *ranges_of(values[::-1], pieces, ranges)) == expected


def test_keys_are_in_the_order_of_the_values() -> None:
    values = np.array([-np.inf, -65504, -1, -1e-40, 0, 1e-40, 0.5, 1, 65504, np.inf], np.float32)
    keys = to_keys(values)
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    assert np.array_equal(to_values(keys), values.astype(np.float64))
    assert to_keys(np.array([-0.0], np.float32)) == to_keys(np.array([0.0], np.float32))


@pytest.mark.parametrize("values", [[], [np.nan] * 3, [2.5] * 4, [1.0, 2.0]])
def test_columns_with_next_to_nothing_are_fitted(values: list[float]) -> None:
    fitted = fit("x", *ranges_of(np.array(values, np.float32)))
    there = sorted({value for value in values if value == value})
    assert fitted.values == tuple(there)
    assert fitted.missing == len(values) - fitted.present
    assert all(math.isfinite(score) for score in fitted.normal_scores())
    assert math.isfinite(fitted.quantile(0.3))


def test_float16_is_chosen_where_it_keeps_the_spread() -> None:
    draw = np.random.default_rng(2)
    years = np.log1p(draw.integers(1920, 1999, 5000)).astype(np.float32)
    counts = np.log(draw.pareto(0.7, 5000).astype(np.int64) + 3.0).astype(np.float32)
    wild = np.append(draw.normal(10_000, 3, 5000), [60_000] * 5).astype(np.float32)
    for values, suffices in [(years, False), (counts, True), (wild, False), (draw.integers(0, 2, 50) * 1.0, True)]:
        ranges, missing = ranges_of(np.asarray(values, np.float32))
        assert float16_suffices(fit("x", ranges, missing), ranges, ranges) == suffices


def test_float16_is_not_chosen_for_values_beyond_it() -> None:
    small, _ = ranges_of(np.array([0.0, 1.0], np.float32))
    large, _ = ranges_of(np.array([-65504.0, 65536.0], np.float32))
    assert not float16_suffices(fit("x", large, 0), large, small)
    assert not float16_suffices(fit("x", small, 0), small, large)  # of validation and test examples


def test_a_fit_is_read_back_and_checked() -> None:
    fitted = fit("x", *ranges_of(values_of("many")))
    entry = json.loads(json.dumps(fitted.to_dict()))
    assert FittedDense.from_values(Values(entry)) == fitted
    assert read_fitted(Values({}), ["x"]) == ()
    changes: list[tuple[dict[str, Any], str]] = [
        ({"values": entry["values"][::-1]}, "values must be at most 129 numbers, and rise"),
        ({"values": [1, "2"]}, r"values\[1\] = '2' must be a finite number"),
        ({"ranks": entry["ranks"][1:]}, "ranks must be as many numbers between 0 and 1"),
        ({"ranks": [0.0, *entry["ranks"][1:]]}, "ranks must be as many numbers between 0 and 1"),
        ({"deviation": -1.0}, "deviation = -1.0 must be at least 0"),
        ({"present": None}, "present = None must be a whole number"),
    ]
    for change, message in changes:
        with pytest.raises(DataError, match=message):
            read_fitted(Values({"dense": [entry | change]}), ["x"])
    with pytest.raises(DataError, match="does not list the dense features"):
        read_fitted(Values({"dense": [entry]}), ["x", "y"])


def test_buckets_have_like_counts_and_few_or_frequent_values_one_each() -> None:
    def edges(values: np.ndarray) -> tuple[float, ...]:
        return fit("x", *ranges_of(values.astype(np.float32))).edges(32)

    normal = np.random.default_rng(0).normal(size=20_000)
    counts = np.histogram(normal, [-np.inf, *edges(normal), np.inf])[0]
    assert len(counts) == 32
    assert (abs(counts / (20_000 / 32) - 1) < 0.2).all()  # ranks between knots are interpolated
    assert edges(np.array([3, 1, 1, 7, np.nan])) == (3, 7)
    assert edges(np.array([np.nan])) == ()
    assert 0 < edges(np.repeat(np.arange(50), [5000, *range(1, 50)]))[0] <= 1
