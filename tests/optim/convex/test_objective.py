"""The sum, its derivatives and its moments equal what autograd and plain dense algebra say, however rows are read."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dlrmctl.optim.convex.objective import LogisticRegression, Rescaled, RowRanks, RowSample
from dlrmctl.optim.convex.rows import DenseRows, LabelledRows, RowsInMemory, SparseRows
from tests.optim.convex.problems import dense_examples, one_hot_examples, regression
from tests.ranks import run_ranks

L2 = 1e-3


def _weighted(examples: LabelledRows) -> LabelledRows:
    weights = torch.rand(len(examples.labels), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return replace(examples, weights=weights + 0.5)


def _with_values(examples: LabelledRows) -> LabelledRows:
    rows = examples.rows
    assert isinstance(rows, SparseRows)
    values = torch.randn(len(rows.ids), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return replace(examples, rows=replace(rows, values=values))


CASES = {
    "dense": lambda: dense_examples(257, 7),
    "one-hot": lambda: one_hot_examples(257, 3, 5),
    "weighted, with values": lambda: _weighted(_with_values(one_hot_examples(257, 3, 5))),
}


def _direct(examples: LabelledRows, point: Tensor, rows: slice = slice(None)) -> Tensor:
    """The objective by its definition."""
    matrix, labels = examples.rows.dense()[rows], examples.labels[rows]
    weights = torch.ones_like(examples.labels) if examples.weights is None else examples.weights
    losses = binary_cross_entropy_with_logits(matrix @ point[:-1] + point[-1], labels, reduction="none")
    return (weights[rows] * losses).sum() / weights[rows].sum() + 0.5 * L2 * point[:-1].square().sum()


def _point(size: int, seed: int = 3) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_value_gradient_and_hessian_are_those_of_autograd(make: Callable[[], LabelledRows]) -> None:
    examples = make()
    objective = regression(examples, L2, batch_rows=100)
    point = _point(objective.num_parameters)
    found = objective.evaluate(point)
    exact = {"rtol": 1e-12, "atol": 1e-14}  # sums of 257 terms in another order
    torch.testing.assert_close(torch.tensor(found.value, dtype=torch.float64), _direct(examples, point), **exact)
    gradient = torch.func.grad(lambda x: _direct(examples, x))(point)
    torch.testing.assert_close(found.gradient, gradient, **exact)
    hessian = torch.func.hessian(lambda x: _direct(examples, x))(point)
    torch.testing.assert_close(objective.hessian(point), hessian, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(objective.diagonal(point), hessian.diagonal(), rtol=1e-10, atol=1e-13)
    roots = torch.cat(list(objective.root_rows(point)))
    torch.testing.assert_close(roots.T @ roots + objective.penalty.diag(), hessian, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_variances_are_those_of_the_gradients_of_rows(make: Callable[[], LabelledRows]) -> None:
    examples = make()
    if isinstance(examples.rows, SparseRows):  # a row that names an id once
        assert (examples.rows.dense() != 0).sum() == len(examples.rows.ids)
    objective = regression(examples, L2, batch_rows=100)
    point, direction = _point(objective.num_parameters), _point(objective.num_parameters, 4)
    sample, rows = RowSample(40, 140), slice(40, 140)
    weights = torch.ones(100).double() if examples.weights is None else examples.weights[rows]
    matrix = torch.cat([examples.rows.dense()[rows], torch.ones(100, 1).double()], dim=1)
    errors = weights * ((matrix @ point).sigmoid() - examples.labels[rows]) * (100 / weights.sum())
    gradients = errors[:, None] * matrix
    found = objective.evaluate(point, sample)
    line = objective.along(point, direction, [0.0, 0.3], sample, probe=direction)
    rounding = {"rel": 1e-11}
    assert found.variance == pytest.approx(float((gradients - gradients.mean(0)).square().sum(1).mean()), **rounding)
    assert line.variance == pytest.approx(float((gradients @ direction).var(correction=0)), **rounding)
    values = [float(_direct(examples, point + step * direction, rows)) for step in (0.0, 0.3)]
    assert line.values == pytest.approx(values, **rounding)


def test_a_sample_past_the_last_row_continues_at_the_first() -> None:
    examples = dense_examples(100, 4)
    objective = regression(examples, L2, batch_rows=30)
    point = _point(5)
    order = torch.cat([torch.arange(80, 100), torch.arange(0, 35)])
    again = regression(LabelledRows(examples.rows.take(order), examples.labels[order]), L2)
    torch.testing.assert_close(
        objective.evaluate(point, RowSample(80, 135)).gradient, again.evaluate(point).gradient, rtol=1e-12, atol=1e-14
    )
    assert objective.rows_read == 55


class _Stream:
    """A source that keeps nothing, in batches of odd sizes."""

    def __init__(self, examples: LabelledRows) -> None:
        self.examples, self.num_rows, self.num_features = examples, examples.rows.num_rows, examples.rows.num_features

    def read(self, start: int, stop: int) -> Iterator[LabelledRows]:
        for begin in range(start, stop, 17):
            yield RowsInMemory._cut(self.examples, begin, min(begin + 17, stop))


def test_a_stream_is_as_good_as_memory() -> None:
    examples = one_hot_examples(257, 3, 5)
    streamed, kept = LogisticRegression(_Stream(examples), l2=L2), regression(examples, L2)
    point, sample = _point(16), RowSample(200, 300)
    exact = {"rtol": 1e-12, "atol": 1e-14}  # sums in another order
    torch.testing.assert_close(
        streamed.evaluate(point, sample).gradient, kept.evaluate(point, sample).gradient, **exact
    )
    torch.testing.assert_close(streamed.hessian(point), kept.hessian(point), **exact)
    assert streamed.start().equal(kept.start())


def test_other_units_change_the_gradient_and_not_the_optimum() -> None:
    objective = regression(dense_examples(200, 4, spread=1e-2), L2)
    point = _point(5)
    scaled = Rescaled(objective, objective.diagonal(point).rsqrt())
    torch.testing.assert_close(scaled.hessian(point / scaled.scale).diagonal(), torch.ones(5).double())
    torch.testing.assert_close(
        scaled.evaluate(point / scaled.scale).gradient, scaled.scale * objective.evaluate(point).gradient
    )


def _on_ranks() -> list[Tensor]:
    """Every rank has a third or two thirds of the rows."""
    import torch.distributed as dist

    examples, cut = _weighted(one_hot_examples(300, 3, 5)), (slice(0, 100), slice(100, 300))[dist.get_rank()]
    rows = examples.rows.narrow(cut.start, cut.stop)
    mine = LabelledRows(rows, examples.labels[cut], examples.weights[cut])  # type: ignore[index]
    objective = regression(mine, L2, ranks=RowRanks.of())
    point = _point(objective.num_parameters)
    found = objective.evaluate(point)
    line = objective.along(point, point, [0.5], None, probe=point)
    numbers = [found.value, found.variance, *line.values, line.variance]
    return [found.gradient, objective.hessian(point), objective.start(), torch.tensor(numbers, dtype=torch.float64)]


def test_two_ranks_with_unequal_shares_see_the_sum_of_one() -> None:
    objective = regression(_weighted(one_hot_examples(300, 3, 5)), L2)
    point = _point(objective.num_parameters)
    found, line = objective.evaluate(point), objective.along(point, point, [0.5], None, probe=point)
    numbers = torch.tensor([found.value, found.variance, *line.values, line.variance], dtype=torch.float64)
    alone = [found.gradient, objective.hessian(point), objective.start(), numbers]
    for mine in run_ranks(_on_ranks, 2):
        torch.testing.assert_close(mine, alone, rtol=1e-11, atol=1e-13)  # another order of additions


def test_an_id_that_a_row_names_twice_counts_twice() -> None:
    rows = SparseRows(torch.tensor([2, 2, 0]), torch.tensor([0, 2, 2, 3]), 3)
    assert rows.dense().tolist() == [[0, 0, 2], [0, 0, 0], [1, 0, 0]]
    assert rows.times(torch.eye(3).double()).tolist() == rows.dense().tolist()
    assert rows.take(torch.tensor([2, 0])).dense().tolist() == [[1, 0, 0], [0, 0, 2]]
    assert rows.transposed_times(torch.tensor([1.0, 1.0, 5.0]).double()).tolist() == [5, 0, 2]


def _bad(**changes: Tensor) -> RowsInMemory:
    return RowsInMemory(replace(dense_examples(20, 2), **changes))


NAN = torch.full((20,), float("nan"), dtype=torch.float64)
SIGN = torch.tensor([-1.0, 1.0] * 10).double()


@pytest.mark.parametrize(
    ("source", "l2", "message"),
    [
        (_bad(labels=torch.ones(20).double()), 1e-3, "all 20 rows have the label 1"),
        (_bad(labels=NAN), 1e-3, "labels must be in"),
        (_bad(rows=DenseRows(torch.stack([SIGN, NAN], 1))), 1e-3, "features must be finite"),
        (_bad(rows=SparseRows.one_hot(torch.tensor([[0, 5]] * 20), 5)), 1e-3, "without the number of features, 5"),
        (_bad(rows=SparseRows(torch.zeros(3).int(), torch.arange(21), 5)), 1e-3, "end with the number of ids"),
        (_bad(weights=-torch.ones(20).double()), 1e-3, "not negative"),
        (_bad(), float("nan"), "l2=nan must be at least 0"),
        (_bad(rows=DenseRows(SIGN[:, None].relu()), labels=SIGN.relu()), 0.0, "feature 0 occurs with one label only"),
        (_bad(weights=torch.zeros(20).double()), 1e-3, "all weigh 0"),
    ],
)
def test_examples_without_an_optimum_are_refused(source: RowsInMemory, l2: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogisticRegression(source, l2=l2)


def test_separable_classes_without_a_penalty_are_refused_once_they_are_separated() -> None:
    objective = LogisticRegression(_bad(rows=DenseRows(SIGN[:, None]), labels=SIGN.relu()), l2=0.0)
    point = torch.tensor([3.0, 0.0]).double()
    objective.evaluate(point)
    with pytest.raises(ValueError, match="the classes are separable"):
        objective.check_optimum()
