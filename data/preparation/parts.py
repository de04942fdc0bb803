"""Parsed rows on disk between the phases of a preparation: numbered files of many rows, written atomically.

A part is stored by column: the keys if rows have them, the labels, the weights and groups of examples if they have
them, the dense features, and for every sparse feature one bit per row (is the value present?) or the lengths of the
lists, then the values and their texts. A JSON description is at its end. The journal beside the parts has the version
of their format.
I dense features, N rows of a part, K texts of a feature in a part.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dlrmctl.data.files import io_errors, open_to_read, read_array, read_numbers, sync_file
from dlrmctl.data.formats.raw import RawColumn, RawFeature, RawPiece, join_pieces
from dlrmctl.data.hashed_texts import LENGTH_TYPE, HashedTexts
from dlrmctl.data.store.layout import GROUP_TYPE, LABEL_TYPE, WEIGHT_TYPE, narrowest

_ALIGNMENT = 8
_WORD_TYPE, _TEXT_TYPE = np.dtype("<u8"), np.dtype("u1")
_NO_WORDS = np.empty(0, _WORD_TYPE)
_MOST_PLACES = 256  # parts: each has the places of some hundred columns
_Name = tuple[str, int]  # of a column in a part
_Place = tuple[int, int, np.dtype]  # its offset, the number of its values, and their type
_END = np.dtype("<u8")  # the last bytes of a part: the size of its JSON


@dataclass(frozen=True)
class PartInfo:
    """The description of a part.

    Attributes:
        rows: number of rows.
        values: number of values in the lists of each feature with lists, by name.
        texts: number and bytes of the texts of each feature with texts, by name.
    """

    rows: int
    values: dict[str, int] = field(default_factory=dict)
    texts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {"rows": self.rows, "values": self.values, "texts": self.texts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PartInfo":
        """Parses what `to_dict` returned."""
        texts = {name: (number, num_bytes) for name, (number, num_bytes) in values["texts"].items()}
        return cls(values["rows"], dict(values["values"]), texts)


class Parts:
    """The parts in a directory.

    Args:
        path: the directory; made when the first part is written.
        dense: names of the dense features.
        dense_type: of their values, float16 or float32.
        sparse: the sparse features.
        infos: descriptions of parts that exist or existed.
        keyed: whether rows have keys.
        ordered: whether the rows of a part are in the order of their keys, if they have keys.
        weighted, grouped: whether rows have weights and groups.

    Attributes:
        dense_type: see above.
        infos: the description of each part.
    """

    def __init__(
        self,
        path: Path,
        dense: Sequence[str],
        dense_type: np.dtype,
        sparse: Sequence[RawFeature],
        infos: Sequence[PartInfo] = (),
        *,
        keyed: bool = False,
        ordered: bool = True,
        weighted: bool = False,
        grouped: bool = False,
    ) -> None:
        self._weighted, self._grouped = weighted, grouped
        self.path, self._keyed, self._ordered = path, keyed, ordered
        self._num_dense, self._sparse = len(dense), tuple(sparse)
        self.dense_type = np.dtype(dense_type)
        self.infos = list(infos)
        self._known_places: dict[int, dict[_Name, _Place]] = {}

    def __len__(self) -> int:
        return len(self.infos)

    def load(self) -> list[dict[str, Any]]:
        """Adds the complete parts up to the first missing one; returns what was stored with each.

        Later ones, which workers finished before it, are removed: they will be written again.
        """
        found = []
        with io_errors(self.path, "read"):
            while self._file(len(self)).exists():
                content = _description(self._file(len(self)))
                found.append(content["about"])
                self.add(PartInfo.from_dict(content))
            for later in self.path.glob("*.part"):
                if later.name >= self._file(len(self)).name:
                    later.unlink()
        return found

    def written(self, number: int) -> PartInfo | None:
        """Returns the description of a part, if it was written; for `add`."""
        path = self._file(number)
        with io_errors(path, "read"):
            return PartInfo.from_dict(_description(path)) if path.exists() else None

    def write(
        self, number: int, pieces: Sequence[RawPiece], about: Mapping[str, Any], keys_N: np.ndarray | None = None
    ) -> PartInfo:
        """Writes a part and flushes it to disk; returns its description for `add`.

        Args:
            number: number of the part; written again if it exists.
            pieces: consecutive pieces of the input.
            about: values that are stored with the part.
            keys_N: uint64, the keys of the rows, if they have keys.

        Raises:
            DataError: if the disk is full.
        """
        assert (keys_N is not None) == self._keyed
        if keys_N is not None and self._ordered:
            order_N = np.argsort(keys_N, kind="stable")
            joined = pieces[0] if len(pieces) == 1 else join_pieces(pieces)
            pieces, keys_N = [joined.pick(order_N)], keys_N[order_N]
        info = PartInfo(sum(len(piece) for piece in pieces))
        path = self._file(number)
        unfinished = path.with_suffix(f".{secrets.token_hex(4)}.tmp")  # a task that was given up may still run
        with io_errors(path, "write"):
            self.path.mkdir(exist_ok=True)
            with unfinished.open("wb") as file:
                if keys_N is not None:
                    _write_column(file, _WORD_TYPE, [keys_N])
                _write_column(file, LABEL_TYPE, [piece.labels_N for piece in pieces])
                if self._weighted:
                    _write_column(file, WEIGHT_TYPE, [piece.weights_N for piece in pieces if len(piece)])
                if self._grouped:
                    _write_column(file, GROUP_TYPE, [piece.groups_N for piece in pieces if len(piece)])
                for i in range(self._num_dense):
                    _write_column(file, self.dense_type, [piece.dense_IN[i] for piece in pieces])
                for f, feature in enumerate(self._sparse):
                    columns = [piece.sparse[f] for piece in pieces]
                    if feature.max_ids == 1:
                        present_N = np.concatenate([column.present_N for column in columns])
                        _write_column(file, np.dtype("u1"), [np.packbits(present_N)])
                    else:
                        lengths = [column.lengths_N for column in columns if column.lengths_N is not None]
                        _write_column(file, narrowest(feature.max_ids), lengths)
                        info.values[feature.name] = sum(len(column.values) for column in columns)
                        assert sum(int(lengths_N.sum()) for lengths_N in lengths) == info.values[feature.name]
                    _write_column(file, np.dtype(feature.value_type), [column.values for column in columns])
                    if feature.weights is not None:
                        _write_column(file, WEIGHT_TYPE, [column.weights for column in columns if len(column.values)])
                    texts = [some for column in columns for some in column.texts]
                    if texts:
                        info.texts[feature.name] = (
                            sum(len(some) for some in texts),
                            sum(len(some.content) for some in texts),
                        )
                        _write_column(file, _WORD_TYPE, [some.words_K for some in texts])
                        _write_column(file, LENGTH_TYPE, [some.lengths_K for some in texts])
                        _write_column(file, _TEXT_TYPE, [np.frombuffer(some.content, _TEXT_TYPE) for some in texts])
                content = json.dumps({**info.to_dict(), "about": about}).encode()
                file.write(content + np.array([len(content)], _END).tobytes())
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            sync_file(self.path)
        return info

    def about(self, part: int) -> dict[str, Any]:
        """Returns the values that were stored with a part."""
        path = self._file(part)
        with io_errors(path, "read"):
            found: dict[str, Any] = _description(path)["about"]
        return found

    def remove(self, part: int) -> None:
        """Frees the space of a part."""
        with io_errors(self._file(part), "write"):
            self._file(part).unlink(missing_ok=True)

    def remove_all(self) -> None:
        """Frees the space of all parts."""
        with io_errors(self.path, "write"):
            shutil.rmtree(self.path, ignore_errors=True)

    def keys(self, part: int) -> np.ndarray:
        """uint64 [N]; mapped, not read."""
        offset, count, dtype = self._places(part)["key", 0]
        if count == 0:
            return _NO_WORDS
        with io_errors(self._file(part), "read"):
            return np.asarray(np.memmap(self._file(part), dtype, "r", offset, count))

    def some_keys(self, part: int, start: int, stop: int) -> np.ndarray:
        """uint64 [stop - start]."""
        return self._read(part, ("key", 0), start, stop)

    def rows(self, part: int, start: int, stop: int) -> RawPiece:
        """Returns some rows of a part, without their texts."""
        with io_errors(self._file(part), "read"), open_to_read(self._file(part)) as file:

            def read(name: str, number: int = 0) -> np.ndarray:
                return self._read(part, (name, number), start, stop, file)

            columns = []
            for f, feature in enumerate(self._sparse):
                if feature.max_ids == 1:
                    columns.append(RawColumn(read("values", f), present_N=self._present(part, f, start, stop, file)))
                    continue
                lengths_N = self._read(part, ("lengths", f), 0, stop, file)
                ends = int(lengths_N[:start].sum()), int(lengths_N.sum())
                weights = None if feature.weights is None else self._read(part, ("weights", f), *ends, file)
                values = self._read(part, ("values", f), *ends, file)
                columns.append(RawColumn(values, lengths_N=lengths_N[start:], weights=weights))
            dense_IN = np.empty((self._num_dense, stop - start), self.dense_type)
            for i in range(self._num_dense):
                dense_IN[i] = read("dense", i)
            return RawPiece(
                lines_N=np.empty(stop - start, np.int8),
                labels_N=read("label"),
                dense_IN=dense_IN,
                sparse=columns,
                repaired={},
                bad=[],
                weights_N=read("weight") if self._weighted else None,
                groups_N=read("group") if self._grouped else None,
            )

    def labels(self, part: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint8 [stop - start]."""
        return self._read(part, ("label", 0), start, stop)

    def weights(self, part: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """float32 [stop - start], of rows with weights."""
        return self._read(part, ("weight", 0), start, stop)

    def groups(self, part: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint64 [stop - start], of rows with groups."""
        return self._read(part, ("group", 0), start, stop)

    def dense(self, part: int, start: int, stop: int) -> np.ndarray:
        """[I, stop - start]; NaN where missing."""
        columns = [self.dense_column(part, i, start, stop) for i in range(self._num_dense)]
        return np.stack(columns) if columns else np.empty((0, stop - start), self.dense_type)

    def dense_column(self, part: int, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """[stop - start]: the values of one dense feature; NaN where missing."""
        return self._read(part, ("dense", i), start, stop)

    def present(self, part: int, f: int, stop: int) -> np.ndarray:
        """Returns bool [stop]: which of the first rows have a value of a feature with at most one."""
        return self._present(part, f, 0, stop)

    def lengths(self, part: int, f: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns [stop - start]: number of values in the lists of a feature with several."""
        return self._read(part, ("lengths", f), start, stop)

    def values(self, part: int, f: int, stop: int | None = None) -> np.ndarray:
        """Returns the first `stop` values of a feature."""
        return self._read(part, ("values", f), 0, stop)

    def id_weights(self, part: int, f: int, start: int, stop: int) -> np.ndarray:
        """float32: the weights of the values from `start` to `stop` of a feature with weights."""
        return self._read(part, ("weights", f), start, stop)

    def text_words(self, part: int, f: int) -> np.ndarray:
        """Returns uint64 [K]: the words of the texts of a feature, which may be equal."""
        return self._read(part, ("words", f)) if ("words", f) in self._places(part) else _NO_WORDS

    def texts(self, part: int, f: int) -> HashedTexts:
        """Returns the texts of a feature that has some."""
        return HashedTexts(
            self.text_words(part, f), self._read(part, ("text lengths", f)), self._read(part, ("texts", f)).tobytes()
        )

    def some_texts(self, part: int, f: int) -> list[HashedTexts]:
        """Returns the texts of a feature, if it has some."""
        return [self.texts(part, f)] if ("texts", f) in self._places(part) else []

    def add(self, info: PartInfo) -> None:
        """Adds the next part, which is written."""
        self.infos.append(info)

    def _places(self, part: int) -> dict[_Name, _Place]:
        """Where each column is in the file of a part."""
        found = self._known_places.get(part)
        if found is None:
            found = self._find_places(self.infos[part])
            if len(self._known_places) >= _MOST_PLACES:
                self._known_places.clear()
            self._known_places[part] = found
        return found

    def _find_places(self, info: PartInfo) -> dict[_Name, _Place]:
        rows = info.rows
        columns: list[tuple[_Name, np.dtype, int]] = []
        if self._keyed:
            columns.append((("key", 0), _WORD_TYPE, rows))
        columns.append((("label", 0), LABEL_TYPE, rows))
        if self._weighted:
            columns.append((("weight", 0), WEIGHT_TYPE, rows))
        if self._grouped:
            columns.append((("group", 0), GROUP_TYPE, rows))
        columns += [(("dense", i), self.dense_type, rows) for i in range(self._num_dense)]
        for f, feature in enumerate(self._sparse):
            if feature.max_ids == 1:
                columns.append((("present", f), np.dtype("u1"), -(-rows // 8)))
            else:
                columns.append((("lengths", f), narrowest(feature.max_ids), rows))
            columns.append((("values", f), np.dtype(feature.value_type), info.values.get(feature.name, rows)))
            if feature.weights is not None:
                columns.append((("weights", f), WEIGHT_TYPE, info.values[feature.name]))
            if feature.name in info.texts:
                number, num_bytes = info.texts[feature.name]
                columns.append((("words", f), _WORD_TYPE, number))
                columns += [(("text lengths", f), LENGTH_TYPE, number), (("texts", f), _TEXT_TYPE, num_bytes)]
        places, at = {}, 0
        for name, dtype, count in columns:
            places[name] = at, count, dtype
            at += dtype.itemsize * count + -dtype.itemsize * count % _ALIGNMENT
        return places

    def _read(
        self, part: int, name: _Name, start: int = 0, stop: int | None = None, file: FileIO | None = None
    ) -> np.ndarray:
        """Reads some values of a column, from the file of the part if it is open."""
        offset, count, dtype = self._places(part)[name]
        stop = count if stop is None else stop
        assert 0 <= start <= stop <= count
        path, at = self._file(part), offset + start * dtype.itemsize
        if file is not None:
            return read_numbers(file, path, dtype, stop - start, at)
        return read_array(path, dtype, stop - start, at)

    def _present(self, part: int, f: int, start: int, stop: int, file: FileIO | None = None) -> np.ndarray:
        bits = self._read(part, ("present", f), start // 8, -(-stop // 8), file)
        return np.unpackbits(bits)[start % 8 :][: stop - start].view(bool)

    def _file(self, part: int) -> Path:
        return self.path / f"{part:06}.part"


def _description(path: Path) -> dict[str, Any]:
    """Returns the description at the end of a part."""
    size = path.stat().st_size
    length = int(read_array(path, _END, 1, size - _END.itemsize)[0])
    found: dict[str, Any] = json.loads(
        read_array(path, np.dtype("u1"), length, size - _END.itemsize - length).tobytes()
    )
    return found


def _write_column(file: BinaryIO, dtype: np.dtype, pieces: Sequence[np.ndarray | None]) -> None:
    size = 0
    for piece in pieces:
        content = np.ascontiguousarray(piece, dtype)
        file.write(content.data)
        size += content.nbytes
    file.write(bytes(-size % _ALIGNMENT))
