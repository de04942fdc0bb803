"""The table of a split's blocks: the size and the checksum of each, as small records in a file of their own.

A terabyte of clicks has 65,000 blocks; as JSON in the manifest their table would take seconds to read.
"""

import zlib
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.files import io_errors
from data.layout import block_bytes
from data.schema import Schema

_RECORD = np.dtype([("bytes", "<u8"), ("crc32", "<u4")])
RECORD_BYTES = _RECORD.itemsize


def table_file(split: str) -> str:
    """Name of the file with the records of a split's blocks."""
    return f"{split}.blocks"


def block_record(content: bytes) -> bytes:
    """The record of a block with these bytes."""
    return np.array([(len(content), zlib.crc32(content))], dtype=_RECORD).tobytes()


class BlockTable:
    """Where the blocks of one split lie in the split's file, and what their checksums are.

    Args:
        path: of the table's file.
        schema: of the blocks.
        block_rows: examples of every block but the last one.
        examples: of the split.
        total_bytes: of all blocks.
        crc32: of the table.

    Attributes:
        offsets: int64 [blocks + 1], where each block starts, and where the last one ends.
        checksums: uint32 [blocks], CRC-32 of each block.

    Raises:
        DataError: saying what is wrong, if the file cannot be read or is not as it was written.
    """

    def __init__(
        self, path: Path, schema: Schema, *, block_rows: int, examples: int, total_bytes: int, crc32: int
    ) -> None:
        num_blocks = -(-examples // block_rows)
        with io_errors(path, "read"):
            content = path.read_bytes()
        if len(content) != num_blocks * RECORD_BYTES:
            raise DataError(f"{path}: {len(content):,} bytes, {num_blocks:,} blocks take {num_blocks * RECORD_BYTES:,}")
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
        """Examples of a block."""
        return min(self._block_rows, self._examples - index * self._block_rows)
