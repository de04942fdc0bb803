"""The second phase of a preparation: counts the values of each column and turns them into rows of tables.

Threads work on the parts of a column. A column's rows are written to their own file, in the order of the examples; an
interrupted column is done again.
N examples of a part; a feature with lists may have more or fewer ids.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.data.features.columns import (
    RARE_COUNT_TYPE,
    REUSED_TYPE,
    UNSEEN_TYPE,
    VOCABULARY,
    ColumnEntry,
    KeptEncoder,
    counts_file,
    rare_files,
    reused_file,
    texts_files,
    unseen_file,
    vocabulary_file,
)
from dlrmctl.data.features.dense import KEY_TYPE, fit, to_keys
from dlrmctl.data.features.encoders import AsRows, Bucketing, Encoder, Hashing, Vocabulary
from dlrmctl.data.features.kept_array import KeptArray
from dlrmctl.data.features.kept_texts import KeptTexts
from dlrmctl.data.features.text_writer import TextWriter
from dlrmctl.data.files import io_errors, read_array, sync_file
from dlrmctl.data.formats.raw import RawFeature
from dlrmctl.data.hashed_texts import HashedTexts, texts_at
from dlrmctl.data.preparation.counting import (
    Ranked,
    ValueCounter,
    rank_values,
    start_counts,
    write_counts,
    write_rare,
)
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.parts import Parts
from dlrmctl.data.preparation.reuse import ExtendedEncoders, ReusedEncoders
from dlrmctl.data.preparation.selection import Selection
from dlrmctl.data.schema import RARE_ROW, RESERVED_ROWS
from dlrmctl.data.sealed import Values
from dlrmctl.data.store.layout import narrowest
from dlrmctl.data.workers.pool import Alone, Shared, Workers

_MOST_COUNTED = 1 << 24  # rows of a hashed table whose counts are kept: more are mostly zeros
_SHARE_OF_COUNTING = 0.5  # of the time for a column
_NO_ROWS = np.empty(0, np.int64)
ShareDone = Callable[[float], None]  # called with the share of a column that is done


@dataclass(frozen=True)
class IdSums:
    """Sums over a column: examples, ids, examples without a value, and rare ids."""

    examples: int = 0
    ids: int = 0
    missing: int = 0
    rare: int = 0

    def __add__(self, other: "IdSums") -> "IdSums":
        return IdSums(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class EncodedColumn:
    """An encoded column, whose rows are in their file.

    Attributes:
        entry: entry of the manifest.
        cardinality: distinct values among the training examples; None if they were not counted.
        file: name of the file of rows.
        dtype: type of a row.
        part_ids: number of ids in each part, if the feature has lists.
        train, held_out: sums over the training split, and over the other two.
    """

    entry: ColumnEntry
    cardinality: int | None
    file: str
    dtype: np.dtype
    part_ids: list[int] | None
    train: IdSums
    held_out: IdSums

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "entry": self.entry.to_dict(),
            "cardinality": self.cardinality,
            "file": self.file,
            "type": self.dtype.str,
            "ids": self.part_ids,
            "train": astuple(self.train),
            "held_out": astuple(self.held_out),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EncodedColumn":
        """Parses what `to_dict` returned."""
        return cls(
            ColumnEntry.from_values(Values(values["entry"])),
            values["cardinality"],
            values["file"],
            np.dtype(values["type"]),
            values["ids"],
            IdSums(*values["train"]),
            IdSums(*values["held_out"]),
        )


@dataclass(frozen=True)
class PartRows:
    """The rows of a part of a column.

    Attributes:
        rows: rows of the column's type.
        train, held_out: sums over the training examples, and over those after them.
        counted: distinct rows of the training examples, ascending, and their counts, if requested.
    """

    rows: np.ndarray
    train: IdSums
    held_out: IdSums
    counted: tuple[np.ndarray, np.ndarray] | None


class ColumnParts:
    """One sparse column of the parts, with the work of threads on each part.

    Args:
        parts, selection: the rows, and which of them are examples.
        f: number of the feature.
        feature: the feature of the input.
    """

    def __init__(self, parts: Parts, selection: Selection, f: int, feature: RawFeature) -> None:
        self._parts, self._selection, self.f, self.feature = parts, selection, f, feature

    def __iter__(self) -> Iterator[int]:
        """The numbers of the parts."""
        return iter(range(len(self._parts)))

    def count(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distinct values of the training examples in a part, ascending, and their counts."""
        values, present_N, _ = self._examples(part, self._selection.train_rows[part])
        if present_N is not None and not present_N.all():
            values = values[present_N]
        return np.unique(values, return_counts=True)

    def encode(
        self, part: int, encoder: Encoder, row_type: np.dtype, *, known: tuple[Path, int] | None, count: bool
    ) -> PartRows:
        """Encodes a part.

        Args:
            part: its number.
            encoder: the encoder of the column, or the next piece of its vocabulary.
            row_type: type of the rows.
            known: file with the rows from earlier pieces of the vocabulary, and the part's place in it.
            count: whether to count the rows.
        """
        values, present_N, lengths_N = self._examples(part, self._parts.infos[part].rows)
        if known is None:
            rows = encoder.encode(values, present_N).astype(row_type, copy=False)
        else:
            path, start = known
            rows = read_array(path, row_type, len(values), start * row_type.itemsize)
            unknown = np.flatnonzero(rows == RARE_ROW)
            rows[unknown] = encoder.encode(values[unknown], None)
        there_N = present_N if lengths_N is None else lengths_N
        assert there_N is not None
        num_train = min(max(self._selection.num_train - int(self._selection.starts[part]), 0), len(there_N))
        train_ids = num_train if lengths_N is None else int(lengths_N[:num_train].sum())
        rare_type = isinstance(encoder, Vocabulary)
        return PartRows(
            rows,
            _sums(there_N[:num_train], rows[:train_ids], rare_type),
            _sums(there_N[num_train:], rows[train_ids:], rare_type),
            np.unique(rows[:train_ids], return_counts=True) if count else None,
        )

    def text_places(self, part: int, vocabulary: Encoder) -> np.ndarray:
        """Returns int64 [K]: places in the vocabulary of the texts of a part; below 0 if not in this piece."""
        rows = vocabulary.encode(self._parts.text_words(part, self.f), None).astype(np.int64)
        return rows - RESERVED_ROWS

    def texts(self, part: int, chosen: np.ndarray) -> HashedTexts:
        """Returns some of the texts of a part."""
        return self._parts.texts(part, self.f).pick(chosen)

    def _examples(self, part: int, stop: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Returns the examples among the first `stop` rows of a part: values, and whether present or the lengths."""
        kept_N = self._selection.kept(part, stop)
        if self.feature.max_ids == 1:
            values, present_N = self._parts.values(part, self.f, stop), self._parts.present(part, self.f, stop)
            return (values, present_N, None) if kept_N is None else (values[kept_N], present_N[kept_N], None)
        lengths_N = self._parts.lengths(part, self.f, 0, stop)
        values = self._parts.values(part, self.f, int(lengths_N.sum()))
        if kept_N is None:
            return values, None, lengths_N
        return values[np.repeat(kept_N, lengths_N)], None, lengths_N[kept_N]


def _sums(there_N: np.ndarray, rows: np.ndarray, has_rare: bool) -> IdSums:
    rare = np.count_nonzero(rows == RARE_ROW) if has_rare else 0
    return IdSums(len(there_N), len(rows), len(there_N) - int(np.count_nonzero(there_N)), int(rare))


@dataclass(frozen=True)
class _WrittenRows:
    """The rows of a column in its file: the ids of each part, and the sums."""

    part_ids: list[int]
    train: IdSums
    held_out: IdSums


class _Ages:
    """For how many stores the values of a vocabulary did not occur: 2 bytes of memory for each.

    Args:
        forget: from which number on a value is forgotten; None keeps all.
    """

    def __init__(self, forget: int | None) -> None:
        self._forget, self._pieces = forget, list[np.ndarray]()
        self.num_stale = 0

    def add(self, before_V: np.ndarray, seen_V: np.ndarray) -> None:
        """Adds the next values: their number in the earlier store, and whether they occur in this one."""
        unseen_V = np.where(seen_V, 0, np.minimum(before_V + 1, np.iinfo(UNSEEN_TYPE).max)).astype(UNSEEN_TYPE)
        self._pieces.append(unseen_V)
        if self._forget is not None:
            self.num_stale += int(np.count_nonzero(unseen_V >= self._forget))

    def free(self, wanted: int) -> np.ndarray:
        """Returns at most `wanted` rows of forgotten values, ascending, which belong to new values from now on."""
        unseen_V = np.concatenate(self._pieces) if self._pieces else np.empty(0, UNSEEN_TYPE)
        stale = _NO_ROWS if self._forget is None else np.flatnonzero(unseen_V >= self._forget)[:wanted]
        unseen_V[stale] = 0
        self._pieces = [unseen_V]
        return stale + RESERVED_ROWS

    def of_rows(self, count: int) -> np.ndarray:
        """The numbers of all values, after `free`; 0 for new ones."""
        return np.pad(self._pieces[0], (0, count - len(self._pieces[0])))


class _RewrittenTexts(TextWriter):
    """Writes the texts of all values of a vocabulary, first those of an earlier store whose rows were not freed."""

    def __init__(
        self, content: Path, ends: Path, spilled: Path, extended: ExtendedEncoders, name: str, freed: np.ndarray
    ) -> None:
        self._extended, self._name, self._freed = extended, name, freed
        super().__init__(content, ends, spilled)

    def begin(self, start: int, stop: int) -> None:
        super().begin(start, stop)
        lengths_K, content = self._extended.texts_between(self._name, start, stop)
        places_K = np.arange(start, start + len(lengths_K))
        kept = np.flatnonzero((lengths_K > 0) & ~np.isin(places_K + RESERVED_ROWS, self._freed))
        if len(kept):
            self.add(places_K[kept], lengths_K[kept], texts_at(content, np.cumsum(lengths_K), kept))


class ColumnEncoder:
    """Encodes columns.

    Args:
        parts, selection: the rows, and which of them are examples.
        store: directory of the new store, for vocabularies, their texts and counts.
        work: directory for the rows of columns, and for what does not fit into memory.
        options: how values become rows.
        reused: encoders of another store.
        workers: threads for parts, or processes for columns.
        most_in_memory: values of a vocabulary in memory at a time; affects only the speed.
    """

    def __init__(
        self,
        parts: Parts,
        selection: Selection,
        store: Path,
        work: Path,
        options: PrepareOptions,
        reused: ReusedEncoders | None,
        workers: Workers,
        most_in_memory: int,
    ) -> None:
        self._parts, self._selection, self._store, self._work = parts, selection, store, work
        self._options, self._reused, self._workers, self._most = options, reused, workers, most_in_memory
        with io_errors(work, "write"):
            work.mkdir(exist_ok=True)

    def encode_all(
        self, groups: Sequence[tuple[Mapping[int, RawFeature], int]], progress: Callable[[int, float], None]
    ) -> Iterator[list[EncodedColumn]]:
        """Yields the encoded columns of groups, in order; other processes encode several groups at a time.

        Args:
            groups: the arguments of `encode`.
            progress: called with the number of a group, and the share of it that is done.
        """
        if not self._workers.apart:
            for number, (group, largest) in enumerate(groups):
                yield self.encode(group, largest, partial(progress, number))
            return
        alone = copy(self)
        alone._workers = Alone()
        shared = Shared(alone)
        calls = [partial(_encode_alone, shared, group, largest) for group, largest in groups]
        for number, found in enumerate(self._workers.in_order(calls, ahead=len(calls))):
            progress(number, 1.0)
            yield found

    def encode(self, group: Mapping[int, RawFeature], largest: int, progress: ShareDone) -> list[EncodedColumn]:
        """Writes the files of rows of the columns that share ids, their vocabulary with texts, and its counts.

        Args:
            group: the features of the input by number, of which most have ids of their own.
            largest: the largest value, if values are rows.
            progress: called with the share that is done.

        Raises:
            DataError: if the disk is full, or a reused table has no row for a value.
        """
        most_ids = self._selection.num_train * sum(feature.max_ids for feature in group.values())
        count_type = np.dtype("<u4") if most_ids < 1 << 32 else np.dtype("<u8")
        columns = [ColumnParts(self._parts, self._selection, f, feature) for f, feature in group.items()]
        (first, feature), ranked, freed = next(iter(group.items())), None, _NO_ROWS
        scratch = self._scratch(columns[0])
        with io_errors(scratch, "write"):
            scratch.mkdir(exist_ok=True)
        if not feature.as_rows and feature.buckets is None and self._options.hash_rows is None:
            with io_errors(self._store / VOCABULARY, "write"):
                (self._store / VOCABULARY).mkdir(exist_ok=True)
        extended = self._reused if isinstance(self._reused, ExtendedEncoders) else None
        if extended and isinstance(extended.column(feature.name).encoder, KeptArray):
            entry, ranked, freed = self._extend(
                columns, extended, count_type, lambda share: progress(share * _SHARE_OF_COUNTING)
            )
            count_type = entry.counts.dtype if entry.counts else count_type
        elif self._reused:
            entry = self._reused.take(feature, largest, self._store)
            if extended and extended.total(feature.name) + most_ids >= 1 << 32:
                count_type = np.dtype("<u8")
        elif feature.buckets is not None:
            entry = ColumnEntry(feature.name, self._fit_buckets(columns[0], feature.buckets))
        elif feature.as_rows:
            entry = ColumnEntry(feature.name, AsRows(largest + 1))
        elif self._options.hash_rows is not None:
            entry = ColumnEntry(feature.name, Hashing(self._options.hash_rows, first))
        else:
            ranked = self._count_values(columns, count_type, lambda share: progress(share * _SHARE_OF_COUNTING))
            values_type = np.dtype(feature.value_type)
            values = KeptArray.describe(self._store, vocabulary_file(feature.owner, values_type), values_type)
            entry = ColumnEntry(feature.name, values, rare=self._rare(feature) if self._options.keep_rare else None)
        encoder, known_rows = entry.encoder, RESERVED_ROWS
        texts: TextWriter | None = None
        if ranked and feature.has_texts:
            if extended and len(freed) and extended.column(feature.name).texts is not None:
                texts = _RewrittenTexts(*self._texts_files(feature), scratch / "texts", extended, feature.name, freed)
            elif extended:
                known_rows = extended.column(feature.name).rows
                texts = self._more_texts(columns[0], extended)
            else:
                texts = TextWriter(*self._texts_files(feature), scratch / "texts")
        row_type = narrowest(entry.rows - 1)
        count_rows = ranked is None and (not isinstance(encoder, Hashing) or encoder.rows <= _MOST_COUNTED)
        counter = ValueCounter(row_type, scratch / "runs", self._most) if count_rows else None
        begun = _SHARE_OF_COUNTING if ranked else 0.0

        def wrote(number: int, share: float) -> None:
            progress(begun + (number + share) / len(columns) * (1 - begun))

        written = [
            self._write_rows(
                columns[number:],
                encoder,
                row_type,
                counter,
                None if number else texts,
                known_rows,
                partial(wrote, number),
            )
            for number in range(len(columns))
        ]
        counts = counts_file(feature.owner)
        if ranked:
            missing = sum(w.train.missing for c, w in zip(columns, written, strict=True) if c.feature.max_ids == 1)
            before, rare = extended.reserved_counts(feature.name) if extended else (0, 0)
            rare += ranked.total - ranked.kept_total
            start_counts(self._store / counts, count_type, before + missing, rare)
        elif counter is not None:
            if extended:
                for counted in extended.counted(feature.name, row_type, self._most):
                    counter.add(*counted)
            write_counts(self._store / counts, count_type, entry.rows, counter.ranges())
            counter.close()
        if ranked or counter:
            entry = replace(entry, counts=KeptArray.describe(self._store, counts, count_type))
        if texts:
            entry = replace(entry, texts=KeptTexts.describe(self._store, *texts_files(feature.owner)))
        with io_errors(scratch, "write"):
            shutil.rmtree(scratch)
        return [
            EncodedColumn(
                replace(entry, name=column.feature.name),
                cardinality=ranked.distinct if ranked else None,
                file=self.rows_file(column.f).name,
                dtype=row_type,
                part_ids=rows.part_ids if column.feature.max_ids > 1 else None,
                train=rows.train,
                held_out=rows.held_out,
            )
            for column, rows in zip(columns, written, strict=True)
        ]

    def sync(self, columns: Sequence[EncodedColumn]) -> None:
        """Flushes all files of these columns to disk; `encode` does not.

        Raises:
            DataError: if the disk is full.
        """
        paths = [self._work, self._work.parent, self._store]
        for column in columns:
            paths.append(self._work / column.file)
            paths += [self._store / kept.file for kept in column.entry.files]
        if (self._store / VOCABULARY).exists():
            paths.append(self._store / VOCABULARY)
        for path in paths:
            with io_errors(path, "write"):
                sync_file(path)

    def rows_file(self, f: int) -> Path:
        """Returns the file of the rows of a column."""
        return self._work / f"{f:04}.rows"

    def _scratch(self, first: ColumnParts) -> Path:
        """The directory for what does not fit into memory while columns are encoded, by the first of them."""
        return self._work / f"{first.f:04}.work"

    def _fit_buckets(self, column: ColumnParts, most: int) -> Bucketing:
        """Chooses the edges of buckets of like counts among the training examples."""
        counter = ValueCounter(KEY_TYPE, self._scratch(column) / "runs", self._most)
        for values_K, counts_K in self._workers.in_order(partial(column.count, part) for part in column):
            keys_K = to_keys(values_K.view(np.float32))
            order = np.argsort(keys_K)
            counter.add(keys_K[order], counts_K[order])
        edges = fit(column.feature.name, counter.ranges, 0).edges(most)
        counter.close()
        # Numbers are float32, and two edges may be one there.
        return Bucketing(tuple(np.unique(np.array(edges, np.float32)).tolist()))

    def _counted(self, columns: Sequence[ColumnParts], progress: ShareDone) -> ValueCounter:
        """Counts the values of columns in the training examples."""
        value_type = np.dtype(columns[0].feature.value_type)
        counter = ValueCounter(value_type, self._scratch(columns[0]) / "runs", self._most)
        calls = (partial(column.count, part) for column in columns for part in column)
        for done, counted in enumerate(self._workers.in_order(calls), 1):
            counter.add(*counted)
            progress(done / (len(self._parts) * len(columns)))
        return counter

    def _count_values(self, columns: Sequence[ColumnParts], count_type: np.dtype, progress: ShareDone) -> Ranked:
        """Makes the vocabulary of columns and the counts of its values."""
        feature, options = columns[0].feature, self._options
        dtype = np.dtype(feature.value_type)
        counter = self._counted(columns, progress)
        ranked = rank_values(
            counter.ranges,
            self._store / vocabulary_file(feature.owner, dtype),
            self._store / counts_file(feature.owner),
            count_type=count_type,
            min_count=options.min_count,
            most=None if options.max_rows_per_table is None else options.max_rows_per_table - RESERVED_ROWS,
        )
        if options.keep_rare:
            write_rare(counter.ranges, self._rare_files(feature), RARE_COUNT_TYPE, ranked.last)
        counter.close()
        return ranked

    def _rare(self, feature: RawFeature) -> tuple[KeptArray, KeptArray]:
        """Describes the files of the values without a row."""
        values, counts = rare_files(feature.owner, np.dtype(feature.value_type))
        return (
            KeptArray.describe(self._store, values, np.dtype(feature.value_type)),
            KeptArray.describe(self._store, counts, RARE_COUNT_TYPE),
        )

    def _rare_files(self, feature: RawFeature) -> tuple[Path, Path]:
        values, counts = rare_files(feature.owner, np.dtype(feature.value_type))
        return self._store / values, self._store / counts

    def _extend(
        self, columns: Sequence[ColumnParts], extended: ExtendedEncoders, count_type: np.dtype, progress: ShareDone
    ) -> tuple[ColumnEntry, Ranked, np.ndarray]:
        """Extends the vocabulary of a store and its counts by the values of columns.

        Known values are found piece by piece, so that memory does not depend on their number.

        Returns:
            The column, its new values, ranked, and the rows that they took from forgotten ones.
        """
        feature, options, store = columns[0].feature, self._options, self._store
        dtype, name, owner = np.dtype(feature.value_type), feature.name, feature.owner
        known = extended.column(name).encoder
        assert isinstance(known, KeptArray)
        ages = None if options.forget is None and extended.column(name).unseen is None else _Ages(options.forget)
        counter, scratch = self._counted(columns, progress), self._scratch(columns[0])
        if extended.total(name) + sum(int(counts.sum()) for _, counts in counter.ranges()) >= 1 << 32:
            count_type = np.dtype("<u8")
        values_file, counts_file_ = store / vocabulary_file(owner, dtype), store / counts_file(owner)
        extended.copy(known, values_file)
        with io_errors(counts_file_, "write"), counts_file_.open("wb") as counts_out:
            counts_out.write(np.zeros(RESERVED_ROWS, count_type).data)
            first_row = RESERVED_ROWS
            for number, (values, before) in enumerate(extended.vocabulary(name, self._most)):
                piece, rest = (
                    Vocabulary(values, first_row),
                    ValueCounter(dtype, scratch / f"rest-{number % 2}", self._most),
                )
                seen = np.zeros(len(values), dtype=bool)
                for values_K, counts_K in counter.ranges():
                    rows_K = piece.encode(values_K, None)
                    known_K = rows_K != RARE_ROW
                    before[rows_K[known_K] - first_row] += counts_K[known_K]
                    seen[rows_K[known_K] - first_row] = True
                    rest.add(values_K[~known_K], counts_K[~known_K])
                counts_out.write(before.astype(count_type).data)
                if ages is not None:
                    ages.add(extended.unseen(name, first_row - RESERVED_ROWS, len(values)), seen)
                counter.close()
                counter, first_row = rest, first_row + len(values)
            for rare in extended.rare(name, self._most):
                counter.add(*rare)
            new_values, new_counts = scratch / "new.values", scratch / "new.counts"
            most = options.max_rows_per_table
            ranked = rank_values(
                counter.ranges,
                new_values,
                new_counts,
                count_type=count_type,
                min_count=options.min_count,
                most=None if most is None else max(0, most - first_row) + (ages.num_stale if ages else 0),
            )
            write_rare(counter.ranges, self._rare_files(feature), RARE_COUNT_TYPE, ranked.last)
            counter.close()
            freed = _NO_ROWS if ages is None else ages.free(ranked.kept)
            skipped = (RESERVED_ROWS + len(freed)) * count_type.itemsize
            with new_counts.open("rb") as counts_in:
                counts_in.seek(skipped)
                shutil.copyfileobj(counts_in, counts_out)
        with io_errors(values_file, "write"), new_values.open("rb") as values_in, values_file.open("ab") as values_out:
            values_in.seek(len(freed) * dtype.itemsize)
            shutil.copyfileobj(values_in, values_out)
        if len(freed):
            for file, source, at, first in (
                (values_file, new_values, RESERVED_ROWS, 0),
                (counts_file_, new_counts, 0, RESERVED_ROWS),
            ):
                kind = dtype if file == values_file else count_type
                with io_errors(file, "write"):
                    whole = np.memmap(file, kind, "r+")
                    whole[freed - at] = read_array(source, kind, len(freed), first * kind.itemsize)
                    whole.flush()
        entry = ColumnEntry(name, KeptArray.describe(store, values_file.relative_to(store).as_posix(), dtype))
        counts = KeptArray.describe(store, counts_file(owner), count_type)
        all_values = replace(ranked, distinct=ranked.distinct + known.num_values)
        entry = replace(entry, counts=counts, rare=self._rare(feature))
        if ages is not None:
            entry = self._keep_days(entry, owner, ages, np.union1d(extended.reused(name), freed.astype(REUSED_TYPE)))
        return entry, all_values, freed

    def _keep_days(self, entry: ColumnEntry, owner: str, ages: "_Ages", reused_R: np.ndarray) -> ColumnEntry:
        """Writes for how many stores each value did not occur, and the rows that belonged to other values."""
        unseen, reused = unseen_file(owner), reused_file(owner)
        for file, content in ((unseen, ages.of_rows(entry.rows - RESERVED_ROWS)), (reused, reused_R)):
            with io_errors(self._store / file, "write"):
                (self._store / file).write_bytes(content.tobytes())
        entry = replace(entry, unseen=KeptArray.describe(self._store, unseen, UNSEEN_TYPE))
        return replace(entry, reused=KeptArray.describe(self._store, reused, REUSED_TYPE)) if len(reused_R) else entry

    def _more_texts(self, column: ColumnParts, extended: ExtendedEncoders) -> TextWriter | None:
        """Copies the texts of the values of a store; returns the writer of those that follow. None if it has none."""
        feature, scratch = column.feature, self._scratch(column)
        before, (content, ends) = extended.column(feature.name), self._texts_files(feature)
        if before.texts is None:
            return None
        if before.texts.arrays is None:  # all values are integers so far
            writer = TextWriter(content, ends, scratch / "texts")
            writer.begin(0, before.rows - RESERVED_ROWS)
            writer.end()
            return writer
        for kept, file in zip(before.texts.arrays, (content, ends), strict=True):
            extended.copy(kept, file)
        return TextWriter(content, ends, scratch / "texts", written=before.texts.arrays[0].num_values)

    def _texts_files(self, feature: RawFeature) -> tuple[Path, Path]:
        content, ends = texts_files(feature.owner)
        return self._store / content, self._store / ends

    def _write_rows(
        self,
        columns: Sequence[ColumnParts],
        encoder: KeptEncoder,
        row_type: np.dtype,
        counter: ValueCounter | None,
        texts: TextWriter | None,
        known_rows: int,
        progress: ShareDone,
    ) -> "_WrittenRows":
        """Writes the file of rows of the first of some columns, in one pass per piece of the vocabulary.

        Args:
            columns: the column to encode, and the others that have texts of its vocabulary.
            encoder: the encoder of the column.
            row_type: type of the rows.
            counter: counts the rows, if needed.
            texts: writes the texts of the values, if they are kept.
            known_rows: rows whose texts are written already.
            progress: called with the share that is done.
        """
        train, held_out, column = IdSums(), IdSums(), columns[0]
        path, id_starts, passes = self.rows_file(column.f), [0], self._num_passes(encoder)
        with io_errors(path, "write"), path.open("w+b") as file:
            for number, piece in enumerate(self._pieces(encoder)):
                last = number == passes - 1
                calls = (
                    partial(
                        column.encode,
                        part,
                        piece,
                        row_type,
                        known=(path, id_starts[part]) if number else None,
                        count=last and counter is not None,
                    )
                    for part in column
                )
                for part, found in enumerate(self._workers.in_order(calls)):
                    if number == 0:
                        id_starts.append(id_starts[-1] + len(found.rows))
                    file.seek(id_starts[part] * row_type.itemsize)
                    file.write(found.rows.data)
                    if last:
                        train += found.train
                        held_out += found.held_out
                    if found.counted is not None and counter is not None:
                        counter.add(*found.counted)
                    progress((number + (part + 1) / len(self._parts)) / passes)
                if texts is not None and isinstance(piece, Vocabulary) and piece.rows > known_rows:
                    self._write_texts(columns, piece, texts, known_rows)
                file.flush()
        return _WrittenRows(np.diff(id_starts).tolist(), train, held_out)

    def _write_texts(
        self, columns: Sequence[ColumnParts], piece: Vocabulary, texts: TextWriter, known_rows: int
    ) -> None:
        """Writes the texts of a piece of the vocabulary, each at its first occurrence."""
        texts.begin(max(piece.first_row, known_rows) - RESERVED_ROWS, piece.rows - RESERVED_ROWS)
        places_of = [(column, part) for column in columns for part in column]
        calls = (partial(column.text_places, part, piece) for column, part in places_of)
        for (column, part), places in zip(places_of, self._workers.in_order(calls), strict=True):
            chosen = texts.wanted(places)
            if len(chosen):
                found = column.texts(part, chosen)
                texts.add(places[chosen], found.lengths_K, found.content)
        texts.end()

    def _num_passes(self, encoder: KeptEncoder) -> int:
        return max(1, -(-encoder.num_values // self._most)) if isinstance(encoder, KeptArray) else 1

    def _pieces(self, encoder: KeptEncoder) -> Iterator[Encoder]:
        """Yields the encoder of a column, a vocabulary in pieces of `most_in_memory` values."""
        if not isinstance(encoder, KeptArray):
            yield encoder
            return
        for number in range(self._num_passes(encoder)):
            start = number * self._most
            count = min(self._most, encoder.num_values - start)
            values = read_array(self._store / encoder.file, encoder.dtype, count, start * encoder.dtype.itemsize)
            yield Vocabulary(values, RESERVED_ROWS + start)


def _encode_alone(encoder: Shared[ColumnEncoder], group: Mapping[int, RawFeature], largest: int) -> list[EncodedColumn]:
    return encoder.get().encode(group, largest, lambda _: None)
