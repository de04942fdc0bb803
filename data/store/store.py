"""A prepared data set on disk: a manifest, tables of blocks, and the blocks.

Blocks are read, not mapped: a truncated mapped file or a failing disk would end the process without an error, and the
bytes that were verified might not be those that are used.
"""

import hashlib
import json
import os
import weakref
import zlib
from pathlib import Path

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.files import descriptor_to_read, io_errors
from dlrmctl.data.source import SPLITS, Bayes, Block, check_split
from dlrmctl.data.store.layout import BlockTable, check_block, table_file, unpack
from dlrmctl.data.store.manifest import PREPARE_AGAIN, Manifest, read_manifest, split_file


class Store:
    """A source that reads the files written by a preparation or `write_store`.

    Args:
        path: the directory.
        verify: verify the checksum of each block when this process first reads it, and again after its file changed.

    Attributes:
        path: the directory.
        manifest: the content of `manifest.json`.
        name: name of the data.
        schema, block_rows: those of the blocks.
        features: how raw rows become examples like these.

    Raises:
        DataError: if there is no store at `path`, it has another version, its manifest was changed, or a file is
            missing or cut short.
    """

    def __init__(self, path: Path | str, verify: bool = True) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.name = self.manifest.called(self.path)
        self._verify = verify
        self.schema, self.block_rows = self.manifest.schema, self.manifest.block_rows
        self.features: FeatureSpace = self.manifest.features(self.path, self.fingerprint())
        self._splits = {split: _Split(self.path, self.manifest, split) for split in SPLITS}

    def num_examples(self, split: str) -> int:
        """The number of examples of the split."""
        check_split(split)
        return self.manifest.splits[split].examples

    def read_block(self, split: str, index: int) -> Block:
        """One block; safe to call from several threads.

        Raises:
            DataError: if its bytes were changed.
        """
        check_split(split)
        table = self._splits[split].table
        if not 0 <= index < len(table):
            raise DataError(f"the {split} split of {self.path} has no block {index}")
        return self._splits[split].read(index, verify=self._verify)

    def verify(self, split: str) -> None:
        """Verifies the checksums of all blocks of a split now.

        Skips blocks that this process verified before; ignores `verify=False` of the constructor.

        Raises:
            DataError: the one that reading the first wrong block would raise.
        """
        check_split(split)
        self._splits[split].verify()

    def fingerprint(self) -> str:
        """Depends on the schema and on the checksums of all blocks."""
        splits = {split: entry.to_dict(split) for split, entry in self.manifest.splits.items()}
        identity = json.dumps([self.schema.to_dict(), self.block_rows, splits], sort_keys=True)
        return "store-2:" + hashlib.sha256(identity.encode()).hexdigest()[:32]

    def vocabulary_fingerprint(self) -> str:
        """Depends on the encoders' files and schemes; without encoders on the copied source's identity of ids.

        A store with neither has ids of its own, identified by its data.
        """
        return self.features.vocabulary_fingerprint()

    def bayes(self, split: str) -> Bayes | None:
        """Returns None: the scores of the best possible model are unknown."""
        return None


class _Split:
    """The open file with the blocks of one split."""

    def __init__(self, store: Path, manifest: Manifest, split: str) -> None:
        entry = manifest.splits[split]
        self.path = store / split_file(split)
        self._schema = manifest.schema
        try:
            self.table = BlockTable(
                store / table_file(split),
                manifest.schema,
                block_rows=manifest.block_rows,
                examples=entry.examples,
                total_bytes=entry.bytes,
                crc32=entry.table_crc32,
            )
        except DataError as error:
            raise DataError(error.message, error.hint or PREPARE_AGAIN) from error
        with io_errors(self.path, "read"):
            self._file = descriptor_to_read(self.path)
            weakref.finalize(self, os.close, self._file)
            found, _ = self._stamp_now()
        if found != entry.bytes:
            raise DataError(f"{self.path}: {found:,} bytes, the manifest says {entry.bytes:,}", PREPARE_AGAIN)
        self._compared: dict[int, tuple[int, int]] = {}  # block -> the stamp of its file at that time

    def read(self, index: int, *, verify: bool) -> Block:
        """Reads a block.

        Raises:
            DataError: if its bytes are missing, were changed, or do not fit the schema.
        """
        start, stop = self.table.offsets[index : index + 2].tolist()
        content = np.empty(stop - start, dtype=np.uint8)
        with io_errors(self.path, "read"):
            at = 0
            while count := os.preadv(self._file, [content[at:].data], start + at):
                at += count
            stamp = self._stamp_now()
        if at < len(content):
            raise DataError(f"{self.path}, block {index}: cut short", PREPARE_AGAIN)
        is_new = verify and self._compared.get(index) != stamp
        if is_new and zlib.crc32(content.data) != self.table.checksums[index]:
            raise DataError(f"{self.path}, block {index}: changed since it was prepared", PREPARE_AGAIN)
        try:
            block = unpack(self._schema, content, self.table.rows(index))
            if is_new:
                check_block(self._schema, block)  # whoever wrote the checksum may have written anything
        except DataError as error:
            raise DataError(f"{self.path}, block {index}: {error.message}", PREPARE_AGAIN) from None
        if is_new:
            self._compared[index] = stamp
        return block

    def verify(self) -> None:
        """Verifies blocks that were not verified yet, or whose file was changed since."""
        for index in range(len(self.table)):
            if self._compared.get(index) != self._stamp_now():
                self.read(index, verify=True)

    def _stamp_now(self) -> tuple[int, int]:
        """Returns the size and modification time, in nanoseconds."""
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns
