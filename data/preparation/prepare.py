"""Prepares a store from raw files: in memory that does not grow with the rows, on all cores, resumable.

The input is parsed into parts, which are arranged if the split does not follow the input; each sparse column is counted
over the training examples and encoded; labels, dense features and rows become the blocks of the store, and the parts
are removed. The journal records what is on disk, so that the same call continues after a kill and makes the same bytes.
Temporary space: about 135 bytes per row of Criteo for the parts, twice that while they are arranged, and the size of
the store's ids.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors
from dlrmctl.data.formats.raw import Input, RawFeature, RawPiece
from dlrmctl.data.preparation.arranging import (
    Arranged,
    KeyOrder,
    cut_by_keys,
    divide_parts,
    merge_parts,
    spans_of_passes,
)
from dlrmctl.data.preparation.counting import MOST_IN_MEMORY
from dlrmctl.data.preparation.dense import DenseFitter, EncodedDense
from dlrmctl.data.preparation.encoding import ColumnEncoder, EncodedColumn
from dlrmctl.data.preparation.keys import check_split, final_keys, keys_of
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.parsing import PART_ROWS, read_input
from dlrmctl.data.preparation.parts import PartInfo, Parts
from dlrmctl.data.preparation.report import PrepareProgress, PrepareReport, Progress
from dlrmctl.data.preparation.reuse import ExtendedEncoders, ReusedEncoders
from dlrmctl.data.preparation.selection import Selection, SplitSizes, check_sizes, cut_splits
from dlrmctl.data.preparation.tally import Tally, describe_preparation, summarize
from dlrmctl.data.preparation.unfinished import Journal, clear, partial_directory, partial_path, publish
from dlrmctl.data.preparation.writing import Blocks, write_blocks
from dlrmctl.data.schema import Schema, SparseFeature
from dlrmctl.data.source import SPLITS
from dlrmctl.data.splits import BY_COLUMN, DRAWN, Split
from dlrmctl.data.store.manifest import read_manifest
from dlrmctl.data.store.raw_sample import write_raw_sample
from dlrmctl.data.store.writer import StoreWriter
from dlrmctl.data.workers.pool import Workers

_UNITS = {"random": "rows", "group": "groups"}  # that a split draws
SAVE_SECONDS = 5.0  # between two entries of the journal


def prepare(
    input: Input,
    out: Path | str,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
    *,
    workers: int | Workers | None = None,
    part_rows: int = PART_ROWS,
    most_in_memory: int = MOST_IN_MEMORY,
    save_seconds: float = SAVE_SECONDS,
) -> PrepareReport:
    """Makes the store `out` from any input.

    Until it is complete, the work is in `OUT.partial`. That remains after an interruption or a system error, and the
    same call continues with it; after an error in the data it is removed.

    Args:
        input: the input.
        out: directory of the new store.
        options: the options; None means the defaults.
        progress: called with the progress, in the calling thread.
        workers: number of threads, None means one per core; or a pool. The result does not depend on it.
        part_rows: the least rows of a part, unless their texts are long.
        most_in_memory: values of a column's vocabulary in memory at a time. The result does not depend on it.
        save_seconds: seconds of work that a kill may lose, besides the current part or column.

    Raises:
        DataError: if a source cannot be used, too many lines are bad, the rows do not fill three splits, `out` exists,
            `OUT.partial` has other sources or options, or the disk is full.
    """
    options, out = options or PrepareOptions(), Path(out)
    check_split(options.split, input)
    reused = None if options.vocabulary_from is None else ReusedEncoders(Path(options.vocabulary_from), input)
    if options.extend is not None:
        reused = ExtendedEncoders(Path(options.extend), input)
    if not out.name:  # "." or "/"
        raise DataError(f"{out} already exists", "choose another output directory")
    begun = partial_path(out) / "journal.json"
    if out.exists() and not begun.exists():
        raise DataError(f"{out} already exists", "choose another output directory, or remove this one")
    pool = nullcontext(workers) if isinstance(workers, Workers) else Workers(workers)
    with partial_directory(out) as place, pool as threads:
        vocabulary = reused.identity() if reused else None
        task = {"input": dict(input.identity()), "options": {**options.to_dict(), "vocabulary": vocabulary}}
        journal = Journal(place, task)
        if out.exists() and not journal.state.get("complete"):
            raise DataError(f"{out} already exists", "choose another output directory, or remove this one")
        if not out.exists():
            run = _Run(input, place, options, reused, journal, threads, progress or (lambda _: None))
            run.to_the_end(part_rows, most_in_memory, save_seconds)
            journal.state["complete"] = True
            journal.save()
            publish(run.store, out)
        finished = read_manifest(out).preparation
        assert finished is not None, "the journal says that it is complete"
        report = PrepareReport.from_dict(finished.report)
        clear(place)
    return report


class _Run:
    """The phases, and their records in the journal."""

    def __init__(
        self,
        input: Input,
        place: Path,
        options: PrepareOptions,
        reused: ReusedEncoders | None,
        journal: Journal,
        workers: Workers,
        progress: Progress,
    ) -> None:
        self.store, self._work = place / "store", place / "work"
        self._input, self._options, self._reused, self._journal = input, options, reused, journal
        self._workers, self._progress = workers, progress
        with io_errors(place, "write"):
            self.store.mkdir(exist_ok=True)
            self._work.mkdir(exist_ok=True)

    def to_the_end(self, part_rows: int, most_in_memory: int, save_seconds: float) -> None:
        """Runs the remaining phases."""
        tally, parts = self._parts(part_rows)
        parts, cut, ends = self._arranged(tally, parts)
        selection = Selection(parts, cut, self._options, self._work / "kept", self._journal.state.get("kept"))
        if "kept" not in self._journal.state:
            self._journal.state["kept"] = selection.state()
            self._journal.save()
        dense = self._dense(parts, selection, most_in_memory)
        encoder = ColumnEncoder(
            parts,
            selection,
            self.store,
            self._work / "columns",
            self._options,
            self._reused,
            self._workers,
            most_in_memory,
        )
        columns = self._encode(encoder, tally, save_seconds)
        sparse = [
            SparseFeature(
                feature.name, column.entry.rows, feature.max_ids, feature.table, feature.pooling, feature.weights
            )
            for feature, column in zip(self._input.sparse, columns, strict=True)
        ]
        schema = Schema(
            tuple(self._input.dense),
            tuple(sparse),
            self._input.label,
            float32=tuple(column.fitted.name for column in dense if column.float32),
            gaps=tuple(column.fitted.name for column in dense if column.fitted.missing),
            weight=self._input.weight,
            group=self._input.group,
        )
        files = [encoder.rows_file(f) for f in range(len(sparse))]
        blocks = Blocks(parts, selection, self._input.sparse, columns, files, schema)
        written = self._journal.state.get("written", {}).get("state")
        with StoreWriter(self.store, schema, block_rows=self._options.block_rows, state=written) as writer:
            num_examples = int(selection.starts[-1])
            begun = sum(split["examples"] for split in writer.state().values())
            positives = write_blocks(
                blocks,
                selection,
                parts,
                writer,
                self._journal,
                self._workers,
                work=self._work / "blocks",
                progress=lambda done: self._progress(PrepareProgress("write", done, num_examples, tally.rows, begun)),
                save_seconds=save_seconds,
            )
            report = summarize(
                self._input, tally, dense, cut, ends, selection, columns, positives, writer.bytes_written
            )
            fingerprint = self._reused.fingerprint() if self._reused else None
            made = describe_preparation(self._input, self._options, columns, fingerprint, report)
            own = [column.fitted for column in dense]
            first = self._reused.dense if isinstance(self._reused, ExtendedEncoders) else ()
            writer.finish(made, name=self._options.name, dense=first or own, own_dense=own if first else ())

    def _parts(self, part_rows: int) -> tuple[Tally, Parts]:
        """The first phase: all rows on disk, and what was counted."""
        directory, state = self._work / "parts", self._journal.state
        infos = [PartInfo.from_dict(info) for info in state.get("parts", ())]
        by = self._options.split.by
        parts = self._new_parts(directory, infos, keyed=by in BY_COLUMN, ordered=by == "time")
        if "parts" not in state:
            tally = read_input(self._input, parts, self._options, self._workers, self._progress, part_rows)
            state["tally"] = tally.to_dict()
            state["parts"] = [info.to_dict() for info in parts.infos]
            self._journal.save()
        return Tally.from_dict(state["tally"]), parts

    def _new_parts(self, directory: Path, infos: Sequence[PartInfo], **keys: bool) -> Parts:
        input = self._input
        extras = {"weighted": input.weight is not None, "grouped": input.group is not None}
        return Parts(directory, input.dense, input.dense_type, input.sparse, infos, **keys, **extras)

    def _arranged(self, tally: Tally, parts: Parts) -> tuple[Parts, SplitSizes, Mapping[str, tuple[str, str]]]:
        """The parts with training rows first, the rows of the splits, and their first and last times, if they have."""
        split, state = self._options.split, self._journal.state
        if split.by in DRAWN:
            parts = self._divided(parts, split)
            in_splits = np.array([info.rows for info in parts.infos]).reshape(len(SPLITS), -1).sum(axis=1)
            return parts, SplitSizes(*in_splits.tolist()), {}
        if split.by == "time":
            if "arranged" not in state:
                self._cut(parts, split)
            found = Arranged.from_dict(state["arranged"])
            return self._in_order(parts, tally.rows), found.sizes, found.ends
        cut = cut_splits(split, [source.rows for source in tally.sources])
        starts = np.cumsum([0, *(info.rows for info in parts.infos)])
        part = int(np.searchsorted(starts, cut.train, side="right")) - 1
        self._find_raw_sample(parts, part, cut.train, cut.train + cut.validation - 1)
        return parts, cut, {}

    def _divided(self, parts: Parts, split: Split) -> Parts:
        """The rows of the parts, divided among the splits."""
        state, number = self._journal.state, len(parts)
        infos = [PartInfo.from_dict(info) for info in state.get("divided", ())]
        target = self._new_parts(self._work / "divided", infos)
        if not infos:
            rows = sum(info.rows for info in parts.infos)

            def told(done: int, begun: int) -> None:
                self._progress(PrepareProgress("arrange", done, rows, rows, begun))

            divide_parts(parts, target, split, self._workers, told)
            in_parts = np.array([info.rows for info in target.infos]).reshape(len(SPLITS), number)
            check_sizes(SplitSizes(*in_parts.sum(axis=1).tolist()), f"there are too few {_UNITS[split.by]}")
            self._find_raw_sample(parts, int((in_parts[1] > 0).argmax()), 1, 1)
            state["divided"] = [info.to_dict() for info in target.infos]
            self._journal.save()
        parts.remove_all()
        return target

    def _cut(self, parts: Parts, split: Split) -> None:
        """Records the splits of the rows in the order of time, and the passes that bring them there."""
        order = KeyOrder(parts)
        assert self._input.keyed_by in ("time", "number")
        arranged = cut_by_keys(order, split, self._input.keyed_by)
        sizes = arranged.sizes
        low, high = (order.around(rank)[0] for rank in (sizes.train, sizes.train + sizes.validation - 1))
        self._find_raw_sample(parts, order.first_part_with(low, high), low, high)
        self._journal.state["arranged"] = {**arranged.to_dict(), "spans": spans_of_passes(order), "passes": 0}
        self._journal.save()

    def _in_order(self, parts: Parts, rows: int) -> Parts:
        """Merges parts in the passes that the journal says; returns those of the last one."""
        arranged = self._journal.state["arranged"]
        spans, begun = arranged["spans"], arranged["passes"]
        if begun:
            self._of_pass(begun - 1).remove_all()
            parts = self._of_pass(begun, [PartInfo.from_dict(info) for info in arranged["parts"]])
        for number, span in enumerate(spans[begun:], begun + 1):
            before, target = (number - 1) * rows, self._of_pass(number)

            def told(done: int, begun: int, before: int = before) -> None:
                self._progress(PrepareProgress("arrange", before + done, len(spans) * rows, rows, before + begun))

            merge_parts(parts, target, span, self._workers, told)
            arranged |= {"passes": number, "parts": [info.to_dict() for info in target.infos]}
            self._journal.save()
            parts.remove_all()
            parts = target
        return parts

    def _of_pass(self, number: int, infos: Sequence[PartInfo] = ()) -> Parts:
        """The parts that a pass of arranging makes; pass 0 is the parsing."""
        return self._new_parts(self._work / (f"arranged-{number}" if number else "parts"), infos, keyed=True)

    def _find_raw_sample(self, parts: Parts, part: int, low: int, high: int) -> None:
        """Records where the raw validation rows begin that the store keeps.

        Args:
            parts: the parts in the order of the input.
            part: the first one with a validation row.
            low, high: the least and the greatest key of these rows.
        """
        state = self._journal.state
        if self._options.raw_sample and "dense" not in state:
            after = parts.about(part - 1)["position"] if part else None
            first_row = sum(info.rows for info in parts.infos[:part])
            state["sample"] = {"after": after, "first_row": first_row, "keys": [low, high]}

    def _dense(self, parts: Parts, selection: Selection, most_in_memory: int) -> list[EncodedDense]:
        """The dense features, fitted over the training examples, while a worker writes the raw sample."""
        state, options = self._journal.state, self._options
        if "dense" not in state:
            fitter = DenseFitter(parts, selection, self._work / "dense", self._workers, most_in_memory)
            sample = state.get("sample")
            writing = sample and self._workers.submit(
                partial(
                    write_raw_sample,
                    self._input,
                    self.store,
                    options.raw_sample,
                    partial(_with_keys, options.split, keys_of(options.split, self._input), *sample["keys"]),
                    after=sample["after"],
                    first_row=sample["first_row"],
                    limit=options.limit,
                )
            )
            try:
                fitted = [column.to_dict() for column in fitter.fit(self._input.dense)]
            finally:
                wait([writing] if writing else [])
            if writing:
                writing.result()
            state["dense"] = fitted
            self._journal.save()
        return [EncodedDense.from_dict(values) for values in state["dense"]]

    def _encode(self, encoder: ColumnEncoder, tally: Tally, save_seconds: float) -> list[EncodedColumn]:
        """Runs the second phase: encodes the remaining columns."""
        columns = [EncodedColumn.from_dict(values) for values in self._journal.state.get("columns", ())]
        features, begun, saved, saved_at = self._input.sparse, len(columns), len(columns), time.monotonic()
        groups = _groups(features)
        order = [f for group in groups for f in group]

        def progress(f: int, share: float) -> None:
            done, total = int((f + share) * tally.rows), len(features) * tally.rows
            self._progress(PrepareProgress("encode", done, total, tally.rows, begun * tally.rows))

        todo = [group for group in groups if len(columns) <= order.index(group[0])]  # not by an earlier call
        firsts = [order.index(group[0]) for group in todo]
        given = [({f: features[f] for f in g}, tally.largest.get(features[g[0]].name, 0)) for g in todo]
        for found in encoder.encode_all(given, lambda number, share: progress(firsts[number], share)):
            columns += found
            if len(columns) == len(features) or time.monotonic() - saved_at >= save_seconds:
                encoder.sync(columns[saved:])
                self._journal.state["columns"] = [column.to_dict() for column in columns]
                self._journal.save()
                saved, saved_at = len(columns), time.monotonic()
        return [columns[order.index(f)] for f in range(len(features))]


def _groups(features: Sequence[RawFeature]) -> list[list[int]]:
    """Returns the numbers of the features that share ids, by their first one; most share none."""
    groups: dict[str, list[int]] = {}
    for f, feature in enumerate(features):
        groups.setdefault(f"table {feature.table}" if feature.table else f"own {feature.name}", []).append(f)
    return list(groups.values())


def _with_keys(
    split: Split,
    keys: Callable[[Sequence[RawPiece]], np.ndarray] | None,
    low: int,
    high: int,
    piece: RawPiece,
    first: int,
) -> np.ndarray:
    """Returns which rows of a piece have a key in [low, high]; `first` is the number of its first row."""
    keys_N = final_keys(split, keys and keys([piece]), first, len(piece))
    return (keys_N >= np.uint64(low)) & (keys_N <= np.uint64(high))
