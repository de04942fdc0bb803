"""Newton's method finds the optimum, and refuses what has none or does not fit."""

from dataclasses import replace

import pytest
import torch

from dlrmctl.optim.convex.newton import newton
from dlrmctl.optim.convex.rows import DenseRows, SparseRows
from dlrmctl.optim.convex.solution import Iteration
from tests.optim.convex.problems import dense_examples, one_hot_examples, regression


def test_the_gradient_vanishes_at_a_quadratic_rate() -> None:
    objective = regression(dense_examples(3000, 20, spread=1e-2), 1e-4)
    solution = newton(objective, objective.start(), tolerance=1e-13)
    assert solution.converged
    norms = [entry.gradient_norm for entry in solution.history]
    assert len(norms) <= 9  # measured 7; each of the last steps squares the gradient
    assert objective.norm(objective.evaluate(solution.point).gradient) <= 1e-13
    assert solution.passes == pytest.approx(3 * len(norms) - 2)  # gradient, Hessian, line


def test_entries_in_pairs_give_the_hessian_of_dense_products() -> None:
    """Both ways of adding up, with rows of several lengths, an id named twice, and values."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 5, (60,), generator=generator)
    offsets = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
    ids = torch.randint(0, 40, (int(offsets[-1]),), generator=generator)
    values = torch.randn(len(ids), generator=generator, dtype=torch.float64)
    weights = torch.rand(60, generator=generator, dtype=torch.float64)
    for given in (None, values):
        rows = SparseRows(ids, offsets, 40, given)
        exact = DenseRows(rows.dense()).gram(weights)
        torch.testing.assert_close(rows.gram(weights), exact, rtol=1e-12, atol=1e-14)  # 40 > 8 * 4: pairs
        torch.testing.assert_close(rows._gram_of_dense(weights), exact, rtol=1e-12, atol=1e-14)


def test_a_warm_start_takes_fewer_iterations() -> None:
    objective = regression(one_hot_examples(2000, 4, 10), 1e-3)
    first = newton(objective, objective.start())
    near = newton(objective.with_l2(5e-4), first.point)
    assert len(near.history) < len(newton(objective.with_l2(5e-4), objective.start()).history)


def test_the_watch_sees_every_point_and_may_stop() -> None:
    objective = regression(dense_examples(500, 5), 1e-3)
    seen: list[Iteration] = []

    def watch(entry: Iteration) -> bool:
        seen.append(entry)
        return len(seen) == 3

    solution = newton(objective, objective.start(), watch=watch)
    assert (solution.reason, solution.converged, len(solution.history)) == ("stopped", False, 3)
    assert torch.equal(seen[0].point, objective.start())
    assert torch.equal(seen[-1].point, solution.point)


def test_a_constant_feature_needs_a_penalty() -> None:
    examples = dense_examples(500, 5)
    matrix = examples.rows.dense().clone()
    matrix[:, 2] = 3.0
    constant = replace(examples, rows=DenseRows(matrix))
    objective = regression(constant, 1e-3)
    point = newton(objective, objective.start()).point
    assert abs(float(point[2])) < 1e-8  # the intercept, which costs nothing, does its work
    with pytest.raises(ValueError, match="the Hessian is singular: some features are constant"):
        newton(objective.with_l2(0.0), objective.start())


def test_separable_classes_without_a_penalty_are_refused() -> None:
    examples = dense_examples(200, 3)
    labels = (examples.rows.dense()[:, 0] > 0.1).double()
    objective = regression(replace(examples, labels=labels), 0.0)
    with pytest.raises(ValueError, match="the classes are separable"):
        newton(objective, objective.start())


def test_many_parameters_are_refused_with_what_they_would_take() -> None:
    objective = regression(one_hot_examples(100, 2, 50_000), 1e-3)
    with pytest.raises(ValueError, match=r"100,001 parameters: .* take 223\.5 GiB, more than 4\.0 GiB"):
        newton(objective, objective.start())
