"""Writes a store: blocks of each split one after another, then the manifest, which makes it one."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from data.errors import DataError
from data.files import io_errors, sync_file
from data.layout import encode
from data.manifest import split_file, write_manifest
from data.schema import Schema
from data.source import SPLITS, Block, Source

STORE_BLOCK_ROWS = 65_536


class StoreWriter:
    """Fills an existing directory; without `finish` it never is a store.

    Args:
        path: the directory.
        schema: of every block.
        block_rows: examples of every block but the last one of a split.
    """

    def __init__(self, path: Path, schema: Schema, *, block_rows: int = STORE_BLOCK_ROWS) -> None:
        if block_rows < 1:
            raise DataError(f"blocks of {block_rows} examples must have at least 1")
        self.path, self.schema, self.block_rows = path, schema, block_rows
        self.bytes_written = 0
        self._files: dict[str, BinaryIO] = {}
        self._splits: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            name = split_file(split)
            with io_errors(path / name, "write"):
                self._files[split] = (path / name).open("wb")
            self._splits[split] = {"file": name, "examples": 0, "bytes": 0, "blocks": []}

    def add(self, split: str, block: Block) -> None:
        """Appends a block to its split.

        Raises:
            DataError: if a block but the last has not `block_rows` examples, does not fit the schema, or the disk is
                full.
        """
        entry = self._splits[split]
        if not 0 < len(block) <= self.block_rows or entry["examples"] % self.block_rows:
            raise DataError(f"only the last block of a split may have fewer than {self.block_rows} examples")
        content = encode(self.schema, block)
        with io_errors(self.path / entry["file"], "write"):
            self._files[split].write(content)
        entry["blocks"].append(
            {"rows": len(block), "offset": entry["bytes"], "bytes": len(content), "crc32": zlib.crc32(content)}
        )
        entry["bytes"] += len(content)
        entry["examples"] += len(block)
        self.bytes_written += len(content)

    def finish(self, about: Mapping[str, Any] | None = None) -> None:
        """Brings everything to the disk and writes the manifest, with the entries of `about` besides its own."""
        self.close()
        for entry in self._splits.values():
            with io_errors(self.path / entry["file"], "write"):
                sync_file(self.path / entry["file"])
        content = {"schema": self.schema.to_dict(), "block_rows": self.block_rows, "splits": self._splits}
        write_manifest(self.path, {**content, **(about or {})})

    def close(self) -> None:
        """Closes the files; what they hold stays."""
        for split, file in self._files.items():
            with io_errors(self.path / split_file(split), "write"):
                file.close()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        for file in self._files.values():
            try:
                file.close()
            except OSError:  # the error on its way out says more
                continue


def write_store(source: Source, path: Path, about: Mapping[str, Any] | None = None) -> None:
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
        writer.finish({"vocabulary_fingerprint": source.vocabulary_fingerprint(), **(about or {})})
