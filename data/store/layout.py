"""The layout of the blocks of a split on disk, and of the table of blocks.

A block is stored by column, each in its narrowest type and 8-byte aligned: dense columns as float16, or float32 where
the schema says so, the labels as uint8, weights as float32 and groups as uint64 if there are any, then per sparse
feature its ids; for a feature with several ids preceded by the lengths, and followed by the weights if it has some.
The table has the size and the checksum of each block, as small records in its own file: a terabyte of clicks has 65,000
blocks, which would take seconds to read as JSON. Bytes are little-endian.
"""

import os
import zlib
from pathlib import Path

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors, open_to_read
from dlrmctl.data.schema import Schema
from dlrmctl.data.source import Block, pooled_weights

DENSE_TYPE, WIDE_DENSE_TYPE = np.dtype("<f2"), np.dtype("<f4")
LABEL_TYPE = np.dtype("u1")
WEIGHT_TYPE, GROUP_TYPE = np.dtype("<f4"), np.dtype("<u8")
_ALIGNMENT = 8
_RECORD = np.dtype([("bytes", "<u8"), ("crc32", "<u4")])
RECORD_BYTES = _RECORD.itemsize
MOST_BLOCK_ROWS = 1 << 24  # readers have a few blocks in memory


def narrowest(largest: int) -> np.dtype:
    """Returns the smallest unsigned integer type for `largest`."""
    for code in ("u1", "<u2", "<u4"):
        if largest <= np.iinfo(code).max:
            return np.dtype(code)
    return np.dtype("<u8")


def dense_types(schema: Schema) -> list[np.dtype]:
    """The types of the I dense columns."""
    return [WIDE_DENSE_TYPE if name in schema.float32 else DENSE_TYPE for name in schema.dense]


def _example_types(schema: Schema) -> list[np.dtype]:
    """The types of label, weight and group, of those that there are."""
    weights, groups = schema.weight is not None, schema.group is not None
    return [LABEL_TYPE, *([WEIGHT_TYPE] if weights else ()), *([GROUP_TYPE] if groups else ())]


def as_stored(schema: Schema, dense_IN: np.ndarray) -> np.ndarray:
    """Dense values as they come out of a store: each rounded to the type of its column, and within its range."""
    if not schema.float32:
        return _rounded(dense_IN, DENSE_TYPE)
    rounded = [_rounded(dense_N, dtype) for dense_N, dtype in zip(dense_IN, dense_types(schema), strict=True)]
    return np.stack(rounded, dtype=WIDE_DENSE_TYPE)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if values.dtype != dtype == DENSE_TYPE:
        limit = np.finfo(dtype).max
        values = np.clip(values, -limit, limit)
    return values.astype(dtype, copy=False)


def pack(schema: Schema, block: Block) -> bytes:
    """Returns the bytes of a block.

    Raises:
        DataError: if the block does not fit the schema: an id outside its table, a list too long, a label not 0 or 1.
    """
    columns: list[np.ndarray] = []
    check_block(schema, block)
    columns.extend(dense_N.astype(t) for dense_N, t in zip(block.dense_IN, dense_types(schema), strict=True))
    of_examples = (column for column in (block.labels_N, block.weights_N, block.groups_N) if column is not None)
    columns.extend(column.astype(t) for column, t in zip(of_examples, _example_types(schema), strict=True))
    for f, feature in enumerate(schema.sparse):
        if feature.max_ids > 1:
            assert block.lengths_FN is not None
            columns.append(block.lengths_FN[f].astype(narrowest(feature.max_ids)))
        columns.append(block.ids_F[f].astype(narrowest(feature.rows - 1)))
        if feature.weights is not None:
            weights = block.id_weights_F[f] if block.id_weights_F is not None else None
            assert weights is not None
            columns.append(weights.astype(WEIGHT_TYPE))
    parts = []
    for column in columns:
        content = column.tobytes()
        parts += [content, bytes(_aligned(len(content)) - len(content))]
    return b"".join(parts)


def block_bytes(schema: Schema, num_rows: int) -> tuple[int, int]:
    """Returns the fewest and the most bytes of a block; they differ if lists of ids have lengths."""
    sizes = [dtype.itemsize * num_rows for dtype in (*dense_types(schema), *_example_types(schema))]
    most = 0
    for feature in schema.sparse:
        id_bytes = narrowest(feature.rows - 1).itemsize * num_rows
        if feature.max_ids == 1:
            sizes.append(id_bytes)
        else:
            sizes.append(narrowest(feature.max_ids).itemsize * num_rows)
            most += _aligned(id_bytes * feature.max_ids)
            if feature.weights is not None:
                most += _aligned(WEIGHT_TYPE.itemsize * num_rows * feature.max_ids)
    fewest = sum(_aligned(size) for size in sizes)
    return fewest, fewest + most


def unpack(schema: Schema, content: np.ndarray, num_rows: int) -> Block:
    """The block in the bytes `content` (uint8), as views of them; but for dense columns of several types.

    Raises:
        DataError: if the lengths of lists do not add up to the bytes.
    """
    at = 0

    def column(dtype: np.dtype, count: int) -> np.ndarray:
        nonlocal at
        start, size = at, dtype.itemsize * count
        at += _aligned(size)
        if at > len(content):
            raise DataError(f"its columns take more than its {len(content):,} bytes")
        return content[start : start + size].view(dtype)

    num_dense = len(schema.dense)
    if schema.float32:
        dense_IN = np.empty((num_dense, num_rows), WIDE_DENSE_TYPE)
        for dense_N, dtype in zip(dense_IN, dense_types(schema), strict=True):
            dense_N[:] = column(dtype, num_rows)
    else:
        stride = _aligned(num_rows * DENSE_TYPE.itemsize) // DENSE_TYPE.itemsize
        dense_IN = column(DENSE_TYPE, num_dense * stride).reshape(num_dense, stride)[:, :num_rows]
    labels_N = column(LABEL_TYPE, num_rows)
    weights_N = None if schema.weight is None else column(WEIGHT_TYPE, num_rows)
    groups_N = None if schema.group is None else column(GROUP_TYPE, num_rows)
    ids_F = []
    id_weights_F: list[np.ndarray | None] = [None] * len(schema.sparse)
    lengths_FN = None if schema.one_hot else np.ones((len(schema.sparse), num_rows), dtype=np.int32)
    for f, feature in enumerate(schema.sparse):
        count = num_rows
        if feature.max_ids > 1:
            assert lengths_FN is not None
            lengths_FN[f] = column(narrowest(feature.max_ids), num_rows)
            count = int(lengths_FN[f].sum())
        ids_F.append(column(narrowest(feature.rows - 1), count))
        if feature.weights is not None:
            id_weights_F[f] = column(WEIGHT_TYPE, count)
    if at < len(content):
        raise DataError(f"its columns take {at:,} of its {len(content):,} bytes")
    pooled = pooled_weights(schema, id_weights_F, lengths_FN)
    return Block(dense_IN, ids_F, labels_N, lengths_FN, weights_N, groups_N, pooled)


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT


def check_block(schema: Schema, block: Block) -> None:
    """Check that a block fits the schema.

    Raises:
        DataError: if it has other columns, an id outside its table, a list too long, or a label that is not 0 or 1.
    """
    num_rows, num_sparse = len(block), len(schema.sparse)
    if block.dense_IN.shape != (len(schema.dense), num_rows) or len(block.ids_F) != num_sparse:
        raise DataError(
            f"a block of {num_rows} examples has dense features of shape {block.dense_IN.shape} and "
            f"{len(block.ids_F)} sparse features; the schema has {len(schema.dense)} and {num_sparse}"
        )
    if not np.isin(block.labels_N, (0, 1)).all():
        raise DataError("a label is neither 0 nor 1")
    for name, wanted, there in (
        ("weights", schema.weight, block.weights_N),
        ("groups", schema.group, block.groups_N),
    ):
        if (wanted is None) != (there is None) or (there is not None and len(there) != num_rows):
            raise DataError(f"a block must have {name} if, and only if, the schema names them, one for each example")
    for f, feature in enumerate(schema.sparse):
        weights = None if block.id_weights_F is None else block.id_weights_F[f]
        if (feature.weights is not None and weights is None) or (weights is not None and not feature.weighted):
            raise DataError(f"feature {feature.name}: ids must have weights if, and only if, the schema names them")
        if weights is not None and not (len(weights) == len(block.ids_F[f]) and np.isfinite(weights).all()):
            raise DataError(f"feature {feature.name}: its weights are not finite numbers, one for each id")
    if block.weights_N is not None and not (np.isfinite(block.weights_N).all() and (block.weights_N >= 0).all()):
        raise DataError("a weight is below 0 or not finite")
    lengths_FN = block.lengths_FN
    if (lengths_FN is None) != schema.one_hot:
        raise DataError("a block must have lengths if, and only if, a feature of the schema may have several ids")
    for f, feature in enumerate(schema.sparse):
        count = num_rows if lengths_FN is None else int(lengths_FN[f].sum())
        if len(block.ids_F[f]) != count:
            raise DataError(f"feature {feature.name}: {len(block.ids_F[f])} ids, but the lengths add up to {count}")
        if lengths_FN is None or num_rows == 0:
            continue
        low, high = int(lengths_FN[f].min()), int(lengths_FN[f].max())
        if low < 0 or high > feature.max_ids or (feature.max_ids == 1 and low != 1):
            raise DataError(f"feature {feature.name}: a list of {high if high > feature.max_ids else low} ids")
    for feature, ids in zip(schema.sparse, block.ids_F, strict=True):
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < feature.rows):
            wrong = int(ids.max()) if int(ids.max()) >= feature.rows else int(ids.min())
            raise DataError(f"feature {feature.name}: id {wrong} is outside its {feature.rows:,} rows")


def table_file(split: str) -> str:
    """Returns the name of the file with the records of a split's blocks."""
    return f"{split}.blocks"


def block_record(content: bytes) -> bytes:
    """Returns the record of a block with these bytes."""
    return np.array([(len(content), zlib.crc32(content))], dtype=_RECORD).tobytes()


class BlockTable:
    """The places and checksums of the blocks in the file of one split.

    Args:
        path: the file of the table.
        schema: schema of the blocks.
        block_rows: examples of every block but the last one.
        examples: examples of the split.
        total_bytes: bytes of all blocks.
        crc32: CRC-32 of the table.

    Attributes:
        offsets: int64 [blocks + 1], the start of each block, and the end of the last one.
        checksums: uint32 [blocks], CRC-32 of each block.

    Raises:
        DataError: if the file cannot be read or was changed.
    """

    def __init__(
        self, path: Path, schema: Schema, *, block_rows: int, examples: int, total_bytes: int, crc32: int
    ) -> None:
        num_blocks = -(-examples // block_rows)
        with io_errors(path, "read"), open_to_read(path) as file:
            found, expected = os.fstat(file.fileno()).st_size, num_blocks * RECORD_BYTES
            if found != expected:
                raise DataError(f"{path}: {found:,} bytes, {num_blocks:,} blocks take {expected:,}")
            content = file.read()
        if zlib.crc32(content) != crc32:
            raise DataError(f"{path}: its content does not match its checksum in the manifest, {crc32}")
        records = np.frombuffer(content, dtype=_RECORD)
        sizes = records["bytes"].astype(np.int64)
        self._block_rows, self._examples = block_rows, examples
        for part, rows in ((slice(0, -1), block_rows), (slice(-1, None), examples - (num_blocks - 1) * block_rows)):
            low, high = block_bytes(schema, rows)
            wrong = np.flatnonzero((sizes[part] < low) | (sizes[part] > high))
            if len(wrong):
                size = sizes[part][wrong[0]]
                raise DataError(
                    f"{path}: a block of {rows:,} examples has {size:,} bytes, but takes {low:,} to {high:,}"
                )
        self.offsets = np.zeros(num_blocks + 1, dtype=np.int64)
        np.cumsum(sizes, out=self.offsets[1:])
        self.checksums = records["crc32"]
        if self.offsets[-1] != total_bytes:
            raise DataError(f"{path}: its blocks have {self.offsets[-1]:,} bytes, the manifest says {total_bytes:,}")

    def __len__(self) -> int:
        return len(self.checksums)

    def rows(self, index: int) -> int:
        """Returns the number of examples of a block."""
        return min(self._block_rows, self._examples - index * self._block_rows)
