"""What scoring raw rows needs of a data set: the format of rows, and the ids of their values.

`FeatureSpace.save` writes it to a directory, so that rows can be scored without the data set:

    features.json             everything but the arrays, and its own checksum
    vocabulary/NAME.u4, .u8   values of a column that have a row of their own, most frequent first
    vocabulary/NAME.counts    how often each row occurs in the training split
    vocabulary/NAME.texts     the values as texts, where they cannot be told from the above; .ends: where each ends
"""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.columns import (
    VOCABULARY,
    ColumnEntry,
    KeptEncoder,
    columns_fingerprint,
    read_columns,
    reserved_rows,
)
from dlrmctl.data.features.dense import FittedDense, read_fitted
from dlrmctl.data.features.encoders import Bucketing, Encoder
from dlrmctl.data.features.kept_array import KeptArray
from dlrmctl.data.features.kept_schema import FEATURES, FORMAT, read_features
from dlrmctl.data.files import fresh_directory, io_errors, sync_file
from dlrmctl.data.formats.table_schema import TableSchema
from dlrmctl.data.formats.transforms import MISSING, DenseTransform
from dlrmctl.data.schema import RESERVED_ROWS, Schema
from dlrmctl.data.sealed import Values, write_sealed

GENERATED = "generated"  # the format of data without raw rows
MOST_COPIED = 1 << 26  # bytes of the texts of a column
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class FeatureSpace:
    """The features of a data set: names, tables, and how to make them from raw rows.

    Attributes:
        schema: schema of the examples.
        input: format of the raw rows: "criteo", "npy", or of tables "csv", "jsonl", "parquet" or "ipc"; "generated" for
            examples without raw rows, None if unknown.
        table_schema: the columns of tables.
        dense_transform: what was done to the dense values; None where that is not known.
        dense: the dense features over the training examples, where a missing value is NaN; empty where they were not
            fitted, and a missing value may be a number.
        own_dense: the same over the training examples of this data alone, where `dense` is that of earlier data, which
            this data extends; empty otherwise.
        columns: how raw values get rows, and their counts, one entry per sparse feature; empty if ids were not made
            from raw values.
        sampling_offset: logarithm of the share of training negatives that was kept; see `logit_offset`.
        ids: identity of the ids if there are no columns.
        directory: directory of the files of the columns.
    """

    schema: Schema
    input: str | None = None
    table_schema: TableSchema | None = None
    dense_transform: DenseTransform | None = None
    dense: tuple[FittedDense, ...] = ()
    own_dense: tuple[FittedDense, ...] = ()
    columns: tuple[ColumnEntry, ...] = ()
    sampling_offset: float = 0.0
    ids: str = ""
    directory: Path | None = None

    def stand_ins(self) -> tuple[float, ...]:
        """What a model that takes dense values as they are sees in place of a missing one, for each dense feature."""
        transform = self.dense_transform or DenseTransform(MISSING)
        return tuple(transform.stand_in(name) for name in self.schema.dense)

    def vocabulary_fingerprint(self) -> str:
        """Identifies the meaning of ids; a model can score other data if it is equal."""
        return columns_fingerprint(self.columns, self.values) if self.columns else self.ids

    @property
    def values(self) -> str | None:
        """The rule that identifies values of tables, see `data.canonical`; None for that of each format."""
        return self.table_schema.rule if self.table_schema else None

    def logit_offset(self, split: str | None = None) -> float:
        """Returns the offset of a model's logits that corrects for training on a sample of the negatives.

        Args:
            split: the split of the scored examples; None for other rows. Only "train" was sampled.
        """
        return 0.0 if split == "train" else self.sampling_offset

    def sorted_by_frequency(self, name: str) -> bool:
        """Returns whether the ids of this feature are known to be sorted by frequency, after the reserved ones."""
        return any(column.name == name and column.scheme == "vocabulary" for column in self.columns)

    def encoder(self, name: str) -> Encoder | None:
        """Returns the encoder of one feature; None if its ids were not made from raw values.

        Raises:
            DataError: if a file is missing or was changed.
        """
        column = next((column for column in self.columns if column.name == name), None)
        return None if column is None else column.load(self._directory())

    def encoders(self) -> dict[str, Encoder]:
        """Returns the encoders by sparse feature. Vocabularies are read from their files.

        Raises:
            DataError: if ids were not made from raw values, or a file is missing or was changed.
        """
        if not self.columns:
            raise DataError(f"{self._name()} has no vocabulary: its rows were not made from raw values")
        loaded: dict[KeptEncoder, Encoder] = {}  # features may share one
        for column in self.columns:
            if column.encoder not in loaded:
                loaded[column.encoder] = column.load(self._directory())
        return {column.name: loaded[column.encoder] for column in self.columns}

    def counts(self, name: str) -> np.ndarray | None:
        """Returns the counts of a feature's rows in the training split: uint32 or uint64 [rows].

        Rows 0 and 1 are those of missing and of rare values. None if rows were not counted.

        Raises:
            DataError: if the file is missing or was changed.
        """
        kept = next((column.counts for column in self.columns if column.name == name), None)
        return None if kept is None else kept.load(self._directory())

    def values_of(self, name: str, rows: Sequence[int]) -> list[str | None]:
        """The values that have some rows of a feature, in their canonical form, long ones shortened.

        For tables prepared by an earlier version they are the hexadecimal digits of the stored words.

        Args:
            name: name of the feature.
            rows: rows of its table.

        Returns:
            None for rows that do not belong to one value: reserved rows, hashed rows, and rows that were given. For
            buckets, the numbers in them.

        Raises:
            DataError: if a file is missing or was changed.
        """
        column = next((column for column in self.columns if column.name == name), None)
        known = [row for row in rows if row >= RESERVED_ROWS]
        if column is not None and isinstance(column.encoder, Bucketing):
            return [column.encoder.text(row) for row in rows]
        if column is None or not isinstance(column.encoder, KeptArray) or not known:
            return [None] * len(rows)
        places = [row - RESERVED_ROWS for row in known]
        words = column.encoder.load(self._directory())[places]
        if column.texts is not None:
            found = column.texts.read(self._directory(), words, places)
        else:
            found = [str(word) if self.input == "npy" else f"{word:08x}" for word in words.tolist()]
        texts = dict(zip(known, found, strict=True))
        return [texts.get(row) for row in rows]

    def save(self, directory: Path) -> None:
        """Writes a directory that `open` reads, atomically. Files are hard links if possible.

        Otherwise many texts of values are omitted: only messages need them.

        Args:
            directory: must not exist.

        Raises:
            DataError: if it exists, cannot be written, or a file of the columns is missing or was changed.
        """
        with io_errors(directory, "write"):
            if directory.exists():
                raise DataError(f"{directory} already exists", "choose another directory, or remove this one")
            unfinished = fresh_directory(directory)
            (unfinished / VOCABULARY).mkdir()
        try:
            brought: dict[tuple[KeptEncoder, KeptArray | None], ColumnEntry] = {}  # features may share files
            columns: list[ColumnEntry] = []
            for column in self.columns:
                files = column.encoder, column.counts
                if files not in brought:
                    brought[files] = self._bring(column, unfinished)
                columns.append(replace(brought[files], name=column.name))
            write_sealed(unfinished / FEATURES, FORMAT, replace(self, columns=tuple(columns))._to_dict())
            with io_errors(directory, "write"):
                sync_file(unfinished / VOCABULARY)
                sync_file(unfinished)
                unfinished.rename(directory)
                sync_file(directory.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    @classmethod
    def open(cls, directory: Path | str) -> "FeatureSpace":
        """Opens what `save` wrote. Sizes of files are checked now, and their checksums when they are loaded.

        Raises:
            DataError: if there is nothing at `directory`, or it has another version, was edited or is damaged.
        """
        directory = Path(directory)
        features = read_features(directory, lambda values: cls._from_values(values, directory))
        for kept in (kept for column in features.columns for kept in column.files):
            kept.check_size(directory)
        return features

    def _to_dict(self) -> dict[str, Any]:
        return {
            "schema": self.schema.to_dict(),
            "input": self.input,
            "table_schema": self.table_schema.to_dict() if self.table_schema else None,
            "dense_transform": self.dense_transform.to_dict() if self.dense_transform else None,
            **({"dense": [column.to_dict() for column in self.dense]} if self.dense else {}),
            **({"own_dense": [column.to_dict() for column in self.own_dense]} if self.own_dense else {}),
            "ids": {**reserved_rows(self.columns), "columns": [column.to_dict() for column in self.columns]},
            "vocabulary_fingerprint": self.vocabulary_fingerprint(),
            "logit_offset": self.sampling_offset,
        }

    @classmethod
    def _from_values(cls, values: Values, directory: Path) -> "FeatureSpace":
        schema = Schema.from_dict(values.inner("schema").entries)
        columns = read_columns(values.inner("ids"))
        names = tuple(column.name for column in columns)
        if columns and names != schema.keys:
            raise DataError("ids.columns are not the sparse features of the schema")
        return cls(
            schema,
            input=values.text("input") if values.has("input") else None,
            table_schema=values.optional("table_schema", lambda v: TableSchema.from_dict(v.entries, str(directory))),
            dense_transform=values.optional("dense_transform", DenseTransform.from_values),
            dense=read_fitted(values, schema.dense),
            own_dense=read_fitted(values, schema.dense, "own_dense"),
            columns=columns,
            sampling_offset=values.number("logit_offset"),
            ids=values.text("vocabulary_fingerprint"),
            directory=directory,
        )

    def _bring(self, column: ColumnEntry, target: Path) -> ColumnEntry:
        """Links or copies the files of a column that scoring needs; returns the column there."""
        column = replace(column, rare=None, unseen=None, reused=None)
        for kept in replace(column, texts=None).files:
            if not _link(kept, self._directory(), target):
                _copy(kept, self._directory(), target)
        files = column.texts.files if column.texts else ()
        left = [kept for kept in files if not _link(kept, self._directory(), target)]
        if sum(kept.num_values * kept.dtype.itemsize for kept in files) > MOST_COPIED and left:
            return replace(column, texts=None)
        for kept in left:
            _copy(kept, self._directory(), target)
        return column

    def _name(self) -> str:
        return "generated data" if self.directory is None else str(self.directory)

    def _directory(self) -> Path:
        assert self.directory is not None, "columns have files"
        return self.directory


def _link(kept: KeptArray, source: Path, target: Path) -> bool:
    """Makes a hard link; returns whether that worked."""
    kept.check_size(source)
    try:
        os.link(source / kept.file, target / kept.file)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            with io_errors(target / kept.file, "write"):
                raise
        return False
    return True


def _copy(kept: KeptArray, source: Path, target: Path) -> None:
    kept.copy(source, target)
    with io_errors(target / kept.file, "write"):
        sync_file(target / kept.file)
