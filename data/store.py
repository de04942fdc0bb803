"""A prepared data set on disk: a manifest and memory-mapped blocks."""

import hashlib
import json
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.files import io_errors
from data.layout import decode
from data.manifest import PREPARE_AGAIN, read_manifest
from data.schema import Schema
from data.source import SPLITS, Block, check_split
from data.vocabulary import Encoder, encoders_fingerprint, load_encoders


class Store:
    """A source that maps the files which `prepare_criteo` or `write_store` wrote.

    Args:
        path: the directory.
        verify: compare the checksum of each block when this process first reads it.

    Attributes:
        path: the directory.
        manifest: everything `manifest.json` says.

    Raises:
        DataError: if there is no store at `path`, it is of another version, its manifest was edited or damaged, or a
            file is missing or cut short.
    """

    def __init__(self, path: Path | str, verify: bool = True) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._verify = verify
        self._verified: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self.schema = Schema.from_dict(self.manifest["schema"])
        self.block_rows: int = self.manifest["block_rows"]
        self._splits: dict[str, dict[str, Any]] = {split: self.manifest["splits"][split] for split in SPLITS}
        self._maps = {split: self._map(entry) for split, entry in self._splits.items()}

    def num_examples(self, split: str) -> int:
        """Examples of the split."""
        check_split(split)
        examples: int = self._splits[split]["examples"]
        return examples

    def read_block(self, split: str, index: int) -> Block:
        """One block, as views of the mapped file.

        Raises:
            DataError: if its bytes are not the ones that were written.
        """
        check_split(split)
        blocks = self._splits[split]["blocks"]
        if not 0 <= index < len(blocks):
            raise DataError(f"the {split} split of {self.path} has no block {index}")
        if self._verify:
            self._verify_block(split, index)
        return decode(self.schema, self._content(split, index), blocks[index]["rows"])

    def verify(self, split: str) -> None:
        """Compares the checksums of all blocks of a split now, so that reading them later cannot fail on that.

        Blocks that this process compared before are left out; `verify=False` of the constructor does not matter.

        Raises:
            DataError: the one that reading the first wrong block would raise.
        """
        check_split(split)
        for index in range(len(self._splits[split]["blocks"])):
            self._verify_block(split, index)

    def encoders(self) -> dict[str, Encoder]:
        """What gives rows to new values, by sparse feature; for scoring rows that are not in the store.

        Raises:
            DataError: if the store was not made from raw values, or a vocabulary changed.
        """
        entries = self.manifest.get("ids", {}).get("columns")
        if not entries:
            raise DataError(f"{self.path}: keeps no vocabulary, its rows were not made from raw values")
        return load_encoders(self.path, entries)

    def fingerprint(self) -> str:
        """Depends on the schema and on the checksums of all blocks."""
        identity = json.dumps([self.schema.to_dict(), self.block_rows, self._splits], sort_keys=True)
        return "store-1:" + hashlib.sha256(identity.encode()).hexdigest()[:32]

    def vocabulary_fingerprint(self) -> str:
        """Depends on the encoders' files and schemes; without encoders on what the copied source said of its ids.

        A store that knows neither has ids that mean something in it alone, and gives the identity of its data.
        """
        entries = self.manifest.get("ids", {}).get("columns")
        if entries:
            return encoders_fingerprint(entries)
        return str(self.manifest.get("vocabulary_fingerprint", self.fingerprint()))

    def _content(self, split: str, index: int) -> np.ndarray:
        """The bytes of a block, uint8."""
        entry = self._splits[split]["blocks"][index]
        return self._maps[split][entry["offset"] : entry["offset"] + entry["bytes"]]

    def _verify_block(self, split: str, index: int) -> None:
        if (split, index) in self._verified:
            return
        entry = self._splits[split]
        if zlib.crc32(self._content(split, index).data) != entry["blocks"][index]["crc32"]:
            raise DataError(f"{self.path / entry['file']}, block {index}: changed since it was prepared", PREPARE_AGAIN)
        with self._lock:
            self._verified.add((split, index))

    def _map(self, entry: dict[str, Any]) -> np.ndarray:
        """The bytes of one split's file, uint8."""
        path, size = self.path / entry["file"], entry["bytes"]
        with io_errors(path, "read"):
            found = path.stat().st_size
        if found != size:
            raise DataError(f"{path}: {found:,} bytes, the manifest says {size:,}", PREPARE_AGAIN)
        if size == 0:  # an empty file cannot be mapped
            return np.empty(0, dtype=np.uint8)
        with io_errors(path, "read"):
            # A plain array over the map: slices of np.memmap cost several times as much.
            return np.asarray(np.memmap(path, dtype=np.uint8, mode="r")).view(np.ndarray)
