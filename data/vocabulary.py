"""From 32-bit values of a categorical column to rows of its table: a counted vocabulary, or a hash."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.errors import DataError
from data.files import io_errors, write_whole
from data.schema import MISSING_ROW, RARE_ROW, RESERVED_ROWS

_DIRECTORY = "vocabulary"
_MERGE_AT = 1 << 24  # values that wait before they are merged, at least


class Encoder(Protocol):
    """What turns the values of one column into rows."""

    @property
    def rows(self) -> int:
        """Of the table, the reserved ones included."""
        ...

    def encode(self, values: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Rows of uint32 `values`, uint32; `MISSING_ROW` where `present` is False."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """The values that have a row of their own, most frequent first.

    Attributes:
        values: uint32; values[i] has row i + 2. Every other value has `RARE_ROW`.
    """

    values: np.ndarray
    _order: np.ndarray = field(init=False, repr=False, compare=False)
    _sorted: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_order", np.argsort(self.values).astype(np.uint32))
        object.__setattr__(self, "_sorted", self.values[self._order])

    @property
    def rows(self) -> int:
        return len(self.values) + RESERVED_ROWS

    @classmethod
    def of_counts(cls, values: np.ndarray, counts: np.ndarray, *, min_count: int) -> "Vocabulary":
        """The values counted `min_count` times or more, by falling count, and by value where counts are equal.

        Args:
            values: uint32, rising.
            counts: of each value.
        """
        enough = counts >= min_count
        values, counts = values[enough], counts[enough]
        return cls(values[np.argsort(-counts, kind="stable")])

    def encode(self, values: np.ndarray, present: np.ndarray) -> np.ndarray:
        if len(self.values) == 0:
            return np.where(present, np.uint32(RARE_ROW), np.uint32(MISSING_ROW))
        places = np.minimum(np.searchsorted(self._sorted, values), len(self.values) - 1)
        rows = np.where(
            self._sorted[places] == values, self._order[places] + np.uint32(RESERVED_ROWS), np.uint32(RARE_ROW)
        )
        rows[~present] = MISSING_ROW
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

    def encode(self, values: np.ndarray, present: np.ndarray) -> np.ndarray:
        mixed = mix(values.astype(np.uint64) + np.uint64(self.column + 1 << 32))
        rows = (mixed % np.uint64(self.rows - 1) + np.uint64(1)).astype(np.uint32)
        rows[~present] = MISSING_ROW
        return rows


def mix(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every bit of the input moves every bit of the output.

    Source: the finalizer of MurmurHash3 (Austin Appleby, public domain).
    """
    mixed = values ^ values >> np.uint64(33)
    mixed *= np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    mixed ^= mixed >> np.uint64(33)
    return mixed


def count_values(pieces: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Different values (uint32, rising) and how often each occurs (int64), in memory proportional to their number."""
    counted: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.uint32), np.empty(0, np.int64))]
    waiting = 0
    for piece in pieces:
        counted.append(np.unique(piece, return_counts=True))
        waiting += len(counted[-1][0])
        # Merging when as much waits as is merged already keeps the whole work at n log n.
        if waiting >= max(_MERGE_AT, len(counted[0][0])):
            counted, waiting = [_merge(counted)], 0
    return _merge(counted)


def _merge(counted: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    values = np.concatenate([values for values, _ in counted])
    counts = np.concatenate([counts for _, counts in counted])
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] ^ np.uint32(1))) if len(values) else np.empty(0, int)
    return values[starts], np.add.reduceat(counts, starts) if len(starts) else counts


def save_encoder(path: Path, name: str, encoder: Encoder) -> dict[str, Any]:
    """Keeps the encoder of a column in the directory of a store; what the manifest has to say of it."""
    entry: dict[str, Any] = {"name": name, "rows": encoder.rows}
    if isinstance(encoder, Hashing):
        return {**entry, "scheme": "hash", "column": encoder.column}
    assert isinstance(encoder, Vocabulary)
    file, content = f"{_DIRECTORY}/{name}.u4", encoder.values.astype("<u4").tobytes()
    with io_errors(path / _DIRECTORY, "write"):
        (path / _DIRECTORY).mkdir(exist_ok=True)
    write_whole(path / file, content)
    return {**entry, "scheme": "vocabulary", "file": file, "crc32": zlib.crc32(content)}


def encoders_fingerprint(entries: Iterable[Mapping[str, Any]]) -> str:
    """Equal where the encoders of the entries that `save_encoder` made give equal values equal rows in every column."""
    identity = [[entry.get(key) for key in ("name", "rows", "scheme", "column", "crc32")] for entry in entries]
    return "vocabulary-1:" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def load_encoders(path: Path, entries: Iterable[Mapping[str, Any]]) -> dict[str, Encoder]:
    """The encoders of the entries that `save_encoder` made, by name of the column.

    Raises:
        DataError: if a file is missing or changed.
    """
    encoders: dict[str, Encoder] = {}
    for entry in entries:
        if entry["scheme"] == "hash":
            encoders[entry["name"]] = Hashing(int(entry["rows"]), int(entry["column"]))
            continue
        file = path / entry["file"]
        with io_errors(file, "read"):
            content = file.read_bytes()
        if zlib.crc32(content) != entry["crc32"]:
            raise DataError(f"{file}: changed since it was prepared", "prepare it again from the raw files")
        encoders[entry["name"]] = Vocabulary(np.frombuffer(content, dtype="<u4"))
    return encoders
