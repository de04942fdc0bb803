import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrmctl.embeddings.partitions.basic import QuotientRemainder
from dlrmctl.embeddings.partitions.heads import Head, HeadHash, HeadTail, Tail
from tests.embeddings.partitions.test_partitions import LARGE, assert_distinct, neighbourhoods


def _head_tail(rows: int, head: int, collisions: int, large: str = "quotient") -> HeadTail:
    return HeadTail(Head(rows, head), Tail(head, QuotientRemainder.of(rows - head, collisions, large=large)))


@settings(max_examples=60)
@given(data=st.data(), rows=st.integers(2, 300), large=st.sampled_from(["quotient", "remainder"]))
def test_every_id_of_a_head_and_a_complementary_tail_has_its_own_rows(data, rows, large):
    head = data.draw(st.integers(1, rows - 1))
    partition = _head_tail(rows, head, data.draw(st.integers(1, rows)), large)
    assert partition.complementary
    assert_distinct(partition, torch.arange(rows))


def test_ids_stay_apart_at_forty_million_rows():
    assert_distinct(_head_tail(LARGE, 1_000_003, 60), neighbourhoods())


def test_an_id_is_in_the_head_or_in_the_tail():
    ids = torch.arange(100)
    own, quotient, remainder = _head_tail(100, 30, 7)(ids)
    assert torch.equal(own[:30], ids[:30])
    assert (own[30:] == -1).all()
    assert torch.equal(quotient < 0, ids < 30)
    assert torch.equal(remainder < 0, ids < 30)
    assert quotient[30:].tolist() == [(i - 30) // 7 for i in range(30, 100)]


def test_a_hashed_tail_shares_the_rows_behind_the_head():
    partition = HeadHash(100, 30, 8)
    [rows] = partition(torch.arange(100))
    assert not partition.complementary
    assert partition.table_rows == (38,)
    assert rows[:30].tolist() == list(range(30))
    assert rows[30:].tolist() == [30 + (i - 30) % 8 for i in range(30, 100)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Head(5, 0), "head=0 must be at least 1"),
        (lambda: HeadHash(5, 5, 1), "head=5 must be below rows=5"),
        (lambda: HeadHash(5, 2, 0), "buckets=0 must be at least 1"),
    ],
)
def test_numbers_out_of_bounds_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
