"""The stream of examples is the same wherever one starts and however many ranks share it."""

import threading
import time
from collections.abc import Sequence

import pytest
import torch

from dlrmctl.data.batch import Batch
from dlrmctl.data.errors import DataError
from dlrmctl.data.reader import Reader
from dlrmctl.data.source import Block
from tests.data.sources import Counting


def numbers(batch: Batch) -> list[int]:
    return [int(n) for n in batch.dense_BI[: batch.num_valid, 0]]


def same(a: Batch, b: Batch) -> bool:
    lengths = a.lengths_FB is b.lengths_FB is None or torch.equal(a.lengths_FB, b.lengths_FB)
    return lengths and all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("dense_BI", "ids", "labels_B"))


def join_ranks(parts: list[Batch]) -> Batch:
    """The global batch out of the ranks' parts, feature-major again."""
    features = len(parts[0].keys)
    lengths = [torch.ones(features, len(p), dtype=torch.int32) if p.lengths_FB is None else p.lengths_FB for p in parts]
    cut = [p.ids.split(n.sum(1).tolist()) for p, n in zip(parts, lengths, strict=True)]
    return Batch(
        torch.cat([p.dense_BI for p in parts]),
        torch.cat([c[f] for f in range(features) for c in cut]),
        None if parts[0].lengths_FB is None else torch.cat(lengths, 1),
        torch.cat([p.labels_B for p in parts]),
        parts[0].keys,
        sum(p.num_valid for p in parts),
    )


def test_an_epoch_has_every_example_once() -> None:
    batches = list(Reader(Counting(103), "train", batch_size=8, drop_last=False).batches(0))
    seen = [n for batch in batches for n in numbers(batch)]
    assert sorted(seen) == list(range(103))
    assert seen != list(range(103))
    assert all(len(batch) == 8 for batch in batches)


def test_every_column_of_an_example_moves_together() -> None:
    for batch in Reader(Counting(103), "train", batch_size=8).batches(3):
        n = batch.dense_BI[:, 0].long()
        assert torch.equal(batch.dense_BI[:, 1], -batch.dense_BI[:, 0])
        small, large = batch.ids.view(2, 8)
        assert torch.equal(small, n % 7)
        assert torch.equal(large, 2**24 + n)  # odd ids above 2**24 do not survive a float32
        assert torch.equal(batch.labels_B.long(), n % 2)
        assert batch.ids.dtype is torch.int64
        assert batch.dense_BI.dtype is batch.labels_B.dtype is torch.float32


def test_epochs_and_seeds_have_orders_of_their_own_and_keep_them() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        reader = Reader(Counting(100), "train", batch_size=10, seed=seed)
        return [n for batch in reader.batches(epoch) for n in numbers(batch)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_without_shuffle_the_order_is_that_of_the_source() -> None:
    reader = Reader(Counting(35), "train", batch_size=7, shuffle=False)
    assert [n for batch in reader.batches(5) for n in numbers(batch)] == list(range(35))


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_starting_anywhere_gives_the_same_batches(multi_hot: bool, prefetch: int, drop_last: bool) -> None:
    source = Counting(103, multi_hot=multi_hot)
    reader = Reader(source, "train", batch_size=12, rank=1, world_size=2, drop_last=drop_last, prefetch=prefetch)
    whole = list(reader.batches(1))
    assert len(whole) == reader.num_batches == (8 if drop_last else 9)
    for start in range(reader.num_batches + 1):
        rest = list(reader.batches(1, start))
        assert len(rest) == len(whole) - start
        assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 4, 12])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_together_read_what_one_rank_reads(multi_hot: bool, world_size: int, drop_last: bool) -> None:
    source = Counting(107, multi_hot=multi_hot)
    alone = Reader(source, "train", batch_size=12, drop_last=drop_last)
    ranks = [
        Reader(source, "train", batch_size=12, rank=rank, world_size=world_size, drop_last=drop_last).batches(2)
        for rank in range(world_size)
    ]
    count = 0
    for whole, *parts in zip(alone.batches(2), *ranks, strict=True):
        assert same(whole, join_ranks(parts))
        assert whole.num_valid == sum(part.num_valid for part in parts)
        count += 1
    assert count == alone.num_batches


def test_the_last_evaluation_batch_is_padded_even_where_a_rank_has_nothing() -> None:
    readers = [
        Reader(Counting(13), "test", batch_size=12, rank=r, world_size=4, shuffle=False, drop_last=False)
        for r in range(4)
    ]
    last = [list(reader.batches(0))[-1] for reader in readers]
    assert [batch.num_valid for batch in last] == [1, 0, 0, 0]
    assert [batch.dense_BI[:, 0].tolist() for batch in last] == [[12.0] * 3] * 4


def test_multi_hot_lists_keep_their_lengths() -> None:
    for batch in Reader(Counting(50, multi_hot=True), "train", batch_size=8).batches(0):
        n = batch.dense_BI[:, 0].long().tolist()
        assert batch.lengths_FB is not None
        assert batch.lengths_FB.dtype is torch.int32
        assert batch.lengths_FB.tolist() == [[1] * 8, [1] * 8, [k % 3 for k in n]]
        assert batch.ids[16:].tolist() == [i for k in n for i in range(k % 3)]


def test_a_batch_owns_its_memory() -> None:
    first = next(Reader(Counting(100, 100), "train", batch_size=4).batches(0))
    assert first.dense_BI.untyped_storage().nbytes() == 4 * 2 * 4
    assert first.ids.untyped_storage().nbytes() == 4 * 2 * 8


class Broken(Counting):
    def read_block(self, split: str, index: int) -> Block:
        if index == 3:
            raise DataError("block 3 is damaged")
        return super().read_block(split, index)


@pytest.mark.parametrize("prefetch", [0, 1])
def test_an_error_of_the_background_thread_reaches_the_caller_in_its_place(prefetch: int) -> None:
    batches = Reader(Broken(100), "train", batch_size=5, shuffle=False, prefetch=prefetch).batches(0)
    assert [numbers(next(batches))[0] for _ in range(6)] == [0, 5, 10, 15, 20, 25]
    with pytest.raises(DataError, match="block 3 is damaged"):
        next(batches)
    assert reader_threads() == 0


def reader_threads() -> int:
    return sum(thread.name.startswith("data-reader") for thread in threading.enumerate())


def test_closing_or_dropping_the_iterator_ends_its_thread() -> None:
    batches = Reader(Counting(100), "train", batch_size=5).batches(0)
    next(batches)
    assert reader_threads() == 1
    batches.close()  # type: ignore[attr-defined]
    assert reader_threads() == 0
    batches = Reader(Counting(100), "train", batch_size=5).batches(0)
    next(batches)
    del batches
    assert reader_threads() == 0


def test_the_next_block_is_prepared_while_the_caller_works() -> None:
    asked: list[int] = []

    class Watched(Counting):
        def read_block(self, split: str, index: int) -> Block:
            asked.append(index)
            return super().read_block(split, index)

    batches = Reader(Watched(100), "train", batch_size=10, shuffle=False).batches(0)
    next(batches)
    for _ in range(200):
        if asked == [0, 1]:
            break
        time.sleep(0.01)
    assert asked == [0, 1]
    list(batches)
    assert asked == list(range(10))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_source_is_told_which_blocks_are_read_next(shuffle: bool) -> None:
    class Told(Counting):
        told, unexpected, most = list[int](), list[int](), 0

        def expect(self, split: str, indices: Sequence[int]) -> None:
            self.told, self.most = list(indices), max(self.most, len(indices))

        def read_block(self, split: str, index: int) -> Block:
            if index not in self.told:
                self.unexpected.append(index)
            return super().read_block(split, index)

    source = Told(400_000, block_rows=1024)
    batches = Reader(source, "train", batch_size=4096, shuffle=shuffle, world_size=2, rank=1, prefetch=0).batches(0)
    assert sum(1 for _ in batches) == 97
    assert source.unexpected == []
    assert source.most <= (200 if shuffle else 40)  # of 391 blocks
    assert source.told == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 10, "world_size": 3}, "10 examples cannot be cut into 3 equal parts"),
        ({"batch_size": 10, "world_size": 2, "rank": 2}, "rank 2 must be at least 0 and below the number of ranks, 2"),
        ({"batch_size": 101}, "the train split has 100 examples, not one global batch of 101"),
        ({"batch_size": 10, "prefetch": -1}, "prefetch=-1 must be at least 0"),
        ({"batch_size": 10, "seed": -1}, "the seed -1 must be at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Reader(Counting(100), "train", **settings)  # type: ignore[arg-type]


def test_a_position_outside_the_epoch_is_refused() -> None:
    reader = Reader(Counting(100), "train", batch_size=10)
    with pytest.raises(DataError, match="batch 11 is outside the epoch of 10 batches"):
        reader.batches(0, 11)
    with pytest.raises(DataError, match="there is no split 'dev'"):
        Reader(Counting(100), "dev", batch_size=10)


@pytest.mark.parametrize("prefetch", [0, 1])
def test_every_batch_is_checked_before_it_is_passed_on(prefetch: int) -> None:
    checked: list[int] = []

    def check(batch: Batch) -> None:
        checked.append(batch.ids.device.index or 0)
        if len(checked) == 3:
            raise ValueError("feature a: id 7 must be below 5")

    batches = Reader(Counting(103), "train", batch_size=8, prefetch=prefetch, check=check).batches(0)
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(ValueError, match="feature a: id 7"):
        next(batches)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_that_changes_in_an_epoch_leaves_every_example_once(world_size: int) -> None:
    readers = [Reader(Counting(103), "train", batch_size=8, rank=r, world_size=world_size) for r in range(world_size)]
    seen, row = [], 0
    for size, count in ((8, 3), (12, 2), (20, 2)):
        readers = [reader.resized(size) for reader in readers]
        for reader in readers:
            batches = reader.batches_from(1, row)
            seen += [n for _ in range(count) for n in numbers(next(batches))]
        row += size * count
    assert [reader.batches_left(row) for reader in readers] == [0] * world_size
    assert len(seen) == len(set(seen)) == 88
    whole = [n for batch in Reader(Counting(103), "train", batch_size=1).batches(1) for n in numbers(batch)]
    assert sorted(seen) == sorted(whole[:88])
    resumed = [numbers(next(reader.batches_from(1, 48))) for reader in readers]
    assert sorted(n for part in resumed for n in part) == sorted(whole[48:68])
