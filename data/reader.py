"""Reads batches from a source: shuffled, divided among ranks, from any position.

An epoch is one stream of examples: the blocks of the split in a seeded order, each with its examples in a seeded
order. Global batch g is the stream's rows [g * G, (g + 1) * G), and rank r of W takes the r-th of W equal parts of it.
So a position is (epoch, g), for any number of ranks. Where the batch changes in an epoch, it is (epoch, row): batches
are then counted from that row.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dlrmctl.data.batch import Batch, PickedRows, Piece, join_batch, pick_rows
from dlrmctl.data.errors import DataError
from dlrmctl.data.randomness import Use, permutation
from dlrmctl.data.source import Source, check_split


@dataclass(frozen=True)
class _StreamBlock:
    """A block, and its rows [start, stop) in the epoch's stream."""

    number: int
    start: int
    stop: int


class Reader:
    """The batches of one rank.

    Args:
        source: a `Store`, a `Synthetic`, or another `Source`.
        split: "train", "validation" or "test".
        batch_size: examples of a global batch, over all ranks; a multiple of `world_size`.
        rank, world_size: the part of each global batch that this reader yields.
        seed: seed of the shuffle.
        shuffle: False keeps the order of the source.
        drop_last: True omits the last, incomplete global batch of an epoch. False pads it with repeats of the last
            example; `num_valid` examples count on this rank, possibly 0.
        prefetch: number of blocks that a background thread works ahead; 0 uses no thread.
        pin_memory: use page-locked memory, for asynchronous copies to a GPU; needs CUDA.
        check: called with every batch while it is in main memory, in the background thread.

    Raises:
        DataError: if a number does not fit, or the split has no complete batch and `drop_last` is set.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        prefetch: int = 1,
        pin_memory: bool = False,
        check: Callable[[Batch], None] | None = None,
    ) -> None:
        check_split(split)
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise DataError(
                f"a global batch of {batch_size} examples cannot be cut into {world_size} equal parts",
                "choose a batch size that is a multiple of the number of ranks",
            )
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} must be at least 0 and below the number of ranks, {world_size}")
        if not 0 <= seed < 1 << 64:
            raise DataError(f"the seed {seed} must be at least 0 and below 2**64")
        if prefetch < 0:
            raise DataError(f"prefetch={prefetch} must be at least 0")
        self.source, self.split, self.seed, self.shuffle, self.pin_memory = source, split, seed, shuffle, pin_memory
        self.drop_last, self.prefetch, self.check = drop_last, prefetch, check
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.local_batch_size = batch_size // world_size
        self.batches_ahead = -(-prefetch * source.block_rows // batch_size)
        self.num_examples = source.num_examples(split)
        self.num_batches = self.batches_left(0)
        if self.num_batches == 0:
            raise DataError(
                f"the {split} split has {self.num_examples:,} examples, not one global batch of {batch_size:,}",
                f"choose a batch size of at most {self.num_examples:,}" if self.num_examples else None,
            )

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields this rank's parts of the global batches `start`, `start` + 1, ... of the epoch.

        Closing the iterator ends its background thread. Errors of the source are raised by the iterator.

        Raises:
            DataError: if `epoch` is negative or `start` is outside the epoch.
        """
        if not 0 <= start <= self.num_batches:
            raise DataError(f"batch {start} is outside the epoch of {self.num_batches} batches")
        return self.batches_from(epoch, start * self.batch_size)

    def batches_from(self, epoch: int, row: int) -> Iterator[Batch]:
        """Yields this rank's parts of the global batches that follow the first `row` rows of the epoch's stream.

        Raises:
            DataError: as `batches`.
        """
        if epoch < 0:
            raise DataError(f"epoch {epoch} must be at least 0")
        if row < 0 or self.batches_left(row) < 0:
            raise DataError(f"row {row} is outside the epoch of {self.num_examples} examples")
        return _ahead(self._batches(epoch, row), self.batches_ahead)

    def batches_left(self, row: int) -> int:
        """The number of global batches of an epoch that follow its first `row` rows."""
        left = self.num_examples - row
        return left // self.batch_size if self.drop_last else -(-left // self.batch_size)

    def resized(self, batch_size: int) -> "Reader":
        """Returns the same reader with another global batch.

        Raises:
            DataError: if it does not fit.
        """
        return Reader(
            self.source,
            self.split,
            batch_size=batch_size,
            rank=self.rank,
            world_size=self.world_size,
            seed=self.seed,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            prefetch=self.prefetch,
            pin_memory=self.pin_memory,
            check=self.check,
        )

    def _batches(self, epoch: int, first_row: int) -> Iterator[Batch]:
        size = self.local_batch_size
        pieces: list[Piece] = []
        filled, batch = 0, 0
        for place in self._blocks(epoch, first_row):
            rows = self._pick(epoch, first_row, place)
            at, count = 0, len(rows)
            while at < count:
                take = min(size - filled, count - at)
                pieces.append((rows, at, at + take))
                at, filled = at + take, filled + take
                if filled == size:
                    first = first_row + batch * self.batch_size + self.rank * size
                    num_valid = min(max(self.num_examples - first, 0), size)
                    joined = join_batch(pieces, self.source.schema.keys, num_valid, pin_memory=self.pin_memory)
                    if self.check is not None:
                        self.check(joined)
                    yield joined
                    pieces, filled, batch = [], 0, batch + 1

    def _end(self, first_row: int) -> int:
        """Returns the row after the last batch of those that start at `first_row`."""
        return first_row + self.batches_left(first_row) * self.batch_size

    def _blocks(self, epoch: int, first_row: int) -> list[_StreamBlock]:
        """Returns the blocks with stream rows from `first_row` on, in the epoch's order."""
        block_rows = self.source.block_rows
        num_blocks = -(-self.num_examples // block_rows)
        order = permutation(num_blocks, self.seed, Use.BLOCK_ORDER, epoch) if self.shuffle else np.arange(num_blocks)
        blocks, at, end = [], 0, self._end(first_row)
        for block in order.tolist():
            stop = at + min(block_rows, self.num_examples - block * block_rows)
            if stop > first_row and at < end:
                blocks.append(_StreamBlock(block, at, stop))
            at = stop
        return blocks

    def _pick(self, epoch: int, first_row: int, place: _StreamBlock) -> PickedRows:
        """Returns this rank's rows of a block, in the order of the stream."""
        block = self.source.read_block(self.split, place.number)
        end = self._end(first_row)
        start = max(place.start, first_row)
        # Repeats of the last example of the last block pad the last batch.
        stop = end if place.stop == self.num_examples else min(place.stop, end)
        if not self.shuffle and self.world_size == 1 and stop <= place.stop:
            return pick_rows(block, slice(start - place.start, stop - place.start))
        stream = np.arange(start, stop)
        if self.world_size > 1:
            stream = stream[(stream - first_row) % self.batch_size // self.local_batch_size == self.rank]
        places = np.minimum(stream, place.stop - 1) - place.start
        if self.shuffle:
            places = permutation(place.stop - place.start, self.seed, Use.ROW_ORDER, epoch, place.number)[places]
        return pick_rows(block, places)


def _ahead(batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """Yields the same batches, up to `depth` of them made ahead in a background thread."""
    if depth == 0:
        yield from batches
        return
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data-reader")
    try:
        waiting = deque(executor.submit(next, batches, None) for _ in range(depth))
        while True:
            waiting.append(executor.submit(next, batches, None))
            batch = waiting.popleft().result()
            if batch is None:
                return
            yield batch
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
