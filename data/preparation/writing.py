"""The third phase of a preparation: writes labels, dense features and rows as the blocks of the store.

N examples of a block, I dense features, F sparse features.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dlrmctl.data.files import io_errors, read_array
from dlrmctl.data.formats.raw import RawFeature
from dlrmctl.data.preparation.encoding import EncodedColumn
from dlrmctl.data.preparation.parts import Parts
from dlrmctl.data.preparation.selection import Selection
from dlrmctl.data.preparation.unfinished import Journal
from dlrmctl.data.schema import Schema
from dlrmctl.data.source import SPLITS, Block
from dlrmctl.data.store.layout import block_record, pack
from dlrmctl.data.store.writer import StoreWriter
from dlrmctl.data.workers.pool import Shared, Workers


class Blocks:
    """Makes any block from the files of the earlier phases.

    Args:
        parts, selection: the rows, and which of them are examples.
        features: the features of the input.
        columns: the encoded sparse features.
        files: the files of their rows.
        schema: the schema of the store.
    """

    def __init__(
        self,
        parts: Parts,
        selection: Selection,
        features: Sequence[RawFeature],
        columns: Sequence[EncodedColumn],
        files: Sequence[Path],
        schema: Schema,
    ) -> None:
        self._parts, self._selection, self._schema = parts, selection, schema
        self._files, self._types = files, [column.dtype for column in columns]
        self._id_starts = [
            None if column.part_ids is None else np.concatenate(([0], np.cumsum(column.part_ids))) for column in columns
        ]
        self._one_hot = all(feature.max_ids == 1 for feature in features)

    def make(self, start: int, stop: int) -> tuple[bytes, bytes, int]:
        """Returns the block with the examples from `start` to `stop`.

        Returns:
            Its bytes, its record, and how many of the examples are labelled 1.
        """
        pieces = list(self._pieces(start, stop))
        parts = self._parts
        labels_N = np.concatenate([self._of_piece(parts.labels(p, a, b), chosen) for p, a, b, chosen in pieces])
        weights_N, groups_N = (
            None if named is None else np.concatenate([self._of_piece(read(p, a, b), rows) for p, a, b, rows in pieces])
            for named, read in ((self._schema.weight, parts.weights), (self._schema.group, parts.groups))
        )
        dense_IN = np.concatenate(
            [self._of_piece(self._parts.dense(p, a, b), chosen) for p, a, b, chosen in pieces], axis=1
        )
        lengths_FN = None if self._one_hot else np.ones((len(self._types), stop - start), dtype=np.int32)
        ids_F = []
        for f, dtype in enumerate(self._types):
            first, last = start, stop
            if self._id_starts[f] is not None:
                assert lengths_FN is not None
                first, lengths_FN[f] = self._lengths(f, pieces)
                last = first + int(lengths_FN[f].sum())
            ids_F.append(read_array(self._files[f], dtype, last - first, first * dtype.itemsize))
        stored = [feature.weights is not None for feature in self._schema.sparse]
        id_weights_F = [self._id_weights(f, pieces) if there else None for f, there in enumerate(stored)]
        block = Block(dense_IN, ids_F, labels_N, lengths_FN, weights_N, groups_N, id_weights_F if any(stored) else None)
        content = pack(self._schema, block)
        return content, block_record(content), int(np.count_nonzero(labels_N))

    def write(self, start: int, stop: int, file: Path) -> tuple[bytes, int]:
        """Writes the bytes of a block to a file; returns its record, and how many examples are labelled 1."""
        content, record, num_positives = self.make(start, stop)
        with io_errors(file, "write"):
            file.write_bytes(content)
        return record, num_positives

    def first_part(self, example: int) -> int:
        """Returns the part of an example; the number of parts for one after the last."""
        return int(np.searchsorted(self._selection.starts, example, side="right")) - 1

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int, np.ndarray | None]]:
        """Yields the places of examples: part, first row, row after the last, and which of these rows (None: all)."""
        starts = self._selection.starts
        part = self.first_part(start)
        while start < stop:
            first, end = start - int(starts[part]), min(stop, int(starts[part + 1])) - int(starts[part])
            kept_N = self._selection.kept(part)
            if kept_N is None and first < end:
                yield part, first, end, None
            elif kept_N is not None and first < end:
                rows = np.flatnonzero(kept_N)[first:end]
                yield part, int(rows[0]), int(rows[-1]) + 1, rows - rows[0]
            start, part = int(starts[part]) + end, part + 1

    def _of_piece(self, values: np.ndarray, chosen: np.ndarray | None) -> np.ndarray:
        return values if chosen is None else values[..., chosen]

    def _id_weights(self, f: int, pieces: Sequence[tuple[int, int, int, np.ndarray | None]]) -> np.ndarray:
        """Returns the weights of the ids of a feature."""
        found = []
        for part, start, stop, chosen in pieces:
            lengths_N = self._parts.lengths(part, f, 0, stop).astype(np.int64)
            weights = self._parts.id_weights(part, f, int(lengths_N[:start].sum()), int(lengths_N.sum()))
            if chosen is not None:
                kept_N = np.zeros(stop - start, dtype=bool)
                kept_N[chosen] = True
                weights = weights[np.repeat(kept_N, lengths_N[start:])]
            found.append(weights)
        return np.concatenate(found)

    def _lengths(self, f: int, pieces: Sequence[tuple[int, int, int, np.ndarray | None]]) -> tuple[int, np.ndarray]:
        """Returns the place of the pieces' first id in the file of a feature, and the lengths of all their lists."""
        part, start, _, _ = pieces[0]
        before_N, kept_N = self._parts.lengths(part, f, 0, start), self._selection.kept(part, start)
        id_starts = self._id_starts[f]
        assert id_starts is not None
        first = int(id_starts[part]) + int((before_N if kept_N is None else before_N[kept_N]).sum())
        lengths = [self._of_piece(self._parts.lengths(p, f, a, b), chosen) for p, a, b, chosen in pieces]
        return first, np.concatenate(lengths)


def write_blocks(
    blocks: Blocks,
    selection: Selection,
    parts: Parts,
    writer: StoreWriter,
    journal: Journal,
    workers: Workers,
    *,
    work: Path,
    progress: Callable[[int], None],
    save_seconds: float,
) -> dict[str, int]:
    """Writes the missing blocks, and frees the space of parts that are no longer needed.

    Args:
        blocks: makes the blocks.
        selection: the examples of each split.
        parts: the parts that `blocks` reads.
        writer: a writer at the journal's position "written".
        journal: is updated.
        workers: workers for blocks.
        work: directory for blocks that are made in other processes.
        progress: called with the number of examples that are written.
        save_seconds: seconds between two entries in the journal.

    Returns:
        The number of examples labelled 1, by split.

    Raises:
        DataError: if the disk is full.
    """
    positives: dict[str, int] = dict(journal.state.get("written", {}).get("positives", dict.fromkeys(SPLITS, 0)))
    state, saved = writer.state(), time.monotonic()
    todo = []
    for split in SPLITS:
        of_split = selection.split(split)
        rest = range(of_split.start + state[split]["examples"], of_split.stop, writer.block_rows)
        todo += [(split, start, min(start + writer.block_rows, of_split.stop)) for start in rest]
    made = _made(blocks, [(start, stop) for _, start, stop in todo], workers, work)
    removed = 0
    for (split, start, stop), (content, record, num_positives) in zip(todo, made, strict=True):
        writer.add_encoded(split, stop - start, content, record)
        positives[split] += num_positives
        if stop == todo[-1][2] or time.monotonic() - saved >= save_seconds:
            writer.sync()
            journal.state["written"] = {"state": writer.state(), "positives": positives}
            journal.save()
            saved = time.monotonic()
            for part in range(removed, blocks.first_part(stop)):
                parts.remove(part)
            removed = blocks.first_part(stop)
        progress(stop)
    return positives


def _made(
    blocks: Blocks, ranges: Sequence[tuple[int, int]], workers: Workers, work: Path
) -> Iterator[tuple[bytes, bytes, int]]:
    """Yields the bytes of blocks, their records, and how many of their examples are labelled 1."""
    if not workers.apart:
        yield from workers.in_order(partial(blocks.make, start, stop) for start, stop in ranges)
        return
    with io_errors(work, "write"):
        work.mkdir(exist_ok=True)
    shared = Shared(blocks)
    calls = (partial(_write_block, shared, start, stop, work / f"{start}.block") for start, stop in ranges)
    for (start, _), (record, num_positives) in zip(ranges, workers.in_order(calls), strict=True):
        file = work / f"{start}.block"
        with io_errors(file, "read"):
            content = file.read_bytes()
            file.unlink()
        yield content, record, num_positives


def _write_block(blocks: Shared[Blocks], start: int, stop: int, file: Path) -> tuple[bytes, int]:
    return blocks.get().write(start, stop, file)
