"""A prepared data set on disk: a manifest, tables of blocks, and the blocks.

Blocks are read, not mapped: a truncated mapped file or a failing disk would end the process without an error, and the
bytes that were verified might not be those that are used.
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.source import SPLITS, Bayes, Block, check_split
from dlrmctl.data.store.layout import BlockTable, check_block, table_file, unpack
from dlrmctl.data.store.manifest import PREPARE_AGAIN, Manifest, read_manifest, split_file
from dlrmctl.data.store.places import BlockFile, LocalPlace, RemotePlace, Stamp

_VERIFIED_AHEAD = 8  # blocks


class Store:
    """A source that reads the files written by a preparation or `write_store`.

    Args:
        path: the directory; or the place of one on another machine.
        verify: verify the checksum of each block when this process first reads it, and again after its file changed.

    Attributes:
        path: the directory; of a store on another machine, of its files without the blocks.
        manifest: the content of `manifest.json`.
        name: name of the data.
        schema, block_rows: those of the blocks.
        features: how raw rows become examples like these.
        bytes_read: bytes of blocks that this process read, by split.

    Raises:
        DataError: if there is no store at `path`, it has another version, its manifest was changed, or a file is
            missing or cut short.
    """

    def __init__(self, path: Path | str | RemotePlace, verify: bool = True) -> None:
        place = path if isinstance(path, RemotePlace) else LocalPlace(Path(path))
        self.path, self._place = place.path, place
        self.manifest = read_manifest(self.path)
        self.name = self.manifest.called(Path(str(place)))
        self._verify = verify
        self.schema, self.block_rows = self.manifest.schema, self.manifest.block_rows
        self.features: FeatureSpace = self.manifest.features(self.path, self.fingerprint())
        self._splits = {split: _Split(place, self.manifest, split) for split in SPLITS}

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
            raise DataError(f"the {split} split of {self._place} has no block {index}")
        return self._splits[split].read(index, verify=self._verify)

    def expect(self, split: str, indices: Sequence[int]) -> None:
        """See `Expecting`: fetches blocks from another machine, a few at a time, and keeps them until they are read."""
        self._splits[split].expect(indices)

    @property
    def bytes_read(self) -> dict[str, int]:
        return {name: split.bytes_read for name, split in self._splits.items()}

    def verify(self, split: str, *, rank: int = 0, world_size: int = 1) -> None:
        """Verifies the checksums of the blocks of a split now: of all, or of the rank's share of its rows.

        Skips blocks that this process verified before; ignores `verify=False` of the constructor.

        Raises:
            DataError: the one that reading the first wrong block would raise.
        """
        check_split(split)
        first, end = (self.num_examples(split) * part // world_size for part in (rank, rank + 1))
        self._splits[split].verify(first // self.block_rows, -(-end // self.block_rows))

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

    def __init__(self, place: LocalPlace | RemotePlace, manifest: Manifest, split: str) -> None:
        entry = manifest.splits[split]
        self.path = f"{place}/{split_file(split)}"
        self._schema = manifest.schema
        try:
            self.table = BlockTable(
                place.path / table_file(split),
                manifest.schema,
                block_rows=manifest.block_rows,
                examples=entry.examples,
                total_bytes=entry.bytes,
                crc32=entry.table_crc32,
            )
        except DataError as error:
            raise DataError(error.message, error.hint or PREPARE_AGAIN) from error
        self._file: BlockFile = place.blocks(split)
        found = self._file.num_bytes
        if found != entry.bytes:
            raise DataError(f"{self.path}: {found:,} bytes, the manifest says {entry.bytes:,}", PREPARE_AGAIN)
        self.bytes_read = 0
        self._threads = place.threads
        self._coming: dict[int, Future[tuple[np.ndarray, int, Stamp | None]]] = {}
        self._compared: dict[int, Stamp | None] = {}  # block -> the stamp of its file at that time

    def expect(self, indices: Sequence[int]) -> None:
        """Begins to fetch blocks, if they are on another machine; drops others that were fetched and not read."""
        if self._threads is None:
            return
        for index in self._coming.keys() - set(indices):
            self._coming.pop(index).cancel()
        for index in indices:
            if index not in self._coming:
                self._coming[index] = self._threads.submit(self._fetch, index)

    def _fetch(self, index: int) -> tuple[np.ndarray, int, Stamp | None]:
        """Returns the bytes of a block, how many of them are there, and their stamp."""
        start, stop = self.table.offsets[index : index + 2].tolist()
        content = np.empty(stop - start, dtype=np.uint8)
        return content, *self._file.read(start, content)

    def read(self, index: int, *, verify: bool) -> Block:
        """Reads a block.

        Raises:
            DataError: if its bytes are missing, were changed, or do not fit the schema.
        """
        coming = self._coming.pop(index, None)
        content, at, stamp = self._fetch(index) if coming is None else coming.result()
        self.bytes_read += at
        if at < len(content):
            raise DataError(f"{self.path}, block {index}: cut short", PREPARE_AGAIN)
        is_new = verify and (index not in self._compared or self._compared[index] != stamp)
        if is_new and not self._is_right(index, content) and not self._is_right_again(index, content):
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

    def verify(self, first: int, end: int) -> None:
        """Verifies those of the blocks [first, end) that were not verified yet, or whose file was changed since."""
        for index in range(first, end):
            self.expect([new for new in range(index, min(index + _VERIFIED_AHEAD, end)) if new not in self._compared])
            now = self._file.stamp(int(self.table.offsets[index]))
            if index not in self._compared or now not in (None, self._compared[index]):
                self.read(index, verify=True)

    def _is_right(self, index: int, content: np.ndarray) -> bool:
        return zlib.crc32(content.data) == self.table.checksums[index]

    def _is_right_again(self, index: int, content: np.ndarray) -> bool:
        """Whether a wrong block is right when it is read from its server, and not from the cache."""
        return self._file.read_again(int(self.table.offsets[index]), content) and self._is_right(index, content)
