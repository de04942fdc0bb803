"""An input that is in memory, with every kind of feature that an input may have."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from dlrmctl.data.formats.raw import Position, RawColumn, RawFeature, RawPiece, SourceFile, Task
from dlrmctl.data.formats.transforms import DenseTransform

FEATURES = (
    RawFeature("user"),
    RawFeature("url", "<u8"),
    RawFeature("genres", "<u4", max_ids=4),
    RawFeature("history", "<u8", max_ids=300),
    RawFeature("hour", "<u4", as_rows=True),
    RawFeature("path", "<u8", max_ids=2, as_rows=True),
)


class ArrayInput:
    """Random examples.

    Args:
        rows: of each source.
        piece_rows: of a piece.
        features: some of `FEATURES`.
        seed: of the values.

    Attributes:
        labels_N, dense_IN: of all rows.
        lists_FN: by feature, the list of values of every row; empty where missing.
    """

    format = "arrays"
    dense = ("price", "age")
    dense_type = np.dtype(np.float16)
    label = "clicked"
    dense_transform = DenseTransform(-1.0, "x")
    table_schema = None
    keyed_by = None
    weight = group = None

    def __init__(
        self, rows: Sequence[int], piece_rows: int = 50, features: Sequence[RawFeature] = FEATURES, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        total = sum(rows)
        self.sparse, self._piece_rows, self._rows, self._seed = tuple(features), piece_rows, list(rows), seed
        self.sources = tuple(SourceFile(f"part {number}", count) for number, count in enumerate(rows))
        self.labels_N = (rng.random(total) < 0.3).astype(np.uint8)
        self.dense_IN = rng.integers(-1, 9, (2, total)).astype(np.float16)
        self.lists_FN: list[list[list[int]]] = []
        for f, feature in enumerate(features):
            lengths_N = rng.integers(0, min(feature.max_ids, 6) + 1, total)
            values = np.minimum(rng.zipf(1.4, int(lengths_N.sum())), 5000).astype(np.uint64)
            if not feature.as_rows:
                top = np.uint64(np.iinfo(feature.value_type).max)
                values = values * np.uint64(0x9E3779B97F4A7C15 + 2 * f) % top
            ends = np.cumsum(lengths_N)
            self.lists_FN.append([part.tolist() for part in np.split(values, ends[:-1])])

    def identity(self) -> Mapping[str, Any]:
        return {"rows": self._rows, "seed": self._seed}

    def with_raw(self) -> None:
        """It cannot be read again."""

    def tasks(self, after: Position | None = None) -> Iterator[Task]:
        first = 0
        for number, count in enumerate(self._rows):
            for start in range(first, first + count, self._piece_rows):
                stop = min(start + self._piece_rows, first + count)
                if after is None or stop > after["row"]:
                    yield Task(number, {"row": stop}, stop, partial(self._piece, start, stop, first))
            first += count

    def _piece(self, start: int, stop: int, first: int) -> RawPiece:
        columns = []
        for feature, lists_N in zip(self.sparse, self.lists_FN, strict=True):
            some = lists_N[start:stop]
            if feature.max_ids == 1:
                values = np.array([(*values, 0)[0] for values in some], feature.value_type)
                columns.append(RawColumn(values, present_N=np.array([bool(values) for values in some])))
            else:
                flat = np.array([value for values in some for value in values], feature.value_type)
                columns.append(RawColumn(flat, lengths_N=np.array([len(values) for values in some], np.int32)))
        lines_N = np.arange(start, stop) - first + 1
        return RawPiece(lines_N, self.labels_N[start:stop], self.dense_IN[:, start:stop], columns, {}, [])
