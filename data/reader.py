"""Reads batches from a source: shuffled, divided among ranks, from any position.

An epoch is one stream of examples. The blocks of the split in a seeded order, each with its examples in a seeded
order, are one sequence, which is cut into L lanes of about equal length; row s of the stream is row s // L of lane
s % L. Global batch g is the stream's rows [g * G, (g + 1) * G), sorted by lane, and rank r of W takes the r-th of W
equal parts of it. So a position is (epoch, g), for any number of ranks, and a rank reads the blocks of about L / W
lanes. Where the batch changes in an epoch, the position is (epoch, row): batches are then counted from that row.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dlrmctl.data.batch import Batch, PickedRows, Piece, join_batch, pick_rows, reorder
from dlrmctl.data.errors import DataError
from dlrmctl.data.randomness import Use, permutation
from dlrmctl.data.source import Expecting, Source, check_split

STREAM_ORDER = 2  # version of the order of examples in an epoch; a position in one is not a position in another
_OPEN_ROWS = 1 << 18  # in the blocks of all lanes of a shuffled epoch: a rank keeps its share in memory
_MOST_LANES = 64
_EXPECTED_ROWS = 1 << 15  # at least, after those that are read
WINDOW_ROWS = 1 << 16  # of the stream, picked at once: picking has a fixed cost for every lane
# Picked at most, on all ranks together: open blocks, half of them waiting for the lane that ends in them, and a window
# before and after it is brought into its order. Measured: 44 MiB of 62 MiB on one rank, 25 MiB on each of two.
MOST_ROWS_HELD = _OPEN_ROWS * 3 // 2 + 2 * WINDOW_ROWS


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
        prefetch: number of blocks, or of windows of 65,536 rows, that a background thread works ahead; 0: no thread.
        pin_memory: use page-locked memory, for asynchronous copies to a GPU; needs CUDA.
        check: called with every batch while it is in main memory, in the background thread.
        lanes: number of places from which a batch takes its examples. Default: as many as keep 262,144 rows open, at
            most 64; without shuffling 1, which keeps the order of the source in every batch.

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
        lanes: int | None = None,
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
        if lanes is None:
            lanes = min(max(_OPEN_ROWS // source.block_rows, 1), _MOST_LANES) if shuffle else 1
        self.lanes = lanes
        window_rows = max(source.block_rows, min(lanes * source.block_rows, WINDOW_ROWS))
        self.window = max(1, window_rows // batch_size)  # batches that are picked at once
        self.batches_ahead = -(-prefetch * window_rows // batch_size)
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
            lanes=self.lanes,
        )

    def _batches(self, epoch: int, first_row: int) -> Iterator[Batch]:
        blocks = _OpenBlocks(self, epoch)
        num_batches, size = self.batches_left(first_row), self.local_batch_size
        try:
            for first in range(0, num_batches, self.window):
                count = min(self.window, num_batches - first)
                rows, num_valid = self._pick(blocks, first_row + first * self.batch_size, count)
                for number in range(count):
                    piece = (rows, number * size, (number + 1) * size)
                    joined = join_batch([piece], self.source.schema.keys, num_valid[number], pin_memory=self.pin_memory)
                    if self.check is not None:
                        self.check(joined)
                    yield joined
        finally:
            blocks.close()

    def num_own_examples(self) -> int:
        """The number of examples of an epoch that count on this rank."""
        whole = self.num_examples // self.batch_size
        rest = 0 if self.drop_last else int(self._num_valid(*self._runs(whole * self.batch_size, 1)).sum())
        return whole * self.local_batch_size + rest

    def _runs(self, row: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first place in each lane, and the number of consecutive places, from which this rank takes its
        rows of `count` global batches from `row` on: [C, L] each."""
        lanes_L, rows_C1 = np.arange(self.lanes), row + np.arange(count)[:, None] * self.batch_size
        first_CL, after_CL = (-((lanes_L - rows) // self.lanes) for rows in (rows_C1, rows_C1 + self.batch_size))
        ends_CL = (after_CL - first_CL).cumsum(axis=1)  # of the lanes in the batch
        begins_CL = ends_CL - (after_CL - first_CL)
        mine = self.rank * self.local_batch_size, (self.rank + 1) * self.local_batch_size
        own_CL = begins_CL.clip(*mine)
        return first_CL + own_CL - begins_CL, ends_CL.clip(*mine) - own_CL

    def _num_valid(self, first_CL: np.ndarray, length_CL: np.ndarray) -> np.ndarray:
        """Returns how many rows of these runs are examples: [C]."""
        lane_lengths_L = np.diff(lane_edges(self.num_examples, self.lanes))
        return (lane_lengths_L - first_CL).clip(0, length_CL).sum(axis=1)

    def _pick(self, blocks: "_OpenBlocks", row: int, count: int) -> tuple[PickedRows, list[int]]:
        """Returns this rank's rows of `count` global batches from `row` on, and how many of each batch are valid."""
        first_CL, length_CL = self._runs(row, count)
        end = row + count * self.batch_size
        first, last = row // self.lanes, -(-end // self.lanes)
        pieces, starts_L, ends_L, at = list[Piece](), *np.zeros((2, self.lanes), dtype=np.int64), 0
        mine = np.flatnonzero(length_CL.any(axis=0)).tolist()
        blocks.expect(mine, first, last)
        for lane in mine:
            of_lane = blocks.rows_of(lane, first, last)
            pieces += of_lane
            starts_L[lane], at = at, at + sum(stop - start for _, start, stop in of_lane)
            ends_L[lane] = at
        blocks.forget_before(last)
        lengths = length_CL.ravel()
        shifts = (starts_L + first_CL - first).ravel() - (lengths.cumsum() - lengths)
        order_N = np.arange(count * self.local_batch_size) + shifts.repeat(lengths)
        num_valid = self._num_valid(first_CL, length_CL)
        if end > self.num_examples:  # repeats of the lanes' last rows follow the examples that count
            after_L = starts_L - first + np.diff(lane_edges(self.num_examples, self.lanes))
            after_N, ends_N = (np.tile(of_lane, count).repeat(lengths) for of_lane in (after_L, ends_L))
            sorted_CB = (order_N >= after_N).reshape(count, -1).argsort(axis=1, kind="stable")
            order_N = np.take_along_axis(np.minimum(order_N, ends_N - 1).reshape(count, -1), sorted_CB, axis=1).ravel()
        in_order = len(mine) == 1 and at == len(order_N)
        return reorder(pieces, None if in_order else order_N), num_valid.tolist()


class _OpenBlocks:
    """The sequence of an epoch, cut into lanes; keeps the parts of blocks that the lanes of a rank need.

    A block that lies between two lanes is cut there, and read once for both.

    Args:
        reader: whose source, split, seed, lanes and share to use.
    """

    def __init__(self, reader: Reader, epoch: int) -> None:
        self._reader, self._epoch = reader, epoch
        self._expecting = reader.source if isinstance(reader.source, Expecting) else None
        block_rows, examples, lanes = reader.source.block_rows, reader.num_examples, reader.lanes
        num_blocks = -(-examples // block_rows)
        self._order = np.arange(num_blocks)
        if reader.shuffle:
            self._order = permutation(num_blocks, reader.seed, Use.BLOCK_ORDER, epoch)
        self._edges = np.zeros(num_blocks + 1, dtype=np.int64)  # of the blocks in the sequence
        np.cumsum(np.minimum(block_rows, examples - self._order * block_rows), out=self._edges[1:])
        self._lanes = lane_edges(examples, lanes)
        self._cuts = np.union1d(self._edges, self._lanes)  # of the parts
        of_part = self._lanes.searchsorted(self._cuts[:-1], side="right") - 1
        self._ends = self._cuts[1:] - self._lanes[of_part]  # of the parts in their lanes
        share = (reader.rank * lanes // reader.world_size, -(-(reader.rank + 1) * lanes // reader.world_size))
        self._share = range(*self._cuts.searchsorted(self._lanes[list(share)]).tolist())
        self._open: dict[int, PickedRows] = {}

    def rows_of(self, lane: int, first: int, last: int) -> list[Piece]:
        """Returns the rows [first, last) of a lane; those after its end are omitted, but there is at least one."""
        start, stop = self._range(lane, first, last)
        part = int(self._cuts.searchsorted(start, side="right")) - 1
        pieces = []
        while start < stop:
            if part not in self._open:
                self._read(part, first)
            low, high = self._cuts[part : part + 2].tolist()
            pieces.append((self._open[part], start - low, min(stop, high) - low))
            start, part = high, part + 1
        return pieces

    def expect(self, lanes: Sequence[int], first: int, last: int) -> None:
        """Tells the source which blocks are read for the rows [first, last) of lanes, and for those after them."""
        if self._expecting is None:
            return
        numbers: dict[int, None] = {}
        for begin, end in ((first, last), (last, last + max(last - first, _EXPECTED_ROWS // self._reader.lanes))):
            for lane in lanes:
                start, stop = self._range(lane, begin, end)
                low, high = self._cuts.searchsorted(start, side="right") - 1, self._cuts.searchsorted(stop)
                parts = (part for part in range(int(low), int(high)) if part not in self._open)
                numbers |= dict.fromkeys(int(self._order[self._at(part)]) for part in parts)
        self._expecting.expect(self._reader.split, list(numbers))

    def close(self) -> None:
        """Tells the source that nothing more is read."""
        if self._expecting is not None:
            self._expecting.expect(self._reader.split, ())

    def _range(self, lane: int, first: int, last: int) -> tuple[int, int]:
        """The places in the sequence of the rows [first, last) of a lane: at least one."""
        begin, end = self._lanes[lane : lane + 2].tolist()
        stop = min(begin + last, max(end, 1))
        return max(min(begin + first, stop - 1), 0), stop

    def _at(self, part: int) -> int:
        """The place of the block of a part in the sequence of blocks."""
        return int(self._edges.searchsorted(self._cuts[part], side="right")) - 1

    def forget_before(self, place: int) -> None:
        """Forgets the parts that end before this place of their lane."""
        for part in [part for part in self._open if self._ends[part] < place]:
            del self._open[part]

    def _read(self, part: int, first: int) -> None:
        """Opens a part, and the others of its block that the rank will need from place `first` of their lanes on."""
        at = self._at(part)
        number, (low, high) = int(self._order[at]), self._edges[at : at + 2].tolist()
        block = self._reader.source.read_block(self._reader.split, number)
        order_N = None
        if self._reader.shuffle:
            order_N = permutation(len(block), self._reader.seed, Use.ROW_ORDER, self._epoch, number)
        for other in range(*self._cuts.searchsorted([low, high]).tolist()):
            if other == part or (other in self._share and other not in self._open and self._ends[other] > first):
                rows = slice(*(self._cuts[other : other + 2] - low).tolist())
                self._open[other] = pick_rows(block, rows if order_N is None else order_N[rows])


def lane_edges(examples: int, lanes: int) -> np.ndarray:
    """Returns the first row of each lane in the sequence of an epoch, and the end of the last: int64 [lanes + 1]."""
    lengths = (examples - np.arange(lanes) + lanes - 1) // lanes
    return np.concatenate([[0], np.cumsum(lengths)])


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
