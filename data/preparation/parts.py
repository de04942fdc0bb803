"""Parsed rows on disk between the passes of a preparation: numbered files of many rows, whole or absent.

In a part, column follows column: the labels, the dense features, and for every sparse feature one bit per row (is the
value there?) or the lengths of the lists, then the values. What the part holds is said at its end, as JSON. The journal
beside the parts names the version of their format.
I dense features, N rows of a part.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dlrmctl.data.files import io_errors, read_array, sync_file
from dlrmctl.data.formats.raw import RawFeature, RawPiece
from dlrmctl.data.store.layout import DENSE_TYPE, LABEL_TYPE, narrowest

_ALIGNMENT = 8
_END = np.dtype("<u8")  # the last bytes of a part: the size of its JSON
_UNIT = 2.0**-24  # every finite float16 is a whole multiple of it, so that sums of them are exact as integers


class Parts:
    """The parts in a directory.

    Args:
        path: of the directory; made when the first part is written.
        dense: names of the dense features.
        sparse: the sparse features.
        infos: of parts that are there, or were there.

    Attributes:
        infos: of each part: its rows, the number of values in its lists, the tallies of its dense features.
    """

    def __init__(
        self, path: Path, dense: Sequence[str], sparse: Sequence[RawFeature], infos: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.path, self._dense, self._sparse = path, tuple(dense), tuple(sparse)
        self.infos: list[dict[str, Any]] = []
        self._places: list[dict[tuple[str, int], tuple[int, int]]] = []  # of each column: offset and count
        for info in infos:
            self._add(info)

    def __len__(self) -> int:
        return len(self.infos)

    def load(self) -> dict[str, Any] | None:
        """Takes in the parts that are whole, as far as none is missing; the `about` of the last one."""
        info = None
        with io_errors(self.path, "read"):
            while self._file(len(self)).exists():
                path = self._file(len(self))
                size = path.stat().st_size
                length = int(read_array(path, _END, 1, size - _END.itemsize)[0])
                content = read_array(path, np.dtype("u1"), length, size - _END.itemsize - length)
                info = json.loads(content.tobytes())
                self._add(info)
        return info["about"] if info else None

    def write(self, pieces: Sequence[RawPiece], about: Mapping[str, Any], missing_dense: float | None) -> None:
        """Makes the next part and brings it to the disk.

        Args:
            pieces: of the input, one after another.
            about: kept with the part.
            missing_dense: the dense value that stands for a missing one.

        Raises:
            DataError: if the disk is full.
        """
        info: dict[str, Any] = {"rows": sum(len(piece) for piece in pieces), "values": {}, "dense": [], "about": about}
        path = self._file(len(self))
        unfinished = path.with_suffix(".tmp")
        with io_errors(path, "write"):
            self.path.mkdir(exist_ok=True)
            with unfinished.open("wb") as file:
                _write_column(file, LABEL_TYPE, [piece.labels_N for piece in pieces])
                for i in range(len(self._dense)):
                    dense_N = np.concatenate([piece.dense_IN[i] for piece in pieces]).astype(DENSE_TYPE, copy=False)
                    info["dense"].append(dense_tally(dense_N, missing_dense))
                    _write_column(file, DENSE_TYPE, [dense_N])
                for f, feature in enumerate(self._sparse):
                    columns = [piece.sparse[f] for piece in pieces]
                    if feature.max_ids == 1:
                        present_N = np.concatenate([column.present_N for column in columns])
                        _write_column(file, np.dtype("u1"), [np.packbits(present_N)])
                    else:
                        lengths = [column.lengths_N for column in columns if column.lengths_N is not None]
                        _write_column(file, narrowest(feature.max_ids), lengths)
                        info["values"][feature.name] = sum(len(column.values) for column in columns)
                        assert sum(int(lengths_N.sum()) for lengths_N in lengths) == info["values"][feature.name]
                    _write_column(file, np.dtype(feature.value_type), [column.values for column in columns])
                content = json.dumps(info).encode()
                file.write(content + np.array([len(content)], _END).tobytes())
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            sync_file(self.path)
        self._add(info)

    def remove(self, part: int) -> None:
        """Gives the space of a part back."""
        with io_errors(self._file(part), "write"):
            self._file(part).unlink(missing_ok=True)

    def labels(self, part: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint8 [stop - start]."""
        return self._read(part, ("label", 0), LABEL_TYPE, start, stop)

    def dense(self, part: int, start: int, stop: int) -> np.ndarray:
        """float16 [I, stop - start]."""
        columns = [self._read(part, ("dense", i), DENSE_TYPE, start, stop) for i in range(len(self._dense))]
        return np.stack(columns) if columns else np.empty((0, stop - start), DENSE_TYPE)

    def present(self, part: int, f: int, stop: int) -> np.ndarray:
        """bool [stop]: which of the first rows have a value of a feature with at most one."""
        bits = self._read(part, ("present", f), np.dtype("u1"), 0, -(-stop // 8))
        return np.unpackbits(bits, count=stop).view(bool)

    def lengths(self, part: int, f: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """[stop - start]: values in the lists of a feature with several."""
        return self._read(part, ("lengths", f), narrowest(self._sparse[f].max_ids), start, stop)

    def values(self, part: int, f: int, stop: int | None = None) -> np.ndarray:
        """The first `stop` values of a feature."""
        return self._read(part, ("values", f), np.dtype(self._sparse[f].value_type), 0, stop)

    def _add(self, info: Mapping[str, Any]) -> None:
        rows = int(info["rows"])
        columns = [(("label", 0), LABEL_TYPE, rows)] + [
            (("dense", i), DENSE_TYPE, rows) for i in range(len(self._dense))
        ]
        for f, feature in enumerate(self._sparse):
            if feature.max_ids == 1:
                columns.append((("present", f), np.dtype("u1"), -(-rows // 8)))
            else:
                columns.append((("lengths", f), narrowest(feature.max_ids), rows))
            columns.append((("values", f), np.dtype(feature.value_type), int(info["values"].get(feature.name, rows))))
        places, at = {}, 0
        for name, dtype, count in columns:
            places[name] = at, count
            at += dtype.itemsize * count + -dtype.itemsize * count % _ALIGNMENT
        self._places.append(places)
        self.infos.append({key: info[key] for key in ("rows", "values", "dense")})

    def _read(self, part: int, name: tuple[str, int], dtype: np.dtype, start: int, stop: int | None) -> np.ndarray:
        offset, count = self._places[part][name]
        stop = count if stop is None else stop
        assert 0 <= start <= stop <= count
        return read_array(self._file(part), dtype, stop - start, offset + start * dtype.itemsize)

    def _file(self, part: int) -> Path:
        return self.path / f"{part:06}.part"


def _write_column(file: BinaryIO, dtype: np.dtype, pieces: Sequence[np.ndarray]) -> None:
    size = 0
    for piece in pieces:
        content = np.ascontiguousarray(piece, dtype)
        file.write(content.data)
        size += content.nbytes
    file.write(bytes(-size % _ALIGNMENT))


with np.errstate(invalid="ignore"):
    _VALUES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)


_FINITE = np.isfinite(_VALUES)
_UNITS = (np.where(_FINITE, _VALUES, 0.0) / _UNIT).astype(np.int64)


def dense_tally(values_N: np.ndarray, missing: float | None) -> list[int | float]:
    """How many float16 values are missing and how many are not, their sum in units of 2**-24, lowest and highest.

    The sum is exact, so that it does not depend on how the values are divided into pieces. At most 2**23 values.
    """
    counts = np.bincount(values_N.view(np.uint16), minlength=1 << 16)
    absent = 0
    if missing is not None:
        code = int(np.array([missing], np.float16).view(np.uint16)[0])
        absent, counts[code] = int(counts[code]), 0
    counts[~_FINITE] = 0
    seen = _VALUES[counts > 0]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)
    return [absent, int(counts.sum()), int(counts @ _UNITS), low, high]


def join_dense_tallies(tallies: Sequence[Sequence[int | float]]) -> tuple[int, int, float, float, float]:
    """Missing, not missing, mean, lowest and highest of all values; zeros where there is none."""
    absent, present, units = (int(sum(int(tally[i]) for tally in tallies)) for i in range(3))
    lows, highs = ([tally[i] for tally in tallies if tally[1]] for i in (3, 4))
    mean = units / present * _UNIT if present else 0.0
    return absent, present, mean, float(min(lows, default=0.0)), float(max(highs, default=0.0))
