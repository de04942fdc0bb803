"""The second phase of a preparation: column by column, values are counted and become rows of tables.

Threads work on the parts of a column. A column's rows go into a file of their own, in the order of the examples; a
column that was interrupted is done again.


One sparse column of the parts: what threads do with it, part by part.

N examples of a part; the ids of a feature with lists are more or fewer than N.


The encoders of one store, taken for another, so that ids mean the same in both."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors, read_array, sync_file
from dlrmctl.data.formats.raw import Input, RawFeature
from dlrmctl.data.preparation.counting import Ranked, ValueCounter, rank_values, start_counts, write_counts
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.parts import Parts
from dlrmctl.data.preparation.selection import Selection
from dlrmctl.data.preparation.workers import Workers
from dlrmctl.data.schema import RARE_ROW, RESERVED_ROWS
from dlrmctl.data.store.encoders import (
    VOCABULARY,
    AsRows,
    Encoder,
    Hashing,
    Vocabulary,
    counts_entry,
    counts_file,
    encoder_entry,
    encoders_fingerprint,
    value_type,
    vocabulary_file,
)
from dlrmctl.data.store.layout import narrowest
from dlrmctl.data.store.manifest import read_manifest

_MOST_COUNTED = 1 << 24  # rows of a hashed table whose counts are kept: more are mostly zeros, and gigabytes
_SHARE_OF_COUNTING = 0.5  # of the time for a column
Told = Callable[[float], None]  # takes the share of a column that is done
EXAMPLES, IDS, MISSING, RARE = range(4)  # what is summed up of a split


@dataclass(frozen=True)
class PartRows:
    """The rows of a part of a column.

    Attributes:
        rows: of the column's type.
        train, held_out: examples, ids, examples without a value, and rare ids, in the split and behind it.
        counted: different rows of the training examples, rising, and how often each occurs, if they are asked for.
    """

    rows: np.ndarray
    train: list[int]
    held_out: list[int]
    counted: tuple[np.ndarray, np.ndarray] | None


class ColumnParts:
    """A column.

    Args:
        parts, selection: the rows, and which of them are examples.
        f: number of the feature.
        feature: of the input.
    """

    def __init__(self, parts: Parts, selection: Selection, f: int, feature: RawFeature) -> None:
        self._parts, self._selection, self.f, self.feature = parts, selection, f, feature

    def __iter__(self) -> Iterator[int]:
        """The numbers of the parts."""
        return iter(range(len(self._parts)))

    def count(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """The different values of the training examples in a part, rising, and how often each occurs."""
        values, present_N, _ = self._examples(part, self._selection.train_rows[part])
        if present_N is not None and not present_N.all():
            values = values[present_N]
        return np.unique(values, return_counts=True)

    def encode(
        self, part: int, encoder: Encoder, row_type: np.dtype, *, known: tuple[Path, int] | None, count: bool
    ) -> PartRows:
        """The rows of a part.

        Args:
            part: its number.
            encoder: of the column, or the next piece of its vocabulary.
            row_type: of the rows.
            known: file with the rows that earlier pieces of the vocabulary gave, and the part's place in it.
            count: whether to count the rows.
        """
        values, present_N, lengths_N = self._examples(part, self._parts.infos[part]["rows"])
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

    def _examples(self, part: int, stop: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Those of the first `stop` rows of a part that are examples: values, and whether present or the lengths."""
        kept_N = self._selection.kept(part, stop)
        if self.feature.max_ids == 1:
            values, present_N = self._parts.values(part, self.f, stop), self._parts.present(part, self.f, stop)
            return (values, present_N, None) if kept_N is None else (values[kept_N], present_N[kept_N], None)
        lengths_N = self._parts.lengths(part, self.f, 0, stop)
        values = self._parts.values(part, self.f, int(lengths_N.sum()))
        if kept_N is None:
            return values, None, lengths_N
        return values[np.repeat(kept_N, lengths_N)], None, lengths_N[kept_N]


class ReusedEncoders:
    """The encoders of a store.

    Args:
        path: of the store.
        input: whose features are to be encoded.

    Raises:
        DataError: if there is no store, or its encoders do not fit the features.
    """

    def __init__(self, path: Path, input: Input) -> None:
        self._path = path
        entries = read_manifest(path).get("ids", {}).get("columns")
        if not entries:
            raise DataError(f"{path}: keeps no vocabulary, its rows were not made from raw values")
        self._entries = {entry["name"]: entry for entry in entries}
        for feature in input.sparse:
            self._check(feature)

    def fingerprint(self) -> str:
        """Depends on everything that gives values their rows."""
        return encoders_fingerprint(self._entries.values())

    def take(self, feature: RawFeature, largest: int, store: Path) -> Hashing | AsRows | np.dtype:
        """The encoder of a feature; of a vocabulary, which is copied into the new store, the type of its values.

        Args:
            feature: of the input.
            largest: its highest value, if its values are rows.
            store: directory of the new store.

        Raises:
            DataError: if a value lies outside its table, or the vocabulary changed.
        """
        entry = self._entries[feature.name]
        if entry["scheme"] == "hash":
            return Hashing(entry["rows"], entry["column"])
        if entry["scheme"] == "rows":
            if largest >= entry["rows"]:
                raise DataError(f"{feature.name}: row {largest:,} lies outside the {entry['rows']:,} of {self._path}")
            return AsRows(entry["rows"])
        dtype = value_type(entry)
        source, copy = self._path / entry["file"], store / vocabulary_file(feature.name, dtype)
        with io_errors(source, "read"), source.open("rb") as opened:
            with io_errors(copy, "write"), copy.open("wb") as file:
                shutil.copyfileobj(opened, file)
        if encoder_entry(store, feature.name, dtype)["crc32"] != entry["crc32"]:
            raise DataError(f"{source}: changed since it was prepared", "take the vocabulary of another store")
        return dtype

    def _check(self, feature: RawFeature) -> None:
        entry = self._entries.get(feature.name)
        if entry is None:
            raise DataError(f"{self._path}: knows no feature {feature.name!r}, only {', '.join(self._entries)}")
        if feature.as_rows != (entry["scheme"] == "rows"):
            kinds = ("values", "rows of tables") if feature.as_rows else ("rows of tables", "values")
            raise DataError(f"{self._path}: {feature.name} holds {kinds[0]} there, and {kinds[1]} here")
        if entry["scheme"] == "vocabulary" and value_type(entry) != np.dtype(feature.value_type):
            widths = 8 * value_type(entry).itemsize, 8 * np.dtype(feature.value_type).itemsize
            raise DataError(f"{self._path}: {feature.name} has values of {widths[0]} bits there, of {widths[1]} here")


class ColumnEncoder:
    """Encodes columns.

    Args:
        parts, selection: the rows, and which of them are examples.
        store: directory of the new store; gets vocabularies and counts.
        work: directory for the rows of columns, and for what does not fit into memory.
        options: how values become rows.
        reused: encoders of another store.
        workers: for parts.
        most_in_memory: values of a vocabulary that are in memory at a time; changes nothing but the speed.
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

    def encode(self, f: int, feature: RawFeature, largest: int, told: Told) -> dict[str, Any]:
        """Makes the file of rows of a column.

        Args:
            f: number of the feature.
            feature: of the input.
            largest: its highest value, if its values are rows.
            told: hears how far the column is.

        Returns:
            "entry" for the manifest, "cardinality" or None, "file" and "type" of the rows, "ids" of each part if the
            feature has lists, "train" and "held_out" as in `PartRows`; plain values for JSON.

        Raises:
            DataError: if the disk is full, or a reused table has no row for a value.
        """
        most_ids = self._selection.num_train * feature.max_ids
        count_type = np.dtype("<u4") if most_ids < 1 << 32 else np.dtype("<u8")
        column, name, ranked = ColumnParts(self._parts, self._selection, f, feature), feature.name, None
        encoder: Hashing | AsRows | np.dtype = np.dtype(feature.value_type)
        if not feature.as_rows and self._options.hash_rows is None:
            with io_errors(self._store / VOCABULARY, "write"):
                (self._store / VOCABULARY).mkdir(exist_ok=True)
        if self._reused:
            encoder = self._reused.take(feature, largest, self._store)
        elif feature.as_rows:
            encoder = AsRows(largest + 1)
        elif self._options.hash_rows is not None:
            encoder = Hashing(self._options.hash_rows, f)
        else:
            ranked = self._count_values(column, count_type, lambda share: told(share * _SHARE_OF_COUNTING))
        entry = encoder_entry(self._store, name, encoder)
        row_type = narrowest(entry["rows"] - 1)
        count_rows = ranked is None and (not isinstance(encoder, Hashing) or encoder.rows <= _MOST_COUNTED)
        counter = ValueCounter(row_type, self._work / "runs", self._most) if count_rows else None
        begin = _SHARE_OF_COUNTING if ranked else 0.0
        ids, train, held_out = self._write_rows(
            column, entry, row_type, counter, lambda share: told(begin + share * (1 - begin))
        )
        if ranked:
            missing = train[MISSING] if feature.max_ids == 1 else 0
            start_counts(self._store / counts_file(name), count_type, missing, ranked.total - ranked.kept_total)
        elif counter is not None:
            write_counts(self._store / counts_file(name), count_type, entry["rows"], counter.ranges())
            counter.close()
        if ranked or counter:
            entry["counts"] = counts_entry(self._store, name, count_type)
        return {
            "entry": entry,
            "cardinality": ranked.distinct if ranked else None,
            "file": self.rows_file(f).name,
            "type": row_type.str,
            "ids": ids if feature.max_ids > 1 else None,
            "train": train,
            "held_out": held_out,
        }

    def sync(self, columns: Sequence[Mapping[str, Any]]) -> None:
        """Waits until all files of these columns are on the disk; `encode` does not.

        Args:
            columns: what `encode` told of each.

        Raises:
            DataError: if the disk is full.
        """
        paths = [self._work, self._work.parent, self._store]
        for column in columns:
            entry = column["entry"]
            paths.append(self._work / column["file"])
            paths += [self._store / of["file"] for of in (entry, entry.get("counts", {})) if "file" in of]
        if (self._store / VOCABULARY).exists():
            paths.append(self._store / VOCABULARY)
        for path in paths:
            with io_errors(path, "write"):
                sync_file(path)

    def rows_file(self, f: int) -> Path:
        """Where the rows of a column are."""
        return self._work / f"{f:04}.rows"

    def _count_values(self, column: ColumnParts, count_type: np.dtype, told: Told) -> Ranked:
        """Makes the vocabulary of a column and the counts of its values."""
        feature, options = column.feature, self._options
        dtype = np.dtype(feature.value_type)
        counter = ValueCounter(dtype, self._work / "runs", self._most)
        for part, counted in enumerate(self._workers.in_order(partial(column.count, p) for p in column)):
            counter.add(*counted)
            told((part + 1) / len(self._parts))
        ranked = rank_values(
            counter.ranges,
            self._store / vocabulary_file(feature.name, dtype),
            self._store / counts_file(feature.name),
            count_type=count_type,
            min_count=options.min_count,
            most=None if options.max_rows_per_table is None else options.max_rows_per_table - RESERVED_ROWS,
        )
        counter.close()
        return ranked

    def _write_rows(
        self, column: ColumnParts, entry: dict[str, Any], row_type: np.dtype, counter: ValueCounter | None, told: Told
    ) -> tuple[list[int], list[int], list[int]]:
        """The file of rows, in as many passes as the vocabulary has pieces; ids of each part, and the sums."""
        train, held_out = np.zeros(4, np.int64), np.zeros(4, np.int64)
        path, id_starts, passes = self.rows_file(column.f), [0], self._num_passes(entry)
        with io_errors(path, "write"), path.open("w+b") as file:
            for number, encoder in enumerate(self._encoders(entry)):
                last = number == passes - 1
                calls = (
                    partial(
                        column.encode,
                        part,
                        encoder,
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
                    told((number + (part + 1) / len(self._parts)) / passes)
                file.flush()
        return np.diff(id_starts).tolist(), train.tolist(), held_out.tolist()

    def _num_passes(self, entry: dict[str, Any]) -> int:
        return max(1, -(-(entry["rows"] - RESERVED_ROWS) // self._most)) if entry["scheme"] == "vocabulary" else 1

    def _encoders(self, entry: dict[str, Any]) -> Iterator[Encoder]:
        """The encoder of a column, a vocabulary in pieces of `most_in_memory` values."""
        if entry["scheme"] == "hash":
            yield Hashing(entry["rows"], entry["column"])
        elif entry["scheme"] == "rows":
            yield AsRows(entry["rows"])
        else:
            dtype = value_type(entry)
            for number in range(self._num_passes(entry)):
                start = number * self._most
                count = min(self._most, entry["rows"] - RESERVED_ROWS - start)
                values = read_array(self._store / entry["file"], dtype, count, start * dtype.itemsize)
                yield Vocabulary(values, RESERVED_ROWS + start)


def _sums(there_N: np.ndarray, rows: np.ndarray, has_rare: bool) -> list[int]:
    rare = np.count_nonzero(rows == RARE_ROW) if has_rare else 0
    return [len(there_N), len(rows), len(there_N) - int(np.count_nonzero(there_N)), int(rare)]
