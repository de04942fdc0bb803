"""From the values of a categorical column to rows of its table: a counted vocabulary, a hash, or as they are.

Values are uint32 or uint64.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import file_crc32, io_errors, read_array
from dlrmctl.data.randomness import mix
from dlrmctl.data.schema import MISSING_ROW, RESERVED_ROWS
from dlrmctl.data.store.lookup import ValueTable

VOCABULARY = "vocabulary"  # directory in a store
_AGAIN = "prepare it again from the raw files"


class Encoder(Protocol):
    """What turns the values of one column into rows."""

    @property
    def rows(self) -> int:
        """Of the table, the reserved ones included."""
        ...

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        """Rows of `values`, an unsigned type; `MISSING_ROW` where `present` is False. None: all are present."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """The values that have a row of their own, most frequent first.

    Attributes:
        values: uint32 or uint64; values[i] has row first_row + i. Every other value has `RARE_ROW`.
        first_row: 2, or more for a piece of a vocabulary.
    """

    values: np.ndarray
    first_row: int = RESERVED_ROWS
    _lookup: ValueTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lookup", ValueTable(self.values, self.first_row))

    @property
    def rows(self) -> int:
        return len(self.values) + self.first_row

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        if values.dtype.itemsize < self.values.dtype.itemsize:
            values = values.astype(self.values.dtype)
        assert values.dtype == self.values.dtype
        rows = self._lookup.rows(values)
        if present is not None:
            np.copyto(rows, MISSING_ROW, where=~present)
        return rows


@dataclass(frozen=True)
class Hashing:
    """No vocabulary: row 0 for missing, and 1 + hash % (rows - 1) for every value.

    Attributes:
        rows: of the table, at least 2, at most 2**32.
        column: number of the column; each has a hash of its own.
    """

    rows: int
    column: int

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        mixed = mix(values.astype(np.uint64) + np.uint64(self.column + 1 << 32))
        rows = (mixed % np.uint64(self.rows - 1) + np.uint64(1)).astype(np.uint32)
        if present is not None:
            rows[~present] = MISSING_ROW
        return rows


@dataclass(frozen=True)
class AsRows:
    """Values that are rows already.

    Attributes:
        rows: of the table; no value reaches it.
    """

    rows: int

    def encode(self, values: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        """The values.

        Raises:
            DataError: if one lies outside the table.
        """
        if len(values) and int(values.max()) >= self.rows:
            raise DataError(f"row {int(values.max())} lies outside a table of {self.rows:,} rows")
        return values if present is None else np.where(present, values, values.dtype.type(MISSING_ROW))


def vocabulary_file(name: str, dtype: np.dtype) -> str:
    """Where a store keeps the values of a column, in the order of their rows."""
    return f"{VOCABULARY}/{quote(name, safe='')}.u{dtype.itemsize}"


def counts_file(name: str) -> str:
    """Where a store keeps how often each row of a column occurs in the training split."""
    return f"{VOCABULARY}/{quote(name, safe='')}.counts"


def encoder_entry(path: Path, name: str, encoder: Hashing | AsRows | np.dtype) -> dict[str, Any]:
    """What a manifest says of the encoder of a column.

    Args:
        path: of the store.
        name: of the column.
        encoder: or the type of the values of a vocabulary, whose file is in place.
    """
    if isinstance(encoder, Hashing):
        return {"name": name, "rows": encoder.rows, "scheme": "hash", "column": encoder.column}
    if isinstance(encoder, AsRows):
        return {"name": name, "rows": encoder.rows, "scheme": "rows"}
    file = vocabulary_file(name, encoder)
    with io_errors(path / file, "read"):
        num_values = (path / file).stat().st_size // encoder.itemsize
    entry = {"name": name, "rows": num_values + RESERVED_ROWS, "scheme": "vocabulary"}
    return {**entry, "file": file, "crc32": file_crc32(path / file)}


def counts_entry(path: Path, name: str, dtype: np.dtype) -> dict[str, Any]:
    """What a manifest says of the counts of a column, whose file is in place."""
    file = counts_file(name)
    return {"file": file, "type": f"<u{dtype.itemsize}", "crc32": file_crc32(path / file)}


def encoders_fingerprint(entries: Iterable[Mapping[str, Any]]) -> str:
    """Equal where the encoders that these entries describe give equal values equal rows in every column."""
    identity = [[entry.get(key) for key in ("name", "rows", "scheme", "column", "crc32")] for entry in entries]
    return "vocabulary-1:" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def load_encoders(path: Path, entries: Iterable[Mapping[str, Any]]) -> dict[str, Encoder]:
    """The encoders that these entries describe, by name of the column.

    Args:
        path: of the store.
        entries: `manifest["ids"]["columns"]`.

    Raises:
        DataError: if a file is missing or changed.
    """
    encoders: dict[str, Encoder] = {}
    for entry in entries:
        if entry["scheme"] == "hash":
            encoders[entry["name"]] = Hashing(int(entry["rows"]), int(entry["column"]))
        elif entry["scheme"] == "rows":
            encoders[entry["name"]] = AsRows(int(entry["rows"]))
        else:
            dtype = value_type(entry)
            encoders[entry["name"]] = Vocabulary(_load(path / entry["file"], dtype, int(entry["crc32"])))
    return encoders


def load_counts(path: Path, entry: Mapping[str, Any]) -> np.ndarray:
    """How often each row of a column occurs in the training split: uint32 or uint64 [rows].

    Rows 0 and 1 are those of missing and of rare values.

    Args:
        path: of the store.
        entry: of the column, out of `manifest["ids"]["columns"]`.

    Raises:
        DataError: if the store keeps no counts of the column, or its file is missing or changed.
    """
    if not entry.get("counts"):
        raise DataError(
            f"{path}: keeps no counts of {entry['name']}", "tables of very many hashed rows are not counted"
        )
    counts = entry["counts"]
    return _load(path / counts["file"], np.dtype(counts["type"]), int(counts["crc32"]))


def value_type(entry: Mapping[str, Any]) -> np.dtype:
    """The type of the values of a vocabulary."""
    return np.dtype("<" + str(entry["file"]).rpartition(".")[2])


def _load(path: Path, dtype: np.dtype, crc32: int) -> np.ndarray:
    with io_errors(path, "read"):
        size = path.stat().st_size
    array = read_array(path, dtype, size // dtype.itemsize)
    if zlib.crc32(array.data) != crc32 or size % dtype.itemsize:
        raise DataError(f"{path}: changed since it was prepared", _AGAIN)
    return array
