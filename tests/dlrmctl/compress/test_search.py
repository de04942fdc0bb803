"""The search for a budget, with models whose increase of NE is a known function of the tables' options."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from dlrmctl.compress.options import Candidate, Kept, TableOptions
from dlrmctl.compress.search import BudgetSearch, frontier_of, uniform_choices
from dlrmctl.console.progress import BarDisplay

# Bytes of a row and error, both relative to float32 and to the smallest; as of real tables of 16 columns.
METHODS = {
    "fp32": (64.0, 0.0), "fp16": (32.0, 1e-8), "int8": (20.0, 3e-5), "pca16-int4": (12.0, 7e-3), "rq8x256": (8.0, 4e-3),
    "rq4x256": (4.0, 0.04), "rq3x256": (3.0, 0.08), "rq2x256": (2.0, 0.16), "rq1x256": (1.0, 0.33), "rq1x16": (0.98, 1),
}  # fmt: skip


def never(*_: object) -> None:
    raise AssertionError("nothing is read")


def tables_of(heights: Sequence[int], generator: np.random.Generator) -> list[TableOptions]:
    tables = []
    for number, rows in enumerate(heights):
        table = TableOptions(f"t{number:02}", rows, 16, "adagrad", 1.0, never, Kept(0))  # type: ignore[arg-type]
        scale = 10 ** generator.uniform(-2, 1)
        for method, (width, error) in METHODS.items():
            if method.startswith("rq") and rows < 1000:
                continue  # codebooks are larger than such a table
            noise = math.exp(generator.normal(0, 0.1))
            table.options.append(Candidate(method, int(width * rows), scale * error * noise))
        tables.append(table)
    return tables


class Model:
    """Increases of NE proportional to errors, with a constant for each table, that grow more slowly for large ones.

    Args:
        spread: of the logarithms of the tables' constants.
        noise: standard error of an increase of 1, for the root of the increase.
        gain: increase that compressing rows at all saves, since the model has learned them by heart.
    """

    def __init__(
        self, tables: list[TableOptions], generator: np.random.Generator, *, spread: float, noise: float, gain: float
    ) -> None:
        self.tables, self.noise, self.generator = tables, noise, generator
        self.constants = 0.01 * np.exp(generator.normal(0, spread, len(tables)))
        self.gain = gain

    def rise(self, indices: Sequence[int]) -> float:
        errors = np.array([table.options[index].proxy for table, index in zip(self.tables, indices, strict=True)])
        total = float(self.constants @ errors)
        return total / (1 + 20 * total) - self.gain * min(1.0, total / 1e-3)

    def upper(self, indices: Sequence[int]) -> float:
        rise = self.rise(indices)
        return rise + 2 * self.noise * math.sqrt(abs(rise))

    def evaluate(self, indices: Sequence[int]) -> tuple[float, float]:
        rise = self.rise(indices)
        se = self.noise * math.sqrt(abs(rise))
        return rise + se * float(self.generator.normal()), se


@pytest.mark.parametrize("noise", [1e-4, 2e-3])
@pytest.mark.parametrize(("spread", "gain"), [(0.3, 0.0), (1.2, 0.0), (0.8, 2e-4)])
def test_the_search_ends_near_the_smallest_choice_that_keeps_the_budget(noise: float, spread: float, gain: float):
    lost = []
    for seed in range(3):
        generator = np.random.default_rng(seed)
        tables = tables_of([10 ** generator.integers(2, 6) for _ in range(12)], generator)
        model = Model(tables, generator, spread=spread, noise=noise, gain=gain)
        search = BudgetSearch(tables, model.evaluate, 1e-3, BarDisplay(shown=False))
        found = search.run()
        assert found.upper <= 1e-3
        # A draw of the noise may favor the choice by one or two standard errors.
        assert model.rise(found.choice.indices) <= 1e-3
        uniform = [choice for choice in uniform_choices(tables) if model.rise(choice.indices) <= 0.8e-3]
        assert found.choice.num_bytes <= 1.02 * uniform[-1].num_bytes
        # With all constants known, the smallest choice that keeps the budget less two standard errors.
        best = frontier_of(tables, list(model.constants))
        choices = map(best.choice, range(0, len(best.num_bytes), 25))
        smallest = next(choice for choice in choices if model.upper(choice.indices) <= 1e-3)
        lost.append(found.choice.num_bytes / smallest.num_bytes)
    assert float(np.mean(lost)) < 1.2


def test_a_prediction_that_is_always_just_too_low_does_not_end_at_float32():
    """Every choice by the prediction measures a little over the budget, as if the constants were chosen by an enemy."""
    generator = np.random.default_rng(0)
    tables = tables_of([100_000] * 8 + [300] * 4, generator)
    uniform = {choice.indices for choice in uniform_choices(tables)}

    def evaluate(indices: Sequence[int]) -> tuple[float, float]:
        errors = sum(table.options[index].proxy for table, index in zip(tables, indices, strict=True))
        alone = sum(table.options[index].method != "fp32" for table, index in zip(tables, indices, strict=True)) == 1
        rise = 0.001 * errors
        if tuple(indices) in uniform or alone:
            return rise, 1e-6
        return max(rise, 1.0005e-3), 1e-6

    found = BudgetSearch(tables, evaluate, 1e-3, BarDisplay(shown=False)).run()
    assert found.choice.indices in uniform
    best = [choice for choice in uniform_choices(tables) if 0.001 * choice.error + 2e-6 <= 1e-3][-1]
    assert found.choice.num_bytes == best.num_bytes
    assert found.choice.num_bytes < sum(table.num_bytes for table in tables) / 10


def test_uniform_choices_run_from_float32_to_the_smallest():
    tables = tables_of([100_000, 300], np.random.default_rng(0))
    choices = uniform_choices(tables)
    assert [table.options[index].method for table, index in zip(tables, choices[0].indices, strict=True)] == [
        "fp32"
    ] * 2
    sizes, errors = ([getattr(choice, name) for choice in choices] for name in ("num_bytes", "error"))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    methods = [[table.options[i].method for table, i in zip(tables, choice.indices, strict=True)] for choice in choices]
    assert methods[0] == ["fp32", "fp32"]
    assert ["rq2x256", "int8"] in methods  # codes do not make the small table smaller
