"""Sketched Hessians contract the error as the theory says, whichever rows matter, and lead to the exact optimum."""

import pytest
import torch
from torch import Tensor

from dlrmctl.optim.convex.newton import newton
from dlrmctl.optim.convex.objective import RowRanks
from dlrmctl.optim.convex.rows import DenseRows, LabelledRows
from dlrmctl.optim.convex.sketch import Draws, leverage_scores, newton_sketch, newton_step
from dlrmctl.optim.convex.solution import Solution
from tests.optim.convex.problems import dense_examples, one_hot_examples, regression
from tests.ranks import run_ranks

ROWS, SIZE = 2048, 32


def _coherent() -> Tensor:
    """Rows of a heavy-tailed distribution: a few hold most of the Hessian."""
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(ROWS, SIZE + 3, generator=generator, dtype=torch.float64)
    # A chi-square of 1.5 degrees of freedom, near enough: the mean of two squares, the second halved.
    lengths = (gaussian[:, -2:].square() * torch.tensor([1.0, 0.5]).double()).sum(1) / 1.5
    return gaussian[:, :SIZE] / lengths.sqrt()[:, None] / ROWS**0.5


def _contraction(rows: Tensor, sketch_rows: int, averages: int = 1, repetitions: int = 100) -> float:
    """Mean factor of the squared error, in the Hessian's metric, over steps from random points of a quadratic."""
    hessian, none = rows.T @ rows, torch.zeros(SIZE, dtype=torch.float64)
    shared, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    chances = leverage_scores(lambda: iter(rows.split(500)), none, RowRanks(), own)
    chances /= chances.sum()
    total = 0.0
    for _ in range(repetitions):
        point = torch.randn(SIZE, generator=own, dtype=torch.float64)
        direction = torch.zeros_like(point)
        for _ in range(averages):
            draws = Draws.random(chances, sketch_rows, SIZE, RowRanks(), shared, own)
            sketched = draws.combine(iter(rows.split(500)), SIZE)
            direction += torch.linalg.solve(sketched.T @ sketched, hessian @ point) / averages
        moved = point - newton_step(SIZE, sketch_rows, averages) * direction
        total += float(moved @ hessian @ moved) / float(point @ hessian @ point)
    return total / repetitions


def test_the_error_contracts_by_parameters_over_sketch_rows() -> None:
    """Within 15 %: the law is one of large dimensions, and a mean over 100 draws has an error of about 3 %."""
    assert _contraction(_coherent(), 4 * SIZE) == pytest.approx(1 / 4, rel=0.15)
    assert _contraction(_coherent(), 8 * SIZE) == pytest.approx(1 / 8, rel=0.15)


def test_averaged_sketches_contract_by_the_averaging_law() -> None:
    inflation, averages = 4 / 3, 3  # m / (m - d) with m = 4 d
    law = (inflation - 1) / (inflation + averages - 1)
    assert _contraction(_coherent(), 4 * SIZE, averages) == pytest.approx(law, rel=0.15)


def test_a_sketch_is_the_hessian_on_average() -> None:
    rows = _coherent()
    shared, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    chances = rows.square().sum(1) / rows.square().sum()
    mean = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for _ in range(200):
        sketched = Draws.random(chances, 64, 4, RowRanks(), shared, own).combine(iter([rows]), SIZE)
        mean += sketched.T @ sketched / 200
    # 200 sketches of 64 rows: entries err by about 1 / sqrt(200 * 64) of the diagonal, 0.9 %; five times that.
    scale = float((rows.T @ rows).diagonal().max())
    torch.testing.assert_close(mean, rows.T @ rows, rtol=0, atol=0.045 * scale)


def test_leverage_adds_up_to_the_effective_dimension() -> None:
    rows = _coherent()
    penalty = torch.full((SIZE,), 0.01, dtype=torch.float64)
    hessian = rows.T @ rows
    exact = ((rows @ torch.linalg.inv(hessian + penalty.diag())) * rows).sum(1)
    found = leverage_scores(lambda: iter(rows.split(500)), penalty, RowRanks(), torch.Generator().manual_seed(0))
    ratio = found[exact > 0.01] / exact[exact > 0.01]
    # The inverse of a sketch with 5 d rows is larger by 5 / 4; 32 projections have a standard error of 25 %, as has the
    # sketch for rows that are heavy in it. Factors below 4 hardly matter.
    assert float(ratio.min()) > 1 / 4
    assert float(ratio.max()) < 4
    assert float(found.sum()) == pytest.approx(1.25 * float(exact.sum()), rel=0.15)


@pytest.mark.parametrize("sketch", ["less", "less-uniform", "rows"])
def test_the_exact_optimum_is_reached(sketch: str) -> None:
    objective = regression(one_hot_examples(4000, 4, 8), 1e-3)
    exact = newton(objective, objective.start(), tolerance=1e-13).point
    solution = newton_sketch(objective, objective.start(), sketch=sketch, tolerance=1e-11)  # type: ignore[arg-type]
    assert solution.converged
    assert len(solution.history) < 40  # measured 15 to 21; a quarter of the squared error is left by each
    torch.testing.assert_close(solution.point, exact, rtol=0, atol=1e-8)  # 1e-11 over the penalty's 1e-3
    assert solution.notes == []


def test_uneven_leverage_is_noted_for_equal_chances() -> None:
    rows = _coherent() * ROWS**0.5
    labels = (torch.rand(ROWS, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    objective = regression(LabelledRows(DenseRows(rows), labels), 1e-3)
    (note,) = newton_sketch(objective, objective.start(), sketch="less-uniform", max_iterations=2).notes
    assert note.startswith("leverage is uneven, the largest is ")
    assert newton_sketch(objective, objective.start(), sketch="less", max_iterations=2).notes == []


def _on_ranks() -> Solution:
    import torch.distributed as dist

    examples, cut = one_hot_examples(3000, 4, 8), (slice(0, 1000), slice(1000, 3000))[dist.get_rank()]
    mine = LabelledRows(examples.rows.narrow(cut.start, cut.stop), examples.labels[cut])
    objective = regression(mine, 1e-3, ranks=RowRanks.of())
    return newton_sketch(objective, objective.start(), tolerance=1e-11)


def test_ranks_share_the_draws() -> None:
    objective = regression(one_hot_examples(3000, 4, 8), 1e-3)
    exact = newton(objective, objective.start(), tolerance=1e-13).point
    first, second = run_ranks(_on_ranks, 2)
    assert torch.equal(first.point, second.point)
    assert len(first.history) < 40
    torch.testing.assert_close(first.point, exact, rtol=0, atol=1e-8)


def test_what_cannot_work_is_refused() -> None:
    objective = regression(dense_examples(100, 5), 1e-3)
    for options, message in (
        ({"rows": 6}, "rows=6 must be above the number of parameters, 6"),
        ({"sketch": "srht"}, "sketch='srht' must be"),
        ({"nonzeros": 0}, "must be at least 1"),
        ({"memory_bytes": 100}, "more than 0.0 GiB"),
    ):
        with pytest.raises(ValueError, match=message):
            newton_sketch(objective, objective.start(), **options)  # type: ignore[arg-type]
