"""L-BFGS with growing samples reaches Newton's optimum, and a rough one in few passes over the data."""

import pytest
import torch

from dlrmctl.optim.convex.lbfgs import InverseHessian, full_lbfgs, pb_lbfgs
from dlrmctl.optim.convex.newton import newton
from dlrmctl.optim.convex.objective import LogisticRegression, RowRanks
from dlrmctl.optim.convex.rows import LabelledRows
from dlrmctl.optim.convex.solution import Iteration, Solution
from tests.optim.convex.problems import dense_examples, one_hot_examples, regression
from tests.ranks import run_ranks

CONDITION = 1e3**0.5  # of the features; the Hessian's condition number is its square


def _stretched() -> LogisticRegression:
    return regression(dense_examples(20_000, 40, spread=1 / CONDITION), 1e-6, batch_rows=65_536)


def _passes_to(gap: float, solver: object, *, optimum: float) -> float:
    objective, watched = _stretched(), _stretched()
    passes: list[float] = []

    def watch(entry: Iteration) -> bool:
        passes.append(entry.passes)
        return watched.evaluate(entry.point).value - optimum <= gap

    solver(objective, objective.start(), watch=watch, max_passes=100)  # type: ignore[operator]
    return passes[-1]


def test_the_optimum_is_newtons() -> None:
    objective = regression(dense_examples(3000, 20, spread=0.3), 1e-2)
    exact = newton(objective, objective.start(), tolerance=1e-14).point
    solution = pb_lbfgs(objective, objective.start(), tolerance=1e-12)
    assert solution.converged
    # The gradient's 1e-12 over the least curvature, which is above 0.01.
    torch.testing.assert_close(solution.point, exact, rtol=0, atol=1e-10)


def test_a_gap_of_a_hundredth_takes_a_fifth_of_the_passes_of_full_batches() -> None:
    objective = _stretched()
    optimum = newton(objective, objective.start()).value
    full = _passes_to(1e-2, full_lbfgs, optimum=optimum)
    assert _passes_to(1e-2, pb_lbfgs, optimum=optimum) <= full / 5  # measured 0.2 and 4


def test_samples_never_shrink_and_first_steps_are_taken() -> None:
    objective = _stretched()
    solution = pb_lbfgs(objective, objective.start())
    assert solution.converged
    assert solution.gradient_norm <= 1e-8
    sizes = [entry.sample_size for entry in solution.history]
    assert sizes == sorted(sizes)
    assert sizes[0] == 512
    assert sizes[-1] == objective.num_rows
    assert len(set(sizes)) >= 4  # it grows, rather than jumps to all rows
    assert sum(entry.first_accepted for entry in solution.history) >= 0.9 * len(sizes)  # measured 0.94


@pytest.mark.parametrize("scaled", [False, True])
def test_noise_in_many_rare_features_makes_samples_grow(scaled: bool) -> None:
    """By inner products alone, in units of equal curvature, steps fit sample after sample for thousands of passes."""
    objective = regression(one_hot_examples(20_000, 8, 100), 1e-5, batch_rows=65_536)
    exact = newton(objective, objective.start()).value
    solution = pb_lbfgs(objective, objective.start(), scale=objective.scale() if scaled else None, tolerance=1e-5)
    assert solution.value - exact < 1e-6
    assert solution.passes < 100  # measured 88 plain and 40 scaled
    assert sum(entry.sample_size < objective.num_rows for entry in solution.history) < 30


def test_a_warm_start_is_not_left_for_a_noisy_sample() -> None:
    objective = regression(one_hot_examples(20_000, 8, 100), 1e-3, batch_rows=65_536)
    warm = newton(objective, objective.start()).point
    other, points = objective.with_l2(9e-4), list[Iteration]()
    pb_lbfgs(other, warm, scale=objective.scale(), watch=lambda entry: bool(points.append(entry)))
    sampled = [entry for entry in points if entry.sample_size < other.num_rows]
    assert [entry.sample_size for entry in sampled] == [512, 4096]
    torch.testing.assert_close(points[len(sampled)].point, warm, rtol=0, atol=1e-14)  # units there and back


def test_the_compact_inverse_is_that_of_the_recursion() -> None:
    """Against the update of H, pair by pair, with pairs beyond the memory forgotten."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    hessian = root @ root.T + torch.eye(6).double()
    steps = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    pairs = InverseHessian(memory=3, num_parameters=6)
    for step in steps:
        assert pairs.add(step, hessian @ step, bound=0.0)
    last = hessian @ steps[-1]
    inverse = torch.eye(6).double() * (steps[-1] @ last) / (last @ last)
    for step in steps[-3:]:
        change = hessian @ step
        left = torch.eye(6).double() - torch.outer(step, change) / (step @ change)
        inverse = left @ inverse @ left.T + torch.outer(step, step) / (step @ change)
    torch.testing.assert_close(pairs.times(torch.eye(6).double()), inverse, rtol=1e-10, atol=1e-11)


def test_a_pair_of_too_little_curvature_is_rejected() -> None:
    pairs = InverseHessian(memory=3, num_parameters=2)
    step = torch.tensor([1.0, 0.0]).double()
    assert not pairs.add(step, 0.009 * step, bound=1.0)  # a hundredth of s^T B s is needed
    assert not pairs.add(step, -step, bound=0.0)
    assert pairs.rejected == 2
    assert torch.equal(pairs.times(step[:, None])[:, 0], step)


def _on_ranks() -> Solution:
    import torch.distributed as dist

    examples, rank = one_hot_examples(3000, 4, 10), dist.get_rank()
    mine = LabelledRows(examples.rows.narrow(1500 * rank, 1500 * rank + 1500), examples.labels[1500 * rank :][:1500])
    objective = regression(mine, 1e-2, ranks=RowRanks.of())
    return pb_lbfgs(objective, objective.start(), tolerance=1e-12)


def test_two_ranks_take_the_same_steps_to_the_optimum_of_one() -> None:
    objective = regression(one_hot_examples(3000, 4, 10), 1e-2)
    exact = newton(objective, objective.start(), tolerance=1e-14).point
    first, second = run_ranks(_on_ranks, 2)
    assert torch.equal(first.point, second.point)
    assert [entry.sample_size for entry in first.history] == [entry.sample_size for entry in second.history]
    torch.testing.assert_close(first.point, exact, rtol=0, atol=1e-10)  # the gradient's 1e-12 over the penalty's 1e-2


def test_limits_stop_it_and_say_so() -> None:
    objective = _stretched()
    assert pb_lbfgs(objective, objective.start(), max_iterations=3).reason == "out of iterations"
    assert pb_lbfgs(objective, objective.start(), max_passes=0.2).reason == "out of passes"
    assert pb_lbfgs(objective, objective.start(), max_passes=1, overlap=0.5).history[-1].value < 0.6
    with pytest.raises(ValueError, match=r"overlap=0\.7 must be"):
        pb_lbfgs(objective, objective.start(), overlap=0.7)
