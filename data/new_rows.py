"""Makes batches of rows that are in no store, for a trained model to score."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dlrmctl.data.batch import Batch, PickedRows, join_batch, pick_rows
from dlrmctl.data.errors import DataError
from dlrmctl.data.features.encoders import Encoder
from dlrmctl.data.formats.raw import BadLine, Input, KeptColumns, RawPiece
from dlrmctl.data.schema import Schema
from dlrmctl.data.source import Block, pooled_weights
from dlrmctl.data.store.layout import as_stored


@dataclass(frozen=True)
class NewRows:
    """The rows of one piece of an input, in order.

    Attributes:
        block: the good rows; labels are 0 where the input has none.
        source: name of the text or file.
        lines_N: int64, the line of each row in the source, counted from 1.
        repaired: number of rows whose line was repaired, by repair.
        bad: the omitted lines, in order.
        kept: the columns that the input was to keep.
    """

    block: Block
    source: str
    lines_N: np.ndarray
    repaired: Mapping[str, int]
    bad: Sequence[BadLine]
    kept: KeptColumns | None = None


def read_new_rows(input: Input, encoders: Mapping[str, Encoder], schema: Schema) -> Iterator[NewRows]:
    """Reads an input piece by piece, with the ids of a model.

    Args:
        input: an input with the features of the training data.
        encoders: the encoders of the training data, `FeatureSpace.encoders()`.
        schema: the schema of that data.

    Raises:
        DataError: if a source cannot be used, or the input has other features.
    """
    for what, ours, theirs in (
        ("dense", schema.dense, tuple(input.dense)),
        ("sparse", schema.keys, tuple(feature.name for feature in input.sparse)),
    ):
        if ours != theirs:
            other = next((name for name in (*ours, *theirs) if (name in ours) != (name in theirs)), "their order")
            raise DataError(
                f"the rows have the {what} features {_few(theirs)}, the model has {_few(ours)}; {other!r} differs",
                "give the rows in the form that the training data had for `prepare`",
            )
    return _encode(input, encoders, schema)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]}"


def _encode(input: Input, encoders: Mapping[str, Encoder], schema: Schema) -> Iterator[NewRows]:
    for task in input.tasks():
        rows = task.read()
        block = encode_rows(rows, encoders, schema)
        yield NewRows(block, input.sources[task.source].name, rows.lines_N, rows.repaired, rows.bad, rows.kept)


def encode_rows(rows: RawPiece, encoders: Mapping[str, Encoder], schema: Schema) -> Block:
    """Returns the good rows of a piece, with the ids of a model.

    Raises:
        DataError: for an id that is not below the rows of its table.
    """
    ids_F: list[np.ndarray] = []
    lengths_FN = None if schema.one_hot else np.ones((len(schema.sparse), len(rows)), dtype=np.int32)
    for f, (feature, column) in enumerate(zip(schema.sparse, rows.sparse, strict=True)):
        ids = encoders[feature.name].encode(column.values, column.present_N)
        if column.lengths_N is not None:
            assert lengths_FN is not None
            lengths_FN[f] = column.lengths_N
        _check_rows(feature.name, ids, feature.rows)
        ids_F.append(ids)
    dense_IN = as_stored(schema, rows.dense_IN)
    id_weights_F = pooled_weights(schema, [column.weights for column in rows.sparse], lengths_FN)
    return Block(dense_IN, ids_F, rows.labels_N, lengths_FN, rows.weights_N, rows.groups_N, id_weights_F)


def _check_rows(name: str, ids: np.ndarray, rows: int) -> None:
    # Only inputs whose ids already are rows can have one.
    if len(ids) and int(ids.max()) >= rows:
        raise DataError(f"{name}: id {int(ids.max()):,} is not below the {rows:,} rows of the model's table")


def cut_batches(blocks: Iterator[Block], keys: tuple[str, ...], batch_size: int) -> Iterator[Batch]:
    """Yields the rows of all blocks in order, `batch_size` at a time; the last batch is padded as by a reader.

    Batches of one shape give a row the same bits as in evaluation.
    """
    pieces: list[tuple[PickedRows, int, int]] = []
    filled = 0
    for block in blocks:
        rows, at = pick_rows(block, slice(0, len(block), 1)), 0
        while at < len(block):
            take = min(batch_size - filled, len(block) - at)
            pieces.append((rows, at, at + take))
            at, filled = at + take, filled + take
            if filled == batch_size:
                yield join_batch(pieces, keys, filled)
                pieces, filled = [], 0
    if pieces:
        last, _, stop = pieces[-1]
        pieces += [(last, stop - 1, stop)] * (batch_size - filled)
        yield join_batch(pieces, keys, filled)
