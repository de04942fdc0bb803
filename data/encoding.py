"""The second phase of a preparation: column by column, values are counted and become rows of tables.

Threads work on the parts of a column. A column's rows go into a file of their own, in the order of the examples; a
column that was interrupted is done again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.columncounts import start_counts, write_counts
from data.columnparts import MISSING, ColumnParts
from data.counting import ValueCounter
from data.files import io_errors, read_array, sync_file
from data.layout import narrowest
from data.options import PrepareOptions
from data.parts import Parts
from data.ranking import Ranked, rank_values
from data.raw import RawFeature
from data.reuse import ReusedEncoders
from data.schema import RESERVED_ROWS
from data.selection import Selection
from data.vocabulary import (
    VOCABULARY,
    AsRows,
    Encoder,
    Hashing,
    Vocabulary,
    counts_entry,
    counts_file,
    encoder_entry,
    value_type,
    vocabulary_file,
)
from data.workers import Workers

_MOST_COUNTED = 1 << 24  # rows of a hashed table whose counts are kept: more are mostly zeros, and gigabytes
_SHARE_OF_COUNTING = 0.5  # of the time for a column
Told = Callable[[float], None]  # takes the share of a column that is done


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
