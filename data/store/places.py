"""Where a store is: in a directory; or on another machine, with a copy of all files but the blocks in the cache."""

import hashlib
import os
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import descriptor_to_read, io_errors, whole_file, write_whole
from dlrmctl.data.remote.cache import CachedFile, RangeCache, Stamp
from dlrmctl.data.remote.connection import is_denied, is_missing
from dlrmctl.data.remote.files import RANGE_BYTES, RemoteFile, locate
from dlrmctl.data.remote.urls import WEB, refuse_password, without_secrets
from dlrmctl.data.source import SPLITS
from dlrmctl.data.store.layout import table_file
from dlrmctl.data.store.manifest import MANIFEST, RAW_SAMPLE, Manifest, read_manifest, split_file

_CONNECTIONS = 4
_LARGEST_SHARE = 1 / 2  # of the cache for the files that are not blocks


class BlockFile(Protocol):
    """The file with the blocks of a split."""

    num_bytes: int

    def read(self, start: int, content: np.ndarray) -> tuple[int, Stamp | None]:
        """Reads bytes from `start` on; returns their number, and what changes with them."""

    def stamp(self, start: int) -> Stamp | None:
        """What changes with the bytes from `start` on; None if that is not known before they are read."""

    def read_again(self, start: int, content: np.ndarray) -> bool:
        """Reads bytes that are wrong from another place; returns whether there is one."""


class LocalPlace:
    """A directory.

    Attributes:
        path: see above.
        threads: None: blocks are not fetched before they are read.
    """

    threads: ThreadPoolExecutor | None = None

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def blocks(self, split: str) -> BlockFile:
        """Opens the file with the blocks of a split.

        Raises:
            DataError: if it cannot be read.
        """
        return _LocalFile(self.path / split_file(split))


class _LocalFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        with io_errors(path, "read"):
            self._file = descriptor_to_read(path)
            weakref.finalize(self, os.close, self._file)
            self.num_bytes = os.fstat(self._file).st_size

    def read(self, start: int, content: np.ndarray) -> tuple[int, Stamp | None]:
        with io_errors(self._path, "read"):
            at = 0
            while count := os.preadv(self._file, [content[at:].data], start + at):
                at += count
            return at, self.stamp(start)

    def stamp(self, start: int) -> Stamp | None:
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns

    def read_again(self, start: int, content: np.ndarray) -> bool:
        return False


class RemotePlace:
    """A store on another machine: its small files are copied into the cache now, its blocks when they are read.

    Args:
        url: of the directory.
        cache: the cache.

    Attributes:
        path: directory of the copy.
        threads: fetch blocks before they are read.

    Raises:
        DataError: if there is no store, it cannot be read, or its files do not fit into the cache.
    """

    def __init__(self, url: str, cache: RangeCache) -> None:
        refuse_password(url)
        if url.startswith(WEB) and "?" in url:
            raise DataError(f"{without_secrets(url)}: a store has many files, and a signature is that of one")
        self.url, self._cache = url.rstrip("/"), cache
        self.threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="far-blocks")
        manifest = self._find(MANIFEST)
        if manifest is None:
            raise DataError(f"{self}: no {MANIFEST}, so not a store, or one that is not whole", "check its name")
        self._manifest = manifest
        with manifest.open() as stream:
            content = stream.read()
        identity = hashlib.sha256(f"{self.url}\n".encode() + content).hexdigest()[:32]
        self._copy = cache.copy(identity)
        self.path = self._copy.path
        if not (self.path / MANIFEST).exists():
            with self._copy.alone():
                if not (self.path / MANIFEST).exists():
                    self._fill(content)

    def __str__(self) -> str:
        return self.url

    def is_current(self) -> bool:
        """Returns whether the store is still the one that was found.

        Raises:
            DataError: if it cannot be read.
        """
        return self._find(MANIFEST) == self._manifest

    def blocks(self, split: str) -> BlockFile:
        """Opens the file with the blocks of a split.

        Raises:
            DataError: if it cannot be read.
        """
        return CachedFile(locate(self._url_of(split_file(split))), self._cache)

    def _fill(self, manifest: bytes) -> None:
        """Copies the files; the manifest gets its name at the end, so that an unfinished copy is continued."""
        described = self.path / "described"
        with io_errors(self.path, "write"):
            described.mkdir(parents=True, exist_ok=True)
        write_whole(described / MANIFEST, manifest)
        try:
            names = list(_names(read_manifest(described)))
        except DataError as problem:
            raise DataError(problem.message.replace(str(described), self.url), problem.hint) from None
        with ThreadPoolExecutor(_CONNECTIONS) as threads:
            files = dict(zip(names, threads.map(self._find, names), strict=True))
            size = sum(file.size for file in files.values() if file is not None)
            if size > self._cache.most_bytes * _LARGEST_SHARE:
                raise DataError(
                    f"{self}: the vocabularies have {size:,} bytes, more than half of the cache",
                    "a larger --cache-size",
                )
            list(threads.map(self._fetch, files.items()))
        (described / MANIFEST).replace(self.path / MANIFEST)
        described.rmdir()
        self._cache.make_room(size)

    def _fetch(self, named: tuple[str, RemoteFile | None]) -> None:
        name, file = named
        if file is None:
            return  # the manifest does not name it, or its absence is found where it is needed
        place = self.path / name
        if place.exists() and place.stat().st_size == file.size:
            return
        with io_errors(place, "write"):
            place.parent.mkdir(exist_ok=True)
        with file.open() as stream, whole_file(place) as target:
            while piece := stream.read(RANGE_BYTES):
                target.write(piece)

    def _find(self, name: str) -> RemoteFile | None:
        try:
            return locate(self._url_of(name))
        except DataError as problem:
            if is_missing(problem) or (name == RAW_SAMPLE and is_denied(problem)):
                return None
            raise

    def _url_of(self, name: str) -> str:
        return f"{self.url}/{quote(name) if self.url.startswith(WEB) else name}"


def _names(manifest: Manifest) -> Iterator[str]:
    """The files of a store besides the manifest and the blocks."""
    yield from map(table_file, SPLITS)
    yield RAW_SAMPLE
    for column in manifest.preparation.columns if manifest.preparation else ():
        yield from (kept.file for kept in column.files)
