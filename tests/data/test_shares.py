"""A rank reads about its share of the blocks, and what is read does not depend on the number of ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dlrmctl.data.batch import Batch
from dlrmctl.data.reader import Reader
from dlrmctl.data.source import Source
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import write_store
from tests.data.sources import Counting

COUNT, BLOCK = 40_000, 100


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shares") / "store"
    write_store(Counting(COUNT, BLOCK), path)
    return path


def numbers(batch: Batch) -> list[int]:
    """The numbers of the rows that count, from their ids: dense values of a store are rounded."""
    found: list[int] = (batch.ids.view(2, -1)[1, : batch.num_valid] - 2**24).tolist()
    return found


def epoch_of_ranks(
    open_source: Callable[[], Source], world_size: int, batch_size: int
) -> tuple[list[list[int]], list[Source]]:
    """The rows of every global batch of an epoch, sorted, and the source of each rank."""
    batches: list[list[int]] = []
    sources = [open_source() for _ in range(world_size)]
    for rank, source in enumerate(sources):
        reader = Reader(source, "train", batch_size=batch_size, rank=rank, world_size=world_size, prefetch=0)
        for number, batch in enumerate(reader.batches(1)):
            if rank == 0:
                batches.append([])
            batches[number] += numbers(batch)
    return [sorted(batch) for batch in batches], sources


def test_each_rank_reads_its_share_of_an_epoch_and_batches_keep_their_rows(store: Path) -> None:
    total, lanes = Store(store).manifest.splits["train"].bytes, 64
    alone, _ = epoch_of_ranks(lambda: Store(store), 1, 640)
    assert len({n // BLOCK for n in alone[0]}) == lanes
    for world_size in (1, 2, 4, 5):
        batches, sources = epoch_of_ranks(lambda: Store(store), world_size, 640)
        assert batches == alone
        # Ranks share lanes where they are not whole numbers of them, and blocks at both ends of their lanes.
        most_lanes = lanes // world_size + (2 if lanes % world_size else 0)
        for source in sources:
            assert isinstance(source, Store)
            assert source.bytes_read["train"] <= total * min(most_lanes / lanes + 2 * BLOCK / COUNT, 1)


def test_batches_of_a_store_of_large_blocks_keep_their_rows_on_more_ranks_than_lanes() -> None:
    alone, (source,) = epoch_of_ranks(lambda: Counting(150_000, 65_536), 1, 4_000)
    assert Reader(source, "train", batch_size=4_000).lanes == 4
    assert epoch_of_ranks(lambda: Counting(150_000, 65_536), 8, 4_000)[0] == alone


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_scoring_and_the_verification_of_a_split(store: Path, world_size: int) -> None:
    total, seen = Store(store).manifest.splits["test"].bytes, list[int]()
    most = total / world_size + total * BLOCK / COUNT
    for rank in range(world_size):
        ours, ranks = Store(store), {"rank": rank, "world_size": world_size}
        ours.verify("test", **ranks)
        verified = ours.bytes_read["test"]
        reader = Reader(ours, "test", batch_size=640, lanes=world_size, shuffle=False, drop_last=False, **ranks)
        for batch in reader.batches(0):
            seen += numbers(batch)
        assert verified <= most
        assert ours.bytes_read["test"] - verified <= most
    assert seen == list(range(COUNT))
