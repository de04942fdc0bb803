import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dlrmctl.embeddings.partitions.basic import QuotientRemainder
from dlrmctl.embeddings.partitions.radix import ChineseRemainder, MixedRadix, ceil_root
from tests.embeddings.partitions.test_partitions import LARGE, assert_distinct, neighbourhoods


@settings(max_examples=60)
@given(
    rows=st.integers(1, 400),
    ways=st.integers(2, 5),
    collisions=st.integers(1, 500),
    kind=st.sampled_from([MixedRadix, ChineseRemainder]),
)
def test_every_id_has_its_own_rows_and_all_of_them_exist(rows, ways, collisions, kind):
    partition = kind.of(rows, ways, collisions)
    assert partition.complementary
    assert len(partition.table_rows) == ways
    assert_distinct(partition, torch.arange(rows))


@settings(max_examples=60)
@given(moduli=st.lists(st.integers(1, 12), min_size=1, max_size=4), share=st.floats(0.01, 1))
def test_any_moduli_of_enough_rows_tell_all_ids_apart(moduli, share):
    rows = max(1, int(math.prod(moduli) * share))
    assert_distinct(MixedRadix(rows, tuple(moduli)), torch.arange(rows))
    assume(math.lcm(*moduli) == math.prod(moduli))
    assert_distinct(ChineseRemainder(rows, tuple(moduli)), torch.arange(rows))


@pytest.mark.parametrize("kind", [MixedRadix, ChineseRemainder])
@pytest.mark.parametrize(("ways", "collisions"), [(2, 4), (3, 60), (4, 7919), (3, LARGE)])
def test_ids_stay_apart_at_forty_million_rows(kind, ways, collisions):
    assert_distinct(kind.of(LARGE, ways, collisions), neighbourhoods())


def test_two_digits_are_remainder_and_quotient():
    ids = torch.arange(1000)
    low, high = MixedRadix(1000, (7, 143))(ids)
    quotient, remainder = QuotientRemainder(1000, 7)(ids)
    assert torch.equal(low, remainder)
    assert torch.equal(high, quotient)


@pytest.mark.parametrize(
    ("rows", "ways", "collisions", "moduli"),
    [
        (1000, 3, 4, (250, 2, 2)),
        (1000, 3, 1000, (10, 10, 10)),
        (1001, 3, 10**9, (11, 10, 10)),
        (10**12, 4, 10**12, (1000, 1000, 1000, 1000)),
        (5, 3, 1, (5, 1, 1)),
        (1, 2, 9, (1, 1)),
    ],
)
def test_moduli_follow_the_collisions_down_to_the_root(rows, ways, collisions, moduli):
    assert MixedRadix.of(rows, ways, collisions).moduli == moduli


def test_coprime_moduli_are_hardly_more():
    for rows in (100, 12_345, 10**6, LARGE):
        for ways, collisions in ((2, 4), (3, 64), (4, rows)):
            digits = sum(MixedRadix.of(rows, ways, collisions).moduli)
            # Up to 4 numbers, each moved on by the few steps to the next one without a common divisor.
            assert sum(ChineseRemainder.of(rows, ways, collisions).moduli) < 1.1 * digits + 20


@pytest.mark.parametrize("id_", [2**24 + 1, 2**53 + 1, 2**62 + 1])
def test_large_ids_are_exact(id_):
    moduli = (1_000_003, 999_983, 5_000_011)
    low, middle, high = (int(x) for x in MixedRadix(2**62 + 2, moduli)(torch.tensor([id_])))
    assert low + moduli[0] * (middle + moduli[1] * high) == id_
    assert [int(x) for x in ChineseRemainder(2**62 + 2, moduli)(torch.tensor([id_]))] == [id_ % m for m in moduli]


@given(number=st.integers(1, 2**62), degree=st.integers(1, 6))
def test_roots_are_rounded_up(number, degree):
    root = ceil_root(number, degree)
    assert root**degree >= number
    assert (root - 1) ** degree < number


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixedRadix(9, (2, 4)), r"moduli \(2, 4\) have a product of 8, too few for rows=9"),
        (lambda: ChineseRemainder(9, (4, 6)), r"moduli \(4, 6\) must be pairwise coprime"),
        (lambda: MixedRadix(9, (0, 9)), "modulus=0 must be at least 1"),
        (lambda: MixedRadix.of(9, 1, 1), "ways=1 must be at least 2"),
        (lambda: ChineseRemainder.of(0, 2, 1), "rows=0 must be at least 1"),
        (lambda: MixedRadix.of(9, 2, 0), "collisions=0 must be at least 1"),
    ],
)
def test_numbers_that_do_not_work_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
