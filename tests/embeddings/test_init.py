from itertools import pairwise

import pytest
import torch

from embeddings.init import BLOCK_ROWS, Uniform, fill_rows, initial_distributions
from embeddings.tables import FeatureTable

UNIT = Uniform(-1.0, 1.0)


def _combined(feature: FeatureTable, dim: int, seed: int) -> torch.Tensor:
    """Initial vectors of all ids of a feature, [rows, dim]."""
    rows = feature.partition(torch.arange(feature.rows))
    vectors = []
    for table, distribution, index in zip(feature.tables(dim), initial_distributions(feature), rows, strict=True):
        weight = torch.empty(table.rows, table.dim)
        fill_rows(weight, distribution, table=table.name, seed=seed)
        vectors.append(weight[index])
    if feature.kind != "qr":
        return vectors[0]
    if feature.operation == "concat":
        return torch.cat(vectors, dim=1)
    return vectors[0] * vectors[1] if feature.operation == "mult" else vectors[0] + vectors[1]


@pytest.mark.parametrize("large", ["quotient", "remainder"])
@pytest.mark.parametrize(
    ("kind", "operation"), [("full", "mult"), ("hash", "mult"), ("qr", "mult"), ("qr", "add"), ("qr", "concat")]
)
def test_the_combined_vector_has_mean_and_variance_of_a_plain_table(kind, operation, large):
    n, dim = 40_000, 64
    feature = FeatureTable("a", n, kind=kind, collisions=200, operation=operation, large=large)
    x = _combined(feature, dim, seed=5)
    plain = 1 / (3 * n)
    # Both tables have 200 rows x 64 columns, 12,800 independent values: the variance of a uniform sample of that size
    # has a relative standard error of sqrt(0.8 / 12,800) = 0.8 %, and 1 % for the product. 4 % is four of them.
    assert abs(x.var() / plain - 1) < 0.04
    # A mean of 12,800 values of standard deviation sqrt(plain), six standard errors.
    assert abs(x.mean()) < 6 * (plain / 12_800) ** 0.5


def test_the_factor_of_a_product_is_near_one_and_never_zero():
    values, factor = initial_distributions(FeatureTable("a", 100, kind="qr", collisions=4))
    assert (values.low, factor.low > 0, (factor.low + factor.high) / 2) == (-values.high, True, 1.0)
    swapped = FeatureTable("a", 100, kind="qr", collisions=4, large="remainder")
    assert initial_distributions(swapped) == (factor, values)


@pytest.mark.parametrize("cuts", [[1], [65_000], [BLOCK_ROWS], [3, 65_536, 65_537, 131_072]])
def test_values_do_not_depend_on_how_the_rows_are_cut(cuts):
    total, dim = 131_100, 4
    whole = torch.empty(total, dim)
    fill_rows(whole, UNIT, table="t", seed=1)
    bounds = [0, *cuts, total]
    for start, end in pairwise(bounds):
        piece = torch.empty(end - start, dim)
        fill_rows(piece, UNIT, table="t", seed=1, first_row=start)
        assert torch.equal(piece, whole[start:end])


def test_tables_seeds_and_blocks_differ():
    def rows(table: str, seed: int, first_row: int = 0) -> torch.Tensor:
        out = torch.empty(10, 4)
        fill_rows(out, UNIT, table=table, seed=seed, first_row=first_row)
        return out

    reference = rows("a", 0)
    assert torch.equal(reference, rows("a", 0))
    for other in (rows("b", 0), rows("a", 1), rows("a", 0, BLOCK_ROWS)):
        assert not torch.equal(reference, other)


def test_no_rows_are_no_work():
    fill_rows(torch.empty(0, 4), UNIT, table="a", seed=0, first_row=7)
