"""Drift: from day to day some ids are replaced and some effects change, by the seed alone."""

from itertools import pairwise

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.synthetic.synthetic import Synthetic

SIZES = [4000, 30_000]  # in tables, and computed


def test_a_share_of_the_ids_is_replaced_every_day_and_the_rest_stays():
    source, rows = Synthetic(3, 8192, 1, 1, cardinalities=SIZES), np.arange(4002)
    values = [source.on_day(day, 0.1).values(1, rows) for day in range(4)]
    assert np.array_equal(values[0], rows)
    for before, after in pairwise(values):
        assert 0.08 < np.mean(before != after) < 0.12
    assert len(np.unique(values)) == len({*np.concatenate(values).tolist()})
    assert np.array_equal(values[3], Synthetic(3, 100, 1, 1, cardinalities=SIZES).on_day(3, 0.1).values(1, rows))
    assert [day[:2].tolist() for day in values] == [[0, 1]] * 4  # reserved rows


def test_labels_follow_the_effects_of_the_day():
    source = Synthetic(3, 8192, 1, 1, cardinalities=SIZES)
    steps = [source.on_day(day, 0.1).read_examples("train", 0).steps_N for day in range(3)]
    assert np.array_equal(steps[0], source.read_examples("train", 0).steps_N)
    near, far = (np.corrcoef(steps[0], later)[0, 1] for later in steps[1:])
    assert 0.3 < far < near < 0.99


def test_days_and_rates_have_bounds():
    source = Synthetic(3, 100, 1, 1, cardinalities=SIZES)
    for day, rate in ((256, 0.1), (1, 1.5), (-1, 0.1)):
        with pytest.raises(DataError, match="a drift of"):
            source.on_day(day, rate)
