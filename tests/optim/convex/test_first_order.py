"""The methods that others are compared with do converge."""

import pytest
import torch

from dlrmctl.optim.convex.first_order import adam, largest_curvature, svrg
from dlrmctl.optim.convex.newton import newton
from dlrmctl.optim.convex.solve import choose_solver
from tests.optim.convex.problems import dense_examples, regression


def test_reduced_variance_leads_to_the_optimum() -> None:
    objective = regression(dense_examples(4000, 10), 1e-2)
    exact = newton(objective, objective.start(), tolerance=1e-13).point
    solution = svrg(objective, objective.start(), tolerance=1e-6, max_passes=60)
    assert solution.converged
    torch.testing.assert_close(solution.point, exact, rtol=0, atol=1e-4)  # the gradient's 1e-6 over the penalty's 1e-2
    passes = [entry.passes for entry in solution.history]
    assert passes[2] - passes[1] == pytest.approx(3 - 2 * (4000 % 64) / 4000)  # samples are whole


def test_adam_comes_close() -> None:
    objective = regression(dense_examples(4000, 10), 1e-2)
    optimum = newton(objective, objective.start()).value
    solution = adam(objective, objective.start(), lr=0.05, max_passes=10)
    assert objective.evaluate(solution.point).value - optimum < 1e-3  # measured 1e-4, from 0.2
    assert [round(entry.passes, 1) for entry in solution.history[:3]] == [0.1, 0.3, 0.6]


def test_the_largest_curvature_is_the_largest_eigenvalue() -> None:
    objective = regression(dense_examples(3000, 10, spread=0.1), 1e-3)
    exact = float(torch.linalg.eigvalsh(objective.hessian(objective.start()))[-1])
    assert 0.95 * exact < largest_curvature(objective, objective.start()) < 1.0001 * exact


def test_few_parameters_are_solved_by_newton() -> None:
    assert [choose_solver(number) for number in (1999, 2000)] == ["newton", "pb-lbfgs"]
