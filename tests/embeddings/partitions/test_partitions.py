import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrmctl.embeddings.partitions.basic import Full, Hash, Partition, QuotientRemainder

LARGE = 40_000_000


def assert_distinct(partition: Partition, ids: torch.Tensor) -> None:
    """No two of the ids share all their rows, and every row exists."""
    rows = partition(ids)
    assert torch.stack(rows).unique(dim=1).shape[1] == ids.numel()
    for used, num_rows in zip(rows, partition.table_rows, strict=True):
        assert int(used.min()) >= -1  # -1 is no row
        assert int(used.max()) < num_rows


def neighbourhoods() -> torch.Tensor:
    """Ids below `LARGE` in groups of 64 neighbours, where rounding would make two one; the end is where it would leave
    the table."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.cat([torch.randint(LARGE - 64, (2000,), generator=generator), torch.tensor([LARGE - 64, 2**24])])
    return (starts[:, None] + torch.arange(64)).unique()


@settings(max_examples=60)
@given(rows=st.integers(1, 400), collisions=st.integers(1, 420), large=st.sampled_from(["quotient", "remainder"]))
def test_every_id_has_its_own_pair_of_rows_and_all_rows_exist(rows, collisions, large):
    partition = QuotientRemainder.of(rows, collisions, large=large)
    ids = torch.arange(rows)
    assert partition.complementary
    assert_distinct(partition, ids)
    for used, num_rows in zip(partition(ids), partition.table_rows, strict=True):
        assert used.min() == 0
        assert used.max() == num_rows - 1


@pytest.mark.parametrize("collisions", [4, 60, 7919])
@pytest.mark.parametrize("large", ["quotient", "remainder"])
def test_pairs_stay_distinct_at_forty_million_rows(collisions, large):
    assert_distinct(QuotientRemainder.of(LARGE, collisions, large=large), neighbourhoods())


def test_hashing_tells_only_full_tables_apart():
    assert Full(9).complementary
    assert not Hash(9, 4).complementary
    assert_distinct(Full(9), torch.arange(9))
    assert Hash(9, 4)(torch.arange(9))[0].unique().numel() == 4


@pytest.mark.parametrize("id_", [2**24 + 1, 2**31 + 1, 2**40 + 3, 2**53 + 1, 2**62 + 1])
def test_large_ids_are_exact(id_):
    ids = torch.tensor([id_])
    quotient, remainder = QuotientRemainder(2**62 + 2, 7)(ids)
    assert (quotient.item(), remainder.item()) == divmod(id_, 7)
    assert Hash(2**62 + 2, 1_000_003)(ids)[0].item() == id_ % 1_000_003
    assert Full(2**62 + 2)(ids)[0].item() == id_


def test_layouts_differ_in_who_shares_a_row_of_the_large_table():
    ids = torch.tensor([0, 1, 5])
    assert QuotientRemainder.of(10, 2, large="quotient").table_rows == (5, 2)
    assert QuotientRemainder.of(10, 2, large="quotient")(ids)[0].tolist() == [0, 0, 2]
    assert QuotientRemainder.of(10, 2, large="remainder").table_rows == (2, 5)
    assert QuotientRemainder.of(10, 2, large="remainder")(ids)[1].tolist() == [0, 1, 0]


def test_rows_keep_the_shape_and_dtype_of_the_ids():
    ids = torch.arange(6, dtype=torch.int32).view(2, 3)
    for rows in (*QuotientRemainder(6, 4)(ids), *Hash(6, 4)(ids), *Full(6)(ids)):
        assert rows.shape == (2, 3)
        assert rows.dtype == torch.int32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Full(0), "rows=0 must be at least 1"),
        (lambda: Hash(5, 0), "buckets=0 must be at least 1"),
        (lambda: QuotientRemainder(5, 0), "divisor=0 must be at least 1"),
        (lambda: QuotientRemainder.of(5, 0), "collisions=0 must be at least 1"),
        (lambda: QuotientRemainder.of(5, 2, large="q"), "large='q' must be 'quotient' or 'remainder'"),
    ],
)
def test_numbers_out_of_bounds_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
