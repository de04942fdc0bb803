from itertools import pairwise

import pytest
import torch

from dlrmctl.embeddings.compression.fits.codebook import Codebooks, alternate, coding_error, fit_codes
from dlrmctl.embeddings.compression.fits.methods import Method
from dlrmctl.embeddings.compression.fits.trained import TableRows
from tests.embeddings.compression.tables import table_rows, weighted_error


def _decode(fitted) -> torch.Tensor:
    rows = [book[fitted.codes[:, i].long()] for i, book in enumerate(fitted.codebooks)]
    return torch.stack(rows).sum(0)


@pytest.mark.parametrize("operation", ["sum", "concat"])
def test_the_loss_never_rises(operation: str):
    table = table_rows(6000)
    fitted = fit_codes(table, 4, 32, operation, passes=6, sample_rows=2000)
    pairs = zip(fitted.losses, fitted.losses[1:], strict=False)
    # Codebooks are rounded to float32 after each pass, which at the minimum can cost 2**-24 of the loss's terms.
    assert all(after <= before * (1 + 1e-6) for before, after in pairs)
    if operation == "sum":  # means of clusters have converged on the sample, which holds all heavy rows
        assert fitted.losses[-1] < 0.99 * fitted.losses[0]


def test_a_single_code_is_chosen_anew_in_each_pass():
    table = table_rows(3000)
    model = Codebooks(torch.randn(1, 16, table.dim, generator=torch.Generator().manual_seed(0)), "sum")  # far from all
    bad = torch.zeros(3000, 1, dtype=torch.int64)
    assert torch.equal(model.encode(table.weight, bad), model.encode(table.weight, None))
    codes, losses = torch.empty(3000, 1, dtype=torch.uint8), []
    for _ in range(5):
        best = coding_error(model, table)
        losses += alternate(model, table, codes, 2)
        assert losses[-2] == pytest.approx(best)
    # Codebooks are rounded to float32 after each pass.
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(losses))
    assert losses[1] < 0.9 * losses[0]
    assert losses[-1] < 0.9 * losses[1]


def test_the_loss_is_that_of_the_codes():
    table = table_rows(3000)
    fitted = fit_codes(table, 2, 64, passes=3)
    # Codebooks moved once more after the last loss, which can only lower it.
    assert weighted_error(table, _decode(fitted)) <= fitted.losses[-1] * (1 + 1e-6)


def test_codebooks_are_least_squares_for_their_codes():
    table = table_rows(2000, 8)
    fitted = fit_codes(table, 3, 16)
    books = fitted.codebooks.double().requires_grad_()
    rows = torch.stack([books[i][fitted.codes[:, i].long()] for i in range(3)]).sum(0)
    (((rows - table.weight).square().sum(1)) * table.weights).sum().backward()
    at_zero = float((table.weight.double() * table.weights[:, None]).norm())
    # The ridge holds back a millionth of a step; codebooks are rounded to float32.
    assert float(books.grad.norm()) < 1e-5 * at_zero


def test_two_planted_codebooks_are_found():
    generator = torch.Generator().manual_seed(3)
    books = torch.randn(2, 8, 16, generator=generator) * torch.tensor([4.0, 1.0])[:, None, None]
    codes = torch.randint(8, (5000, 2), generator=generator)
    table = TableRows(books[0][codes[:, 0]] + books[1][codes[:, 1]], torch.ones(5000))
    fitted = fit_codes(table, 2, 8)
    assert float((_decode(fitted) - table.weight).norm() / table.weight.norm()) < 1e-4  # float32 and the ridge


def test_weights_lower_the_weighted_error():
    table = table_rows(20_000)
    even = TableRows(table.weight, torch.ones(20_000))
    errors = [weighted_error(table, _decode(fit_codes(t, 2, 64))) for t in (table, even)]
    assert errors[0] < 0.5 * errors[1]


def test_learned_codes_beat_quotient_and_remainder_at_equal_bytes():
    table = table_rows(20_000)
    codes = Method.parse("rq2x256").fit(table)
    pair = Method.parse("qr-mult16-int8").fit(table)
    more_bytes = Method.parse("qr-mult6-int8").fit(table)
    errors = {c: weighted_error(table, c.expand()) for c in (codes, pair, more_bytes)}
    assert pair.num_bytes < codes.num_bytes < more_bytes.num_bytes
    assert errors[codes] < 0.2 * errors[more_bytes] < errors[pair]


def test_fewer_rows_than_codes_are_kept_exactly():
    table = table_rows(40)
    fitted = fit_codes(table, 1, 256)
    assert fitted.codebooks.shape == (1, 40, 16)
    # Sums divided by their one weight.
    assert torch.allclose(_decode(fitted), table.weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("num_codes", [1, 3])
def test_one_row_and_equal_rows_are_kept(num_codes: int):
    for rows in (1, 50):
        weight = torch.full((rows, 8), 0.25)
        fitted = fit_codes(TableRows(weight, torch.ones(rows)), num_codes, 16)
        assert torch.allclose(_decode(fitted), weight, atol=1e-6)


def test_large_codebooks_have_two_byte_codes():
    fitted = fit_codes(table_rows(1000, 4), 1, 300)
    assert fitted.codes.dtype == torch.int16
    assert fitted.codebooks.shape == (1, 300, 4)


def test_the_same_seed_gives_the_same_codes():
    table = table_rows(3000)
    first, second, other = (fit_codes(table, 2, 32, seed=seed, sample_rows=1000) for seed in (1, 1, 2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.codebooks, second.codebooks)
    assert not torch.equal(first.codebooks, other.codebooks)


def test_bad_requests_are_told():
    with pytest.raises(ValueError, match="16 columns cannot be divided into 3 equal parts"):
        fit_codes(table_rows(50), 3, 8, "concat")
    with pytest.raises(ValueError, match="more than 4096 rows"):
        fit_codes(table_rows(3000), 2, 2500)
    with pytest.raises(ValueError, match="from 1 to 32768"):
        fit_codes(table_rows(10), 1, 0)
