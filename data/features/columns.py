"""The columns in a manifest: how raw values get their rows, and the files of each column."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.encoders import AsRows, Bucketing, Encoder, Hashing, Vocabulary
from dlrmctl.data.features.kept_array import KeptArray
from dlrmctl.data.features.kept_texts import KeptTexts
from dlrmctl.data.schema import MISSING_ROW, RARE_ROW, RESERVED_ROWS
from dlrmctl.data.sealed import Values

VOCABULARY = "vocabulary"  # directory of the files, beside the manifest
_LONGEST_STEM = 200
_VALUE_TYPES = ("u4", "u8")
_COUNT_TYPES = ("<u4", "<u8")
RARE_COUNT_TYPE = np.dtype("<u4")
UNSEEN_TYPE, REUSED_TYPE = np.dtype("<u2"), np.dtype("<u8")


def vocabulary_file(name: str, dtype: np.dtype) -> str:
    """The file of a column's values, in the order of their rows."""
    return f"{VOCABULARY}/{_stem(name)}.u{dtype.itemsize}"


def texts_files(name: str) -> tuple[str, str]:
    """The files of the texts of a column's values, and of the end of each text."""
    return f"{VOCABULARY}/{_stem(name)}.texts", f"{VOCABULARY}/{_stem(name)}.ends"


def counts_file(name: str) -> str:
    """The file of the counts of a column's rows in the training split."""
    return f"{VOCABULARY}/{_stem(name)}.counts"


def rare_files(name: str, dtype: np.dtype) -> tuple[str, str]:
    """The files of the values of a column without a row of their own, ascending, and of their counts."""
    return f"{VOCABULARY}/{_stem(name)}.rare-u{dtype.itemsize}", f"{VOCABULARY}/{_stem(name)}.rare-counts"


def unseen_file(name: str) -> str:
    """The file with the number of stores since each value of a column occurred, in the order of their rows."""
    return f"{VOCABULARY}/{_stem(name)}.unseen"


def reused_file(name: str) -> str:
    """The file of the rows of a column that belonged to other values in earlier stores."""
    return f"{VOCABULARY}/{_stem(name)}.reused"


def _stem(name: str) -> str:
    """How the names of a column's files begin; no file system takes more than 255 bytes."""
    stem = quote(name, safe="")
    if len(stem) <= _LONGEST_STEM:
        return stem
    return f"{stem[:_LONGEST_STEM]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


# KeptArray is the file of a vocabulary's values, most frequent first.
KeptEncoder = Hashing | AsRows | Bucketing | KeptArray


@dataclass(frozen=True)
class ColumnEntry:
    """One column.

    Attributes:
        name: the name of the sparse feature.
        encoder: maps values to rows.
        counts: the counts of rows in the training split; None if not kept.
        texts: the texts of a vocabulary's values; None if not kept.
        rare: values that a vocabulary gives no row, ascending, and their counts; None if not kept.
        unseen: for how many stores each value of a vocabulary did not occur; None if not counted.
        reused: rows that belonged to other values in stores that this one extends, ascending; None if there are none.
    """

    name: str
    encoder: KeptEncoder
    counts: KeptArray | None = None
    texts: KeptTexts | None = None
    rare: tuple[KeptArray, KeptArray] | None = None
    unseen: KeptArray | None = None
    reused: KeptArray | None = None

    @property
    def rows(self) -> int:
        """Rows of the table, including the reserved ones."""
        return self.encoder.num_values + RESERVED_ROWS if isinstance(self.encoder, KeptArray) else self.encoder.rows

    @property
    def scheme(self) -> str:
        """ "vocabulary", "hash", "rows" or "buckets"."""
        return _SCHEMES[type(self.encoder)]

    @property
    def files(self) -> list[KeptArray]:
        """Returns the files of the column."""
        arrays = [kept for kept in (self.encoder, self.counts) if isinstance(kept, KeptArray)]
        days = [kept for kept in (self.unseen, self.reused) if kept is not None]
        return [*arrays, *(self.texts.files if self.texts else ()), *(self.rare or ()), *days]

    def load(self, directory: Path) -> Encoder:
        """Loads the encoder, which may take long and use much memory.

        Raises:
            DataError: if the file of a vocabulary is missing or was changed.
        """
        return Vocabulary(self.encoder.load(directory)) if isinstance(self.encoder, KeptArray) else self.encoder

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        entry: dict[str, Any] = {"name": self.name, "rows": self.rows, "scheme": self.scheme}
        if isinstance(self.encoder, Hashing):
            entry["column"] = self.encoder.column
        elif isinstance(self.encoder, Bucketing):
            entry["edges"] = list(self.encoder.edges)
        elif isinstance(self.encoder, KeptArray):
            entry |= {"file": self.encoder.file, "crc32": self.encoder.crc32}
        if self.counts:
            counts = self.counts
            entry["counts"] = {"file": counts.file, "type": counts.dtype.str, "crc32": counts.crc32}
        if self.rare:
            values, number = self.rare
            entry["rare"] = {
                "file": values.file,
                "crc32": values.crc32,
                "values": values.num_values,
                "counts": {"file": number.file, "crc32": number.crc32},
            }
        if self.unseen:
            entry["unseen"] = {"file": self.unseen.file, "crc32": self.unseen.crc32}
        if self.reused:
            reused = self.reused
            entry["reused"] = {"file": reused.file, "crc32": reused.crc32, "rows": reused.num_values}
        return entry | ({"texts": self.texts.to_dict()} if self.texts else {})

    @classmethod
    def from_values(cls, values: Values) -> "ColumnEntry":
        """Parses what `to_dict` returned.

        Raises:
            DataError: if a value is missing or invalid.
        """
        name, scheme = values.text("name"), values.text("scheme")
        encoder: KeptEncoder
        if scheme == "hash":
            encoder = Hashing(values.whole("rows", least=2), values.whole("column"))
        elif scheme == "rows":
            encoder = AsRows(values.whole("rows", least=1))
        elif scheme == "buckets":
            edges = values.numbers("edges")
            if any(a >= b for a, b in pairwise(edges)):
                raise DataError(f"{values.where}edges must rise")
            encoder = Bucketing(edges)
            values.require("rows", encoder.rows)
        elif scheme == "vocabulary":
            code = values.text("file").rpartition(".")[2]
            if code not in _VALUE_TYPES:
                raise DataError(f"{values.where}file = {values.text('file')!r} must end in .u4 or .u8")
            num_values = values.whole("rows", least=RESERVED_ROWS) - RESERVED_ROWS
            encoder = KeptArray.from_values(values, np.dtype(f"<{code}"), num_values)
        else:
            raise DataError(f"{values.where}scheme = {scheme!r} must be one of {', '.join(_SCHEMES.values())}")
        entry = cls(name, encoder)
        if isinstance(encoder, KeptArray) and values.has("texts"):
            entry = replace(entry, texts=KeptTexts.from_values(values.inner("texts"), encoder.num_values))
        if isinstance(encoder, KeptArray) and values.has("rare"):
            rare = values.inner("rare")
            number = rare.whole("values")
            counted = KeptArray.from_values(rare.inner("counts"), RARE_COUNT_TYPE, number)
            entry = replace(entry, rare=(KeptArray.from_values(rare, encoder.dtype, number), counted))
        if isinstance(encoder, KeptArray) and values.has("unseen"):
            unseen = KeptArray.from_values(values.inner("unseen"), UNSEEN_TYPE, encoder.num_values)
            entry = replace(entry, unseen=unseen)
        if isinstance(encoder, KeptArray) and values.has("reused"):
            reused = values.inner("reused")
            entry = replace(entry, reused=KeptArray.from_values(reused, REUSED_TYPE, reused.whole("rows")))
        if not values.has("counts"):
            return entry
        counts = values.inner("counts")
        if counts.text("type") not in _COUNT_TYPES:
            raise DataError(f"{counts.where}type = {counts.text('type')!r} must be one of {', '.join(_COUNT_TYPES)}")
        return replace(entry, counts=KeptArray.from_values(counts, np.dtype(counts.text("type")), entry.rows))


_SCHEMES: dict[type, str] = {KeptArray: "vocabulary", Hashing: "hash", AsRows: "rows", Bucketing: "buckets"}


def reserved_rows(columns: Sequence[ColumnEntry]) -> dict[str, Any]:
    """Returns the reserved rows, as plain values: only a vocabulary has a row for rare values."""
    rare = any(column.scheme == "vocabulary" for column in columns)
    return {"missing_row": MISSING_ROW, "rare_row": RARE_ROW if rare else None}


def read_columns(ids: Values) -> tuple[ColumnEntry, ...]:
    """Parses the columns in a manifest's "ids".

    Raises:
        DataError: if a value is missing or invalid.
    """
    columns = tuple(ColumnEntry.from_values(values) for values in ids.each("columns"))
    for name, row in reserved_rows(columns).items():
        ids.require(name, row)
    return columns


def columns_fingerprint(columns: Iterable[ColumnEntry], values: str | None) -> str:
    """Identifies the mapping from values to rows.

    Args:
        columns: the columns of the data.
        values: the rule that identifies values of tables, if it is not that of the first versions.
    """
    identity: list[Any] = []
    for column in columns:
        encoder = column.encoder
        number = encoder.column if isinstance(encoder, Hashing) else None
        crc32 = encoder.crc32 if isinstance(encoder, KeptArray) else None
        edges = [list(encoder.edges)] if isinstance(encoder, Bucketing) else []
        identity.append([column.name, column.rows, column.scheme, number, crc32, *edges])
    if values is not None:
        identity.append(values)
    return "vocabulary-1:" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
