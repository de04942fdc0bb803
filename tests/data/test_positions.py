"""An epoch that is stopped anywhere and continued, on any number of ranks, has every row exactly once."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrmctl.data.batch import Batch
from dlrmctl.data.reader import Reader
from dlrmctl.data.source import Source
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import write_store
from tests.data.sources import Counting

BATCH = 12  # can be cut for 1, 2, 3, 4, 6 and 12 ranks


def check_columns(batch: Batch, *, multi_hot: bool) -> list[int]:
    """The numbers of the rows that count; every column of a row must agree with them."""
    numbers = [round(x) for x in batch.dense_BI[:, 0].tolist()]
    count = len(numbers)
    assert batch.dense_BI[:, 1].tolist() == [-n for n in numbers]
    assert batch.ids[:count].tolist() == [n % 7 for n in numbers]
    assert batch.ids[count : 2 * count].tolist() == [2**24 + n for n in numbers]
    assert batch.labels_B.tolist() == [n % 2 for n in numbers]
    if multi_hot:
        assert batch.lengths_FB is not None
        assert batch.lengths_FB[2].tolist() == [n % 3 for n in numbers]
        assert batch.ids[2 * count :].tolist() == [i for n in numbers for i in range(n % 3)]
    return numbers[: batch.num_valid]


def read_epoch(
    source: Source, epoch: int, stages: list[tuple[int, int]], *, shuffle: bool, drop_last: bool, multi_hot: bool
) -> list[int]:
    """All rows of an epoch that several jobs read, each continuing where the previous one stopped.

    Args:
        stages: ranks of each job, and the global batch it stops before.
    """
    seen: list[int] = []
    start = 0
    for world_size, stop in stages:
        readers = [
            Reader(
                source,
                "train",
                batch_size=BATCH,
                rank=rank,
                world_size=world_size,
                seed=5,
                shuffle=shuffle,
                drop_last=drop_last,
            )
            for rank in range(world_size)
        ]
        stop = min(stop, readers[0].num_batches)
        parts = [reader.batches(epoch, start) for reader in readers]
        for _ in range(start, stop):
            for part in parts:
                batch = next(part)
                assert len(batch) == BATCH // world_size
                seen += check_columns(batch, multi_hot=multi_hot)
        if stop == readers[0].num_batches:
            assert [next(part, None) for part in parts] == [None] * world_size
        for part in parts:
            part.close()  # type: ignore[attr-defined]
        start = stop
    return seen


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_no_row_is_read_twice_and_none_is_lost_when_the_ranks_change(
    tmp_path: Path, multi_hot: bool, drop_last: bool, shuffle: bool
) -> None:
    count = 1003
    write_store(Counting(count, block_rows=100, multi_hot=multi_hot), tmp_path / "store")
    store = Store(tmp_path / "store")
    whole = read_epoch(store, 0, [(1, count)], shuffle=shuffle, drop_last=drop_last, multi_hot=multi_hot)
    left_out = count % BATCH if drop_last else 0
    assert len(whole) == len(set(whole)) == count - left_out
    assert set(whole) <= set(range(count))
    for stops in [(31, 70), (1, 2), (33, 34), (83, 84), (0, 83)]:
        stages = [(2, stops[0]), (3, stops[1]), (1, count)]
        seen = read_epoch(store, 0, stages, shuffle=shuffle, drop_last=drop_last, multi_hot=multi_hot)
        assert Counter(seen) == Counter(whole)  # with `drop_last` the same rows are omitted, too


@settings(max_examples=40)
@given(
    count=st.integers(1, 200),
    block_rows=st.integers(1, 70),
    shuffle=st.booleans(),
    multi_hot=st.booleans(),
    stages=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 20)), max_size=3),
)
def test_stages_of_any_length_and_size_read_every_row_once(
    count: int, block_rows: int, shuffle: bool, multi_hot: bool, stages: list[tuple[int, int]]
) -> None:
    source = Counting(count, block_rows, multi_hot=multi_hot)
    going_on = sorted(stages, key=lambda stage: stage[1])
    seen = read_epoch(source, 3, [*going_on, (1, count)], shuffle=shuffle, drop_last=False, multi_hot=multi_hot)
    assert sorted(seen) == list(range(count))


def test_every_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    source = Counting(500, 64)
    orders = [
        read_epoch(source, epoch, [(2, 20), (3, 500)], shuffle=True, drop_last=False, multi_hot=False)
        for epoch in range(4)
    ]
    assert all(sorted(order) == list(range(500)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
