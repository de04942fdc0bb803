import pytest
import torch

from dlrmctl.embeddings.partitions.basic import DoubleHash, mix
from tests.embeddings.reference import splitmix64


def test_the_hash_is_splitmix64():
    ids = [0, 1, 2, 2**31, 2**53 + 1, 2**62 + 12345]
    for seed in (0, 1, 7):
        assert mix(torch.tensor(ids), seed).tolist() == [splitmix64(i, seed) for i in ids]
    # The generator's published first outputs from state 1234567, cut to 63 bits.
    assert splitmix64(1234567, 0) == 6457827717110365317
    assert splitmix64(1234567, 1) == 3203168211198807973


def test_rows_are_spread_evenly_and_the_two_hashes_are_unrelated():
    count, buckets = 200_000, 100
    first, second = DoubleHash(count, buckets)(torch.arange(count))
    for rows in (first, second):
        # Chi squared with 99 degrees of freedom: mean 99, standard deviation 14. Six of them.
        expected = count / buckets
        assert abs(float(((rows.bincount(minlength=buckets) - expected) ** 2 / expected).sum()) - 99) < 6 * 14.1
    pairs = (first * buckets + second).bincount(minlength=buckets**2).double()
    cells = buckets**2 - 1
    assert abs(float(((pairs - 20) ** 2 / 20).sum()) - cells) < 6 * (2 * cells) ** 0.5


def test_one_changed_bit_changes_half_of_the_others():
    ids = torch.arange(2000)
    for bit in (0, 13, 40):
        changed = mix(ids, 0) ^ mix(ids ^ (1 << bit), 0)
        ones = sum(float(((changed >> b) & 1).double().mean()) for b in range(63))
        # 2000 x 63 fair coins: 31.5 expected, a standard error of sqrt(63 / 4 / 2000) = 0.09. Six of them.
        assert abs(ones - 31.5) < 0.54


def test_two_ids_rarely_share_both_rows_but_may():
    partition = DoubleHash(40_000_000, 1000)
    assert not partition.complementary
    ids = torch.arange(2000)
    first, second = partition(ids)
    same = 2000 - (first * 1000 + second).unique().numel()
    # 2000^2 / 2 pairs, a millionth of them: 2 expected, Poisson; above 12 once in a million.
    assert same <= 12
    assert first.unique().numel() < 1000


def test_dtype_and_bounds():
    for rows in DoubleHash(6, 4)(torch.arange(6, dtype=torch.int32).view(2, 3)):
        assert (rows.dtype, rows.shape) == (torch.int32, (2, 3))
        assert 0 <= int(rows.min()) <= int(rows.max()) < 4
    with pytest.raises(ValueError, match="buckets=0 must be at least 1"):
        DoubleHash(5, 0)
