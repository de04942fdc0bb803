"""A prepared data set on disk: a manifest, tables of blocks, and the blocks.

Blocks are read, not mapped: a mapped file that is cut short, or a disk that fails, would end the process without a
word; and the bytes that were compared with their checksum are then the ones that are used.
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
from dlrmctl.data.files import io_errors
from dlrmctl.data.source import SPLITS, Bayes, Block, check_split
from dlrmctl.data.store.layout import BlockTable, table_file, unpack
from dlrmctl.data.store.manifest import PREPARE_AGAIN, Manifest, read_manifest, split_file


class Store:
    """A source that reads the files which a preparation or `write_store` wrote.

    Args:
        path: the directory.
        verify: compare the checksum of each block when this process first reads it, and again after its file changed.

    Attributes:
        path: the directory.
        manifest: everything `manifest.json` says.
        name: of the data.
        schema, block_rows: of the blocks.
        features: what raw rows need to become examples like these.

    Raises:
        DataError: if there is no store at `path`, it is of another version, its manifest was edited or damaged, or a
            file is missing or cut short.
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
        """Examples of the split."""
        check_split(split)
        return self.manifest.splits[split].examples

    def read_block(self, split: str, index: int) -> Block:
        """One block; safe to call from several threads.

        Raises:
            DataError: if its bytes are not the ones that were written.
        """
        check_split(split)
        table = self._splits[split].table
        if not 0 <= index < len(table):
            raise DataError(f"the {split} split of {self.path} has no block {index}")
        content = self._splits[split].read(index, verify=self._verify)
        return unpack(self.schema, content, table.rows(index))

    def verify(self, split: str) -> None:
        """Compares the checksums of all blocks of a split now, so that a wrong one is not found much later.

        Blocks that this process compared before are left out; `verify=False` of the constructor does not matter.

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
        """Depends on the encoders' files and schemes; without encoders on what the copied source said of its ids.

        A store that knows neither has ids that mean something in it alone, and gives the identity of its data.
        """
        return self.features.vocabulary_fingerprint()

    def bayes(self, split: str) -> Bayes | None:
        """None: nobody knows what the best possible model scores on these examples."""
        return None


class _Split:
    """The file with the blocks of one split, open for as long as this lives."""

    def __init__(self, store: Path, manifest: Manifest, split: str) -> None:
        entry = manifest.splits[split]
        self.path = store / split_file(split)
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
            self._file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            found, _ = self._stamp_now()
        if found != entry.bytes:
            raise DataError(f"{self.path}: {found:,} bytes, the manifest says {entry.bytes:,}", PREPARE_AGAIN)
        self._compared: dict[int, tuple[int, int]] = {}  # block -> the stamp of its file then

    def read(self, index: int, *, verify: bool) -> np.ndarray:
        """The bytes of a block, uint8.

        Raises:
            DataError: if they are not there, or not the ones that were written.
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
        if verify and self._compared.get(index) != stamp:
            if zlib.crc32(content.data) != self.table.checksums[index]:
                raise DataError(f"{self.path}, block {index}: changed since it was prepared", PREPARE_AGAIN)
            self._compared[index] = stamp
        return content

    def verify(self) -> None:
        """Reads what was not compared yet, or was written to since."""
        for index in range(len(self.table)):
            if self._compared.get(index) != self._stamp_now():
                self.read(index, verify=True)

    def _stamp_now(self) -> tuple[int, int]:
        """Size and time of the last change, in nanoseconds."""
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns
