"""The manifest of a store: the content of its files, how a preparation made them, and its own checksum.

Blocks are read and tables are sized by the manifest, so a manifest that was edited or damaged is rejected.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.columns import ColumnEntry, read_columns, reserved_rows
from dlrmctl.data.features.dense import FittedDense, read_fitted
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.formats.table_schema import TableSchema
from dlrmctl.data.formats.transforms import DenseTransform
from dlrmctl.data.schema import Schema
from dlrmctl.data.sealed import Values, read_sealed, write_sealed
from dlrmctl.data.source import SPLITS
from dlrmctl.data.splits import Split
from dlrmctl.data.store.layout import MOST_BLOCK_ROWS, block_bytes, table_file

FORMAT = "dlrmctl-store/3"
FORMATS = ("dlrmctl-store/2", FORMAT)  # before, a missing dense value was a number, and nothing was fitted
MANIFEST = "manifest.json"
RAW_SAMPLE = "raw_sample.arrow"  # beside it
PREPARE_AGAIN = "prepare it again from the raw files"
_HOW = "`prepare` makes a store from raw files"
_NAME = re.compile(r"\w[\w.-]{0,63}")
_GENERATED = "synthetic"  # the name of generated data
_OFFSET_MEANS = "a model trained on this split predicts too high: add logit_offset to its logits to undo that"


def split_file(split: str) -> str:
    """Returns the name of the file with the blocks of a split."""
    return f"{split}.bin"


def check_name(name: str) -> str:
    """Checks the name of a store, which becomes part of the names of runs.

    Raises:
        DataError: if it is invalid.
    """
    if name == _GENERATED:
        raise DataError(f"the name {name!r} is reserved for generated data", "choose another name")
    if not _NAME.fullmatch(name):
        rule = "a name is up to 64 letters, digits, '-', '_' and '.', and begins with a letter or digit"
        raise DataError(f"{name!r} cannot be the name of a store", rule)
    return name


def name_of_directory(path: Path) -> str:
    """Returns the name of a store without one, by its directory."""
    name = re.sub(r"[^\w.-]+", "-", path.resolve().name).lstrip("-.")[:64] or "data"
    return f"{name}-data" if name == _GENERATED else name


@dataclass(frozen=True)
class SplitEntry:
    """The blocks of one split.

    Attributes:
        examples: examples in all blocks.
        bytes: bytes of all blocks.
        table_crc32: CRC-32 of the table of blocks.
    """

    examples: int
    bytes: int
    table_crc32: int

    def to_dict(self, split: str) -> dict[str, Any]:
        """Returns plain values for JSON."""
        sizes = {"examples": self.examples, "bytes": self.bytes, "table_crc32": self.table_crc32}
        return {"file": split_file(split), "table": table_file(split), **sizes}

    @classmethod
    def from_values(cls, values: Values, split: str, schema: Schema, block_rows: int) -> "SplitEntry":
        """Parses what `to_dict` returned.

        Raises:
            DataError: if a value is missing, or impossible for blocks of this schema.
        """
        values.require("file", split_file(split))
        values.require("table", table_file(split))
        entry = cls(values.whole("examples"), values.whole("bytes"), values.whole("table_crc32"))
        whole, rest = divmod(entry.examples, block_rows)
        (low, high), (rest_low, rest_high) = block_bytes(schema, block_rows), block_bytes(schema, rest)
        low, high = whole * low + rest_low, whole * high + rest_high
        if not low <= entry.bytes <= high:
            takes = low if low == high else f"{low} to {high}"
            raise DataError(
                f"{values.where}bytes = {entry.bytes}, but {entry.examples} examples of the schema take {takes}"
            )
        return entry


@dataclass(frozen=True)
class Sampling:
    """The sample of the training examples labelled 0, and how to correct for it.

    Attributes:
        rate: probability that one was kept.
        seed: of the sample.
        label_rate_before, label_rate_after: share of the training examples labelled 1.
    """

    rate: float
    seed: int
    label_rate_before: float
    label_rate_after: float

    @property
    def logit_offset(self) -> float:
        """The correction that is added to the logits of a model trained on the sample."""
        return math.log(self.rate)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "rate": self.rate,
            "seed": self.seed,
            "split": "train",
            "logit_offset": self.logit_offset,
            "meaning": _OFFSET_MEANS,
            "label_rate_before": self.label_rate_before,
            "label_rate_after": self.label_rate_after,
        }

    @classmethod
    def from_values(cls, values: Values) -> "Sampling":
        """Parses what `to_dict` returned.

        Raises:
            DataError: if a value is missing or invalid.
        """
        values.require("split", "train")
        rate = values.number("rate")
        if not 0 < rate <= 1:
            raise DataError(f"{values.where}rate = {rate} must be above 0 and at most 1")
        before, after = values.number("label_rate_before"), values.number("label_rate_after")
        return cls(rate, values.whole("seed"), before, after)


@dataclass(frozen=True)
class Preparation:
    """How a preparation made the examples from raw rows.

    Attributes:
        input: format of the raw rows.
        dense_transform: the transform of dense values.
        columns: how values got their rows, one entry for each sparse feature.
        split: the rule of the splits.
        report: the report, from `PrepareReport.to_dict`.
        min_count: values with a smaller count share the rare row; None if values were not counted.
        max_rows_per_table: the most rows of a table, or None.
        vocabulary_from: fingerprint of the columns that were taken from another store, or None.
        extends: fingerprint of the columns of another store that these extend, or None.
        limit: the most good rows, or None.
        table_schema: the schema of the columns, if the raw rows are tables.
        sampling: the sample of the training examples, or None.
    """

    input: str
    dense_transform: DenseTransform
    columns: tuple[ColumnEntry, ...]
    split: Split
    report: Mapping[str, Any]
    min_count: int | None = None
    max_rows_per_table: int | None = None
    vocabulary_from: str | None = None
    limit: int | None = None
    table_schema: TableSchema | None = None
    sampling: Sampling | None = None
    extends: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        ids = {
            **reserved_rows(self.columns),
            "min_count": self.min_count,
            "max_rows_per_table": self.max_rows_per_table,
            "vocabulary_from": self.vocabulary_from,
            **({"extends": self.extends} if self.extends is not None else {}),
            "columns": [column.to_dict() for column in self.columns],
        }
        return {
            "input": self.input,
            "dense_transform": self.dense_transform.to_dict(),
            "ids": ids,
            "split": self.split.name,
            **({} if self.split.is_plain else {"split_rule": self.split.to_dict()}),
            "limit": self.limit,
            "report": self.report,
            **({"table_schema": self.table_schema.to_dict()} if self.table_schema else {}),
            **({"negative_sampling": self.sampling.to_dict()} if self.sampling else {}),
        }

    @classmethod
    def from_values(cls, values: Values, path: Path) -> "Preparation":
        """Parses what `to_dict` returned.

        Args:
            values: values of the manifest.
            path: of the store, for messages.

        Raises:
            DataError: if a value is missing or invalid.
        """
        ids = values.inner("ids")
        return cls(
            # The first stores of this format were all made from Criteo's text, without an entry.
            input=values.text("input") if values.has("input") else "criteo",
            dense_transform=DenseTransform.from_values(values.inner("dense_transform")),
            columns=read_columns(ids),
            split=Split.from_values(values.text("split"), values.optional("split_rule", lambda rule: rule)),
            report=values.inner("report").entries,
            min_count=_whole_or_none(ids, "min_count"),
            max_rows_per_table=_whole_or_none(ids, "max_rows_per_table"),
            vocabulary_from=ids.text("vocabulary_from") if ids.has("vocabulary_from") else None,
            limit=_whole_or_none(values, "limit"),
            table_schema=values.optional("table_schema", lambda v: TableSchema.from_dict(v.entries, str(path))),
            sampling=values.optional("negative_sampling", Sampling.from_values),
            extends=ids.text("extends") if ids.has("extends") else None,
        )


def _whole_or_none(values: Values, name: str) -> int | None:
    return values.whole(name) if values.has(name) else None


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        schema: of every block.
        block_rows: examples of every block but the last one of a split.
        splits: by name, all of `SPLITS`.
        preparation: how the examples were made from raw rows; None if they were not.
        vocabulary_fingerprint: identity of the ids of a source that was copied, or None.
        name: name of the data, or None for stores of earlier versions.
        dense: the dense features over the training examples; empty where they were not fitted.
        own_dense: see `FeatureSpace`.
    """

    schema: Schema
    block_rows: int
    splits: Mapping[str, SplitEntry]
    preparation: Preparation | None = None
    vocabulary_fingerprint: str | None = None
    name: str | None = None
    dense: tuple[FittedDense, ...] = ()
    own_dense: tuple[FittedDense, ...] = ()

    def called(self, path: Path) -> str:
        """Returns the name of the data; by default "criteo" for Criteo's, else the name of its directory.

        Args:
            path: of the store.
        """
        if self.name is not None:
            return self.name
        is_criteo = self.preparation is not None and self.preparation.input == "criteo"
        return "criteo" if is_criteo else name_of_directory(path)

    def features(self, path: Path, identity: str) -> FeatureSpace:
        """Returns how raw rows become examples like these.

        Args:
            path: of the store.
            identity: identity of the data, which identifies the meaning of ids if nothing else does.
        """
        ids = self.vocabulary_fingerprint or identity
        not_prepared = FeatureSpace(self.schema, dense=self.dense, own_dense=self.own_dense, ids=ids, directory=path)
        made = self.preparation
        if made is None:
            return not_prepared
        return replace(
            not_prepared,
            input=made.input,
            table_schema=made.table_schema,
            dense_transform=made.dense_transform,
            columns=made.columns,
            sampling_offset=made.sampling.logit_offset if made.sampling else 0.0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, without format and checksum."""
        known = self.vocabulary_fingerprint
        return {
            "schema": self.schema.to_dict(),
            "block_rows": self.block_rows,
            "splits": {split: entry.to_dict(split) for split, entry in self.splits.items()},
            **({"name": self.name} if self.name is not None else {}),
            **({"vocabulary_fingerprint": known} if known is not None else {}),
            **({"dense": [column.to_dict() for column in self.dense]} if self.dense else {}),
            **({"own_dense": [column.to_dict() for column in self.own_dense]} if self.own_dense else {}),
            **(self.preparation.to_dict() if self.preparation else {}),
        }

    @classmethod
    def from_values(cls, values: Values, path: Path) -> "Manifest":
        """Parses what `to_dict` returned.

        Args:
            values: values of the file; unknown ones are ignored.
            path: of the store, for messages.

        Raises:
            DataError: naming the first value that is missing or invalid.
        """
        schema = Schema.from_dict(values.inner("schema").entries)
        block_rows = values.whole("block_rows", least=1, most=MOST_BLOCK_ROWS)
        splits = values.inner("splits")
        name = "vocabulary_fingerprint"
        return cls(
            schema,
            block_rows,
            {split: SplitEntry.from_values(splits.inner(split), split, schema, block_rows) for split in SPLITS},
            Preparation.from_values(values, path) if values.has("ids") else None,
            values.text(name) if values.has(name) else None,
            check_name(values.text("name")) if values.has("name") else None,
            read_fitted(values, schema.dense),
            read_fitted(values, schema.dense, "own_dense"),
        )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes the manifest of the store in the directory `path`, which makes it one.

    Raises:
        DataError: if it cannot be written.
    """
    write_sealed(path / MANIFEST, FORMAT, manifest.to_dict())


def read_manifest(path: Path) -> Manifest:
    """Reads the manifest of the store in the directory `path`.

    Raises:
        DataError: if there is none, it has another version, or it was changed.
    """
    if not path.exists():
        raise DataError(f"{path}: no such directory", _HOW)
    if not path.is_dir():
        raise DataError(f"{path} is a file, expected a directory", _HOW)
    if (path / "run.toml").exists():
        raise DataError(f"{path} is a run, expected a store", "give the directory that `prepare` wrote")
    if not (path / MANIFEST).exists():
        raise DataError(f"{path}: no {MANIFEST}, so not a store, or one whose preparation did not finish", _HOW)
    return read_sealed(
        path / MANIFEST,
        FORMATS,
        lambda values: Manifest.from_values(values, path),
        what="the manifest of a store",
        hint=_HOW,
        again=PREPARE_AGAIN,
    )
