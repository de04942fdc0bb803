import pytest
import torch

from dlrmctl.embeddings.compression.fits.pairs import fit_buckets, fit_pair
from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.partitions.basic import QuotientRemainder
from tests.embeddings.compression.tables import table_rows, weighted_error

LAYOUTS = ("quotient", "remainder")


def _combine(pair, rows: int, divisor: int, operation: str) -> torch.Tensor:
    quotients, remainders = QuotientRemainder(rows, divisor)(torch.arange(rows))
    q_ND, r_ND = pair.quotient[quotients], pair.remainder[remainders]
    if operation == "concat":
        return torch.cat([q_ND, r_ND], 1)
    return q_ND * r_ND if operation == "mult" else q_ND + r_ND


def _even(weight: torch.Tensor) -> TableRows:
    return TableRows(weight, torch.ones(len(weight)))


@pytest.mark.parametrize("divisor", [5, 24])
def test_an_even_product_is_the_rank_1_svd_of_every_column(divisor: int):
    weight = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    pair = fit_pair(_even(weight), divisor, "mult", most_sweeps=500, tolerance=0)
    grids = weight.double().view(120 // divisor, divisor, 6).permute(2, 0, 1)
    best = float(torch.linalg.svdvals(grids)[:, 1:].square().sum())  # Eckart and Young
    # Sums of 720 float32 squares; the minimum is flat to first order.
    assert pair.losses[-1] == pytest.approx(best, rel=1e-5)
    assert weighted_error(_even(weight), _combine(pair, 120, divisor, "mult")) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("divisor", [5, 24])
def test_an_even_sum_is_row_mean_plus_column_mean_minus_grand_mean(divisor: int):
    weight = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    pair = fit_pair(_even(weight), divisor, "add")
    grid = weight.double().view(-1, divisor, 6)
    exact = grid.mean(1, keepdim=True) + grid.mean(0, keepdim=True) - grid.mean((0, 1))
    # Means of up to 24 numbers of about 1: some roundings of 2**-24.
    assert torch.allclose(_combine(pair, 120, divisor, "add").double(), exact.reshape(120, 6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("large", LAYOUTS)
@pytest.mark.parametrize("operation", ["mult", "add", "concat"])
def test_planted_tables_are_found(operation: str, large: str):
    generator = torch.Generator().manual_seed(1)
    rows = 1003  # the last group is not full
    partition = QuotientRemainder.of(rows, 8, large=large)
    width = 4 if operation == "concat" else 8
    q, r = (torch.randn(n, width, generator=generator) for n in partition.table_rows)
    planted = type("Pair", (), {"quotient": q, "remainder": r})
    weight = _combine(planted, rows, partition.divisor, operation)
    weights = torch.rand(rows, generator=generator) + 0.01
    table = TableRows(weight, weights)
    pair = fit_pair(table, partition.divisor, operation, most_sweeps=2000, tolerance=0)
    found = _combine(pair, rows, partition.divisor, operation)
    # Coordinate descent converges linearly, down to float32.
    assert float((found - weight).norm() / weight.norm()) < 1e-4


@pytest.mark.parametrize("large", LAYOUTS)
@pytest.mark.parametrize("operation", ["mult", "add", "concat"])
def test_the_loss_never_rises_and_is_that_of_the_tables(operation: str, large: str):
    table = table_rows(1003)
    divisor = QuotientRemainder.of(1003, 8, large=large).divisor
    pair = fit_pair(table, divisor, operation, tolerance=0)
    assert all(after <= before for before, after in zip(pair.losses, pair.losses[1:], strict=False))
    # The loss is summed in float64 from float32 residuals, before the gauge rounds both tables once more.
    expected = weighted_error(table, _combine(pair, 1003, divisor, operation))
    assert pair.losses[-1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("operation", ["mult", "add", "concat"])
def test_weights_lower_the_weighted_error(operation: str):
    table = table_rows(4000)
    even = TableRows(table.weight, torch.ones(4000))
    errors = [weighted_error(table, _combine(fit_pair(t, 8, operation), 4000, 8, operation)) for t in (table, even)]
    # A row of two halves has nothing but its halves to be near to: less is won there.
    assert errors[0] < (0.7 if operation == "concat" else 0.5) * errors[1]


def test_the_small_table_of_a_product_is_near_one():
    table = table_rows(1000)
    for divisor in (8, 125):
        pair = fit_pair(table, divisor, "mult")
        small = min(pair.quotient, pair.remainder, key=len)
        # A mean of at most 125 float32 quotients.
        assert torch.allclose(small.abs().mean(0), torch.ones(16), atol=1e-6)
        assert bool((small.sum(0) >= 0).all())


def test_no_step_can_improve_a_finished_fit():
    """The gradient of the weighted loss vanishes at the fitted tables, by float64 autograd."""
    table = table_rows(300, 8)
    pair = fit_pair(table, 6, "mult", most_sweeps=5000, tolerance=0)
    quotient, remainder = (t.double().requires_grad_() for t in (pair.quotient, pair.remainder))
    q, r = QuotientRemainder(300, 6)(torch.arange(300))
    loss = ((quotient[q] * remainder[r] - table.weight).square().sum(1) * table.weights).sum()
    loss.backward()
    # Against the size of the gradient's terms, |w E R| and |w E Q|.
    assert float(quotient.grad.norm()) < 1e-3 * float(loss.detach())
    assert float(remainder.grad.norm()) < 1e-3 * float(loss.detach())


def test_buckets_are_weighted_means():
    table = table_rows(500)
    buckets = fit_buckets(table, 7)
    for bucket in range(7):
        weights = table.weights[bucket::7].double()
        mean = (table.weight[bucket::7].double() * weights[:, None]).sum(0) / weights.sum()
        assert torch.allclose(buckets[bucket].double(), mean, rtol=0, atol=1e-6)  # 72 float32 summands below 1


def test_bad_requests_are_told():
    with pytest.raises(ValueError, match="must be one of mult, add, concat"):
        fit_pair(table_rows(10), 2, "times")
    with pytest.raises(ValueError, match="halves the columns"):
        fit_pair(table_rows(10, 3), 2, "concat")
