import itertools

import numpy as np
import pytest

from dlrmctl.embeddings.compression.frontier import Frontier, Option, predicted_options


def _random_tables(seed: int, tables: int, options: int) -> list[list[Option]]:
    generator = np.random.default_rng(seed)
    return [
        [
            Option(int(size), float(error))
            for size, error in zip(generator.integers(1, 60, options), generator.exponential(1, options), strict=True)
        ]
        for _ in range(tables)
    ]


def _all_choices(tables: list[list[Option]]) -> list[tuple[int, float]]:
    return [(sum(o.num_bytes for o in pick), sum(o.error for o in pick)) for pick in itertools.product(*tables)]


@pytest.mark.parametrize("seed", range(20))
def test_choices_are_those_of_trying_everything(seed: int):
    tables = _random_tables(seed, 4, 5)
    frontier, everything = Frontier(tables), _all_choices(tables)
    for share in (0.1, 0.4, 0.8):
        low, high = min(size for size, _ in everything), max(size for size, _ in everything)
        limit = int(low + share * (high - low))
        best = min(error for size, error in everything if size <= limit)
        found = frontier.within_bytes(limit)
        assert found.error == pytest.approx(best)  # the same numbers, added in another order
        assert found.num_bytes <= limit
        most = best * 1.001
        assert frontier.within_error(most).num_bytes == min(size for size, error in everything if error <= most)


def test_a_choice_says_what_its_options_say():
    tables = _random_tables(1, 6, 7)
    frontier = Frontier(tables)
    for point in (0, len(frontier.num_bytes) // 2, -1):
        choice = frontier.choice(point)
        taken = [options[index] for options, index in zip(tables, choice.indices, strict=True)]
        assert choice.num_bytes == sum(option.num_bytes for option in taken)
        assert choice.error == pytest.approx(sum(option.error for option in taken))


def test_twenty_six_tables_stay_close_to_the_bound_and_take_seconds():
    """Against the Lagrangian bound, below which no choice can be."""
    generator = np.random.default_rng(0)
    tables = []
    for _ in range(26):
        rows = 10 ** generator.uniform(5, 6)
        ratios = np.array([1, 2, 3.2, 4, 5.3, 8, 11, 16, 21, 27, 30, 40, 64])
        weight = 10 ** generator.uniform(-3, 2)
        tables.append([Option(int(64 * rows / r) + 16, float(weight * 2e-4 * r**2.2)) for r in ratios])
    frontier = Frontier(tables)
    assert len(frontier.num_bytes) <= 25_000
    total = sum(options[0].num_bytes for options in tables)
    for ratio in (4, 10, 30):
        choice = frontier.within_bytes(int(total / ratio))
        bound = max(
            sum(min(o.error + price * o.num_bytes for o in options) for options in tables) - price * total / ratio
            for price in 10 ** np.linspace(-12, 2, 4000)
        )
        # A drop of the list's small steps, and what the bound itself lies below the best choice.
        assert bound <= choice.error <= bound * 1.02
        assert frontier.within_error(choice.error).num_bytes <= choice.num_bytes


def test_limits_nobody_can_keep_are_told():
    frontier = Frontier([[Option(100, 1.0), Option(40, 2.0)], [Option(10, 0.5)]])
    with pytest.raises(ValueError, match="49 bytes are fewer than the smallest options need, 50"):
        frontier.within_bytes(49)
    with pytest.raises(ValueError, match=r"an error of 1.4 is below that of the most exact options, 1.5"):
        frontier.within_error(1.4)
    with pytest.raises(ValueError, match="table 1 has no options"):
        Frontier([[Option(1, 0)], []])
    with pytest.raises(ValueError, match="finite and at least 0"):
        Frontier([[Option(1, float("nan"))]])


def test_options_predict_by_constant_times_proxy():
    options = predicted_options([[10, 5], [7]], [[0.0, 2.0], [3.0]], [10.0, 1.0])
    assert options == [[Option(10, 0.0), Option(5, 20.0)], [Option(7, 3.0)]]
    assert predicted_options([[1]], [[2.0]], 3.0) == [[Option(1, 6.0)]]
