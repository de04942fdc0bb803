"""Averaged Newton directions of ranks: without bias, refused where they would vary too much, equal to a simulation."""

import pytest
import torch
from torch import Tensor

from dlrmctl.optim.convex.distributed import dist_newton, local_direction
from dlrmctl.optim.convex.effective import effective_dimension
from dlrmctl.optim.convex.newton import Direction, descend, newton
from dlrmctl.optim.convex.objective import LogisticRegression, RowRanks
from dlrmctl.optim.convex.rows import DenseRows, LabelledRows
from dlrmctl.optim.convex.solution import Solution
from tests.optim.convex.problems import dense_examples, regression
from tests.ranks import run_ranks

L2 = 1e-2


def _parts(examples: LabelledRows, rows: int, l2: float = L2) -> list[LogisticRegression]:
    return [
        regression(LabelledRows(examples.rows.narrow(start, start + rows), examples.labels[start : start + rows]), l2)
        for start in range(0, examples.rows.num_rows, rows)
    ]


def _simulated(examples: LabelledRows, rows: int, *, debias: bool | None, tolerance: float = 1e-9) -> Solution:
    """The same method in one process, with parts of the rows as ranks."""
    objective, parts = regression(examples, L2), _parts(examples, rows)

    def averaged(point: Tensor, gradient: Tensor) -> Direction:
        vectors = [
            local_direction(*part.local_hessian(point), objective.penalty, gradient, debias=debias)[0] for part in parts
        ]
        return Direction(torch.stack(vectors).mean(0))

    return descend(objective, objective.start(), averaged, tolerance=tolerance, max_iterations=50, watch=None)


def test_few_rows_tell_the_effective_dimension() -> None:
    examples, l2 = dense_examples(20_000, 79), 0.1  # which leaves 56 of 80 dimensions
    objective = regression(examples, l2, batch_rows=65_536)
    point = objective.start()
    hessian = objective.hessian(point) - objective.penalty.diag()
    exact = float(torch.trace(hessian @ torch.linalg.inv(hessian + objective.penalty.diag())))
    assert effective_dimension(hessian, objective.penalty) == pytest.approx(exact, rel=1e-9)
    found = [effective_dimension(part.local_hessian(point)[0], part.penalty, 500) for part in _parts(examples, 500, l2)]
    assert found == pytest.approx([exact] * 40, rel=0.02)  # measured 0.005; the plain trace is 0.03 to 0.04 too low


def test_debiased_directions_average_to_newtons() -> None:
    """40 parts with 6.6 rows for each effective dimension."""
    examples = dense_examples(20_000, 79)
    objective = regression(examples, L2, batch_rows=65_536)
    point = objective.start()
    gradient = objective.evaluate(point).gradient
    hessian = objective.hessian(point)
    exact = torch.linalg.solve(hessian, -gradient)

    def error(debias: bool) -> float:
        found = [
            local_direction(*part.local_hessian(point), part.penalty, gradient, debias=debias)[0]
            for part in _parts(examples, 500)
        ]
        apart = torch.stack(found).mean(0) - exact
        return float((apart @ hessian @ apart) / (exact @ hessian @ exact)) ** 0.5

    # One direction errs by about sqrt(d / m) = 0.4, and 40 of them by 0.06 without bias; measured 0.06 and 0.18.
    assert error(debias=True) < 0.5 * error(debias=False)


def test_late_steps_contract_at_least_twice_as_much_without_the_bias() -> None:
    examples = dense_examples(8000, 79)
    optimum = newton(regression(examples, L2), regression(examples, L2).start(), tolerance=1e-13).value

    def late(debias: bool) -> float:
        gaps = [entry.value - optimum for entry in _simulated(examples, 500, debias=debias).history]
        clear = [gap for gap in gaps if gap > 1e-12]  # above rounding
        return clear[-1] / clear[-2]

    assert late(debias=True) <= 0.5 * late(debias=False)  # measured 0.005 and 0.066


def _on_ranks(debias: bool | None) -> Solution:
    import torch.distributed as dist

    part = _parts(dense_examples(800, 30), 400)[dist.get_rank()]
    objective = LogisticRegression(part.source, l2=L2, ranks=RowRanks.of())
    return dist_newton(objective, objective.start(), debias=debias, tolerance=1e-9)


@pytest.mark.parametrize("debias", [None, False])
def test_two_ranks_equal_the_simulation(debias: bool | None) -> None:
    simulated = _simulated(dense_examples(800, 30), 400, debias=debias)
    first, second = run_ranks(_on_ranks, 2, debias)
    assert torch.equal(first.point, second.point)
    assert first.converged
    assert first.notes == second.notes
    assert first.notes[0].endswith("directions are debiased" if debias is None else "directions are not debiased")
    assert len(first.history) == len(simulated.history)
    torch.testing.assert_close(first.point, simulated.point, rtol=1e-9, atol=1e-10)  # sums in another order


def test_one_rank_with_many_rows_is_newtons_method() -> None:
    objective = regression(dense_examples(3000, 10), L2)
    exact = newton(objective, objective.start())
    solution = dist_newton(objective, objective.start())
    torch.testing.assert_close(solution.point, exact.point, rtol=0, atol=1e-12)
    assert "not debiased" in solution.notes[0]


def _refused(rows: int, l2: float) -> str:
    """The first rank has `rows` rows, the second one 140."""
    import torch.distributed as dist

    examples, cut = dense_examples(rows + 140, 30), (slice(0, rows), slice(rows, None))[dist.get_rank()]
    mine = LabelledRows(DenseRows(examples.rows.dense()[cut]), examples.labels[cut])
    objective = regression(mine, l2, ranks=RowRanks.of())
    with pytest.raises(ValueError, match="rank") as caught:
        dist_newton(objective, objective.start())
    return str(caught.value)


def test_too_few_rows_are_refused_on_all_ranks() -> None:
    first, second = run_ranks(_refused, 2, 140, 1e-4)
    assert first == second
    assert first.startswith("a rank has 4.5 rows for each of 31 effective dimensions, expected at least 5")
    for rows, l2 in ((0, 1e-4), (10, 0.0)):
        first, second = run_ranks(_refused, 2, rows, l2)
        assert first == second == "the rows of a rank do not determine a direction; use fewer ranks, or an l2 above 0"
