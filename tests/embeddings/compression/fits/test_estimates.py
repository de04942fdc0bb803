import pytest
import torch

from dlrmctl.embeddings.compression.fits.estimates import Estimates
from dlrmctl.embeddings.compression.fits.methods import Method, least_bytes, most_bytes
from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.errors import NonFiniteValueError
from tests.embeddings.compression.tables import table_rows, weighted_error

METHODS = [
    Method.parse(name)
    for name in ("int8", "int4", "pca8-int4", "rq1x16", "rq1x256", "rq2x64", "rq4x64", "head5%+rq1x64", "head1%+rq2x64")
]


@pytest.mark.parametrize("even", [False, True])
def test_estimates_are_near_the_errors_of_fits(even: bool):
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(60, 16, generator=generator)
    weight = centers[torch.randint(60, (20_000,), generator=generator)]
    weight = 0.1 * (weight + torch.randn(20_000, 16, generator=generator))
    weights = torch.ones(20_000) if even else 1 / torch.arange(1, 20_001).float()
    table = TableRows(weight, weights)
    found = Estimates(table, METHODS, sample_rows=4096)
    for method in METHODS:
        error = weighted_error(table, method.fit(table).expand())
        # The codebooks of a sample of 4,096 rows, 16 for each center, and k-means that ends at another minimum.
        assert found.weighted_error(method) == pytest.approx(error, rel=0.2), method.name


def test_whether_a_head_needs_a_bitmap_is_known():
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    table = table_rows(5000)
    for rows in (table, TableRows(table.weight[order], table.weights[order])):
        found = Estimates(rows, METHODS)
        for method in METHODS:
            size = most_bytes if found.needs_bitmap(method) else least_bytes
            assert size(method, 5000, 16) == method.fit(rows).num_bytes, method.name


def test_a_value_that_is_not_finite_is_told_though_no_sample_holds_it():
    table = table_rows(20_000)
    table.weight[19_999, 3] = float("nan")
    with pytest.raises(NonFiniteValueError, match="row 19,999"):
        Estimates(table, METHODS, sample_rows=100)
