"""Cutting parameters into blocks, and giving the blocks owners and turns."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrmctl.optim.shampoo.blocks import ParameterBlock, cut_parameter, merge_shape, squeeze_shape
from dlrmctl.optim.shampoo.costs import root_cost
from dlrmctl.optim.shampoo.plan import (
    num_refreshes,
    num_statistics,
    refresh_due,
    spread,
    statistics_seen,
    statistics_span,
)


def test_size_one_dimensions_are_dropped_and_small_ones_merged_on_request() -> None:
    assert squeeze_shape((1, 16)) == (16,)
    assert squeeze_shape((1, 1)) == squeeze_shape(()) == (1,)
    assert merge_shape((64, 3, 3), 16) == (64, 9)
    assert merge_shape((64, 3, 3), 1024) == (576,)
    assert merge_shape((24, 13), 8) == (24, 13)


@given(st.lists(st.integers(1, 9), max_size=4), st.integers(1, 6), st.booleans())
def test_the_blocks_cover_every_element_once(shape: list[int], limit: int, merge: bool) -> None:
    tensor = torch.zeros(shape)
    cut = cut_parameter(tensor, limit=limit, merge=merge)
    for number, view in enumerate(cut.views(tensor)):
        assert tuple(view.shape) == cut.region_shape(number)
        assert max(view.shape) <= limit
        view += 1
    assert torch.equal(tensor, torch.ones(shape))


def test_an_empty_parameter_has_no_blocks() -> None:
    assert cut_parameter(torch.zeros(0, 4), limit=2, merge=True).regions == ()


@given(st.lists(st.floats(0, 1e6), max_size=30), st.integers(1, 7))
def test_no_bin_carries_more_than_the_mean_and_the_largest_item(costs: list[float], num_bins: int) -> None:
    loads = [0.0] * num_bins
    bins = spread(costs, num_bins, loads)
    assert bins == spread(costs, num_bins)
    for b in range(num_bins):
        assert loads[b] == pytest.approx(sum(c for c, owner in zip(costs, bins, strict=True) if owner == b))
    assert max(loads) <= (sum(costs) / num_bins + max(costs, default=0)) * (1 + 1e-9)


def test_roots_are_due_at_the_start_and_then_at_multiples_of_the_frequency() -> None:
    due = [t for t in range(1, 31) if refresh_due(t, frequency=5, start=12, turn=None)]
    assert due == [12, 15, 20, 25, 30]


@given(st.integers(1, 8), st.integers(1, 20))
def test_staggered_every_turn_comes_once_per_cycle_and_once_before_the_start(frequency: int, start: int) -> None:
    for turn in range(frequency):
        due = [
            t
            for t in range(1, start + 3 * frequency + 1)
            if refresh_due(t, frequency=frequency, start=start, turn=turn)
        ]
        before, later = [t for t in due if t <= start], [t for t in due if t > start]
        assert later == [start + 1 + turn + k * frequency for k in range(3)]
        assert len(before) == 1
        assert before[0] == start or start - frequency < before[0] == later[0] - frequency
    assert not any(refresh_due(t, frequency=3, start=float("inf"), turn=None) for t in range(1, 50))


def _doubling(frequency: int, turn: int | None, until: int) -> list[int]:
    steps = range(1, until + 1)
    return [t for t in steps if refresh_due(t, frequency=frequency, start=1, turn=turn, schedule="doubling")]


def test_doubling_refreshes_early_and_then_at_the_frequency() -> None:
    assert _doubling(64, None, 200) == [1, 2, 4, 8, 16, 32, 64, 128, 192]
    assert _doubling(100, None, 320) == [1, 3, 6, 12, 25, 50, 100, 200, 300]
    assert _doubling(100, 0, 320) == [1, 3, 6, 12, 25, 50, 101, 201, 301]
    assert _doubling(100, 99, 410) == [1, 3, 6, 12, 25, 50, 100, 200, 300, 400]
    assert _doubling(1, 0, 5) == [1, 2, 3, 4, 5]


@given(st.integers(1, 130), st.integers(0, 129) | st.none())
def test_doubling_leaves_no_root_older_than_the_steps_before_it_and_the_frequency(
    frequency: int, turn: int | None
) -> None:
    due = _doubling(frequency, turn, 5 * frequency + 5)
    assert due[0] == 1
    for earlier, later in pairwise(due):
        assert later - earlier <= min(earlier + 1, frequency)
    late = [t for t in due if t > 2 * frequency]
    assert all(b - a == frequency for a, b in pairwise(late))


@given(st.integers(1, 40))
def test_doubling_gives_every_turn_a_step_of_its_own_once_it_is_late(frequency: int) -> None:
    late = [
        t
        for turn in range(frequency)
        for t in _doubling(frequency, turn, 3 * frequency)
        if 2 * frequency < t <= 3 * frequency
    ]
    assert sorted(late) == list(range(2 * frequency + 1, 3 * frequency + 1))


@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 60),
    st.integers(0, 39) | st.none(),
    st.sampled_from(["constant", "doubling"]),
)
def test_refreshes_are_counted_as_they_fall_due(
    steps: int, frequency: int, start: int, turn: int | None, schedule: str
) -> None:
    how = {"frequency": frequency, "start": start, "turn": turn, "schedule": schedule}
    assert num_refreshes(steps, **how) == sum(refresh_due(t, **how) for t in range(1, steps + 1))


@given(
    st.integers(1, 3000),
    st.integers(1, 12),
    st.integers(1, 120),
    st.sampled_from(["constant", "doubling"]),
    st.sampled_from([1.0, 0.99]),
)
def test_products_stand_for_every_step_once(
    steps: int, frequency: int, refresh_frequency: int, schedule: str, beta2: float
) -> None:
    settings = {
        "statistics_frequency": frequency,
        "precondition_frequency": refresh_frequency,
        "refresh_schedule": schedule,
        "betas": (0.9, beta2),
    }
    spans = [statistics_span(t, settings) for t in range(1, steps + 1)]
    assert sum(spans) == statistics_seen(steps, settings)
    assert steps <= sum(spans) < steps + max(frequency, refresh_frequency)
    assert num_statistics(steps, settings) == sum(span > 0 for span in spans)
    if schedule == "doubling":
        assert spans[: 8 * frequency] == [1] * min(steps, 8 * frequency)
    if schedule == "constant" or beta2 < 1:
        assert max(spans) <= frequency
    for step, span in enumerate(spans, 1):
        assert span <= max(frequency, step / 32)
        assert not span or sum(spans[: step - 1]) == step - 1


def test_staggering_makes_the_worst_step_a_small_part_of_a_full_refresh() -> None:
    """The factors of a DLRM's two MLPs over 20 steps: no step refreshes more than a tenth of all there is."""
    blocks = []
    for position, (rows, columns) in enumerate([(512, 13), (256, 512), (64, 256), (16, 64), (512, 367), (256, 512)]):
        cut = cut_parameter(torch.empty(rows, columns), limit=128, merge=False)
        blocks += [ParameterBlock(0, position, n, cut.region_shape(n), False, (0, 1)) for n in range(len(cut.regions))]
    costs = [root_cost(block) for block in blocks]
    turns = spread(costs, 20)
    for step in range(1, 60):  # the first refreshes too
        due = [
            cost
            for cost, turn in zip(costs, turns, strict=True)
            if refresh_due(step, frequency=20, start=20, turn=turn)
        ]
        assert sum(due) < sum(costs) / 10
