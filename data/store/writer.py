"""Writes a store: the blocks of each split, then the manifest, which makes it a store."""

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.dense import FittedDense
from dlrmctl.data.files import io_errors
from dlrmctl.data.schema import Schema
from dlrmctl.data.source import SPLITS, Block, Source
from dlrmctl.data.store.layout import MOST_BLOCK_ROWS, RECORD_BYTES, block_record, pack, table_file
from dlrmctl.data.store.manifest import Manifest, Preparation, SplitEntry, split_file, write_manifest

STORE_BLOCK_ROWS = 8192  # a shuffled epoch has 32 of them open, which ranks share


@dataclass
class _SplitFiles:
    """The two files of a split, blocks and their table, and how far they are written."""

    blocks: BinaryIO
    table: BinaryIO
    written: SplitEntry


class StoreWriter:
    """Fills an existing directory; only `finish` makes it a store.

    Args:
        path: the directory.
        schema: of every block.
        block_rows: examples of every block but the last one of a split.
        state: where to continue: `state()` of an earlier writer of the same directory, schema and `block_rows`, after
            `sync()`. What was written later is cut off.

    Raises:
        DataError: if the files cannot be written, or are shorter than in `state`.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        *,
        block_rows: int = STORE_BLOCK_ROWS,
        state: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        if not 1 <= block_rows <= MOST_BLOCK_ROWS:
            raise DataError(f"blocks of {block_rows} examples must have at least 1, and at most {MOST_BLOCK_ROWS}")
        self.path, self.schema, self.block_rows = path, schema, block_rows
        self._splits: dict[str, _SplitFiles] = {}
        for split in SPLITS:
            blocks, table = path / split_file(split), path / table_file(split)
            if state is None:
                nothing = SplitEntry(0, 0, zlib.crc32(b""))
                self._splits[split] = _SplitFiles(_open(blocks, "wb"), _open(table, "wb"), nothing)
                continue
            written = SplitEntry(**state[split])
            num_blocks = -(-written.examples // block_rows)
            files = _SplitFiles(_open(blocks, "r+b"), _open(table, "r+b"), written)
            _cut(files.blocks, blocks, written.bytes)
            _cut(files.table, table, num_blocks * RECORD_BYTES)
            self._splits[split] = files

    @property
    def bytes_written(self) -> int:
        """Returns the bytes of all blocks so far."""
        return sum(files.written.bytes for files in self._splits.values())

    def add(self, split: str, block: Block) -> None:
        """Appends a block to its split.

        Raises:
            DataError: if a block other than the last does not have `block_rows` examples, it does not fit the schema,
                or the disk is full.
        """
        content = pack(self.schema, block)
        self.add_encoded(split, len(block), content, block_record(content))

    def add_encoded(self, split: str, num_examples: int, content: bytes, record: bytes) -> None:
        """Appends a block from `layout.pack` with its `layout.block_record`, for callers that encode in workers.

        Raises:
            DataError: if a block other than the last does not have `block_rows` examples, or the disk is full.
        """
        files = self._splits[split]
        written = files.written
        if not 0 < num_examples <= self.block_rows or written.examples % self.block_rows:
            raise DataError(f"only the last block of a split may have fewer than {self.block_rows} examples")
        with io_errors(self.path / split_file(split), "write"):
            files.blocks.write(content)
        with io_errors(self.path / table_file(split), "write"):
            files.table.write(record)
        files.written = SplitEntry(
            written.examples + num_examples, written.bytes + len(content), zlib.crc32(record, written.table_crc32)
        )

    def state(self) -> dict[str, dict[str, int]]:
        """Returns how far every split is written, as small plain values for JSON; true of the disk after `sync()`."""
        return {split: asdict(files.written) for split, files in self._splits.items()}

    def sync(self) -> None:
        """Flushes all blocks so far to disk, so that a writer can continue from `state()` after a crash.

        Raises:
            DataError: if the disk is full.
        """
        for split, files in self._splits.items():
            for file, name in ((files.blocks, split_file(split)), (files.table, table_file(split))):
                with io_errors(self.path / name, "write"):
                    file.flush()
                    os.fsync(file.fileno())

    def finish(
        self,
        preparation: Preparation | None = None,
        *,
        vocabulary_fingerprint: str | None = None,
        name: str | None = None,
        dense: Sequence[FittedDense] = (),
        own_dense: Sequence[FittedDense] = (),
    ) -> None:
        """Flushes everything to disk and writes the manifest.

        Args:
            preparation: how the examples were made from raw rows.
            vocabulary_fingerprint: fingerprint of a source that was copied.
            name: of the data.
            dense: the dense features over the training examples, if they were fitted.
            own_dense: see `FeatureSpace`.
        """
        self.sync()
        self.close()
        splits = {split: files.written for split, files in self._splits.items()}
        content = Manifest(
            self.schema,
            self.block_rows,
            splits,
            preparation,
            vocabulary_fingerprint,
            name,
            dense=tuple(dense),
            own_dense=tuple(own_dense),
        )
        write_manifest(self.path, content)

    def close(self) -> None:
        """Closes the files and keeps them."""
        for split, files in self._splits.items():
            for file, name in ((files.blocks, split_file(split)), (files.table, table_file(split))):
                with io_errors(self.path / name, "write"):
                    file.close()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        for files in self._splits.values():
            for file in (files.blocks, files.table):
                try:
                    file.close()
                except OSError:  # the original error says more
                    continue


def _open(path: Path, mode: str) -> BinaryIO:
    with io_errors(path, "write"):
        return path.open(mode)  # type: ignore[return-value]


def _cut(file: BinaryIO, path: Path, size: int) -> None:
    """Truncates a file to `size` bytes, and continues after them."""
    with io_errors(path, "write"):
        found = file.seek(0, os.SEEK_END)
        if found < size:
            raise DataError(f"{path}: {found:,} bytes, but {size:,} were written", "start over")
        file.truncate(size)
        file.seek(size)


def write_store(source: Source, path: Path) -> None:
    """Copies every split of a source into a store in the directory `path`, which must not exist.

    Raises:
        DataError: if it exists or cannot be written.
    """
    with io_errors(path, "write"):
        path.mkdir(parents=True)
    with StoreWriter(path, source.schema, block_rows=source.block_rows) as writer:
        for split in SPLITS:
            for index in range(-(-source.num_examples(split) // source.block_rows)):
                writer.add(split, source.read_block(split, index))
        writer.finish(vocabulary_fingerprint=source.vocabulary_fingerprint(), dense=source.features.dense)
