"""Uploads a store to another machine: the manifest last, so that a store is there only when it is whole."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import file_crc32, io_errors, open_to_read, write_whole
from dlrmctl.data.remote.connection import connect, connection_errors
from dlrmctl.data.remote.files import RANGE_BYTES, locate
from dlrmctl.data.remote.outputs import check_writable_at, exists, new_file, remove_unfinished
from dlrmctl.data.remote.urls import SFTP
from dlrmctl.data.store.manifest import MANIFEST


def check_new_store(url: str) -> None:
    """Checks that a store can be written at a URL, and that there is none.

    Raises:
        DataError: if it cannot, or there is one.
    """
    if exists(f"{url}/{MANIFEST}"):
        raise DataError(f"{url} already exists", "choose another output directory, or remove this one")
    _make_directory(url)
    check_writable_at(f"{url}/{MANIFEST}")


def upload(store: Path, url: str, journal: Path, told: Callable[[str], None]) -> None:
    """Uploads a store; omits files that an earlier call uploaded and that have not changed on either side.

    A file gets its name when it is whole. What a killed call has sent of another is removed.

    Args:
        journal: a file, here, of what was uploaded.
        told: called with the name of each file that is uploaded.

    Raises:
        DataError: if a file cannot be read or written.
    """
    sent: dict[str, Any] = json.loads(journal.read_text()) if journal.exists() else {}
    files = [path for path in sorted(store.rglob("*")) if path.is_file()]
    for directory in sorted({path.parent for path in files if path.parent != store}):
        _make_directory(f"{url}/{directory.relative_to(store)}")
    remove_unfinished(f"{url}/{path.relative_to(store)}" for path in files)
    for path in sorted(files, key=lambda path: path.name == MANIFEST):
        name = str(path.relative_to(store))
        there = f"{url}/{name}"
        if name in sent and sent[name]["crc32"] == file_crc32(path) and exists(there):
            found = locate(there)
            if [found.size, found.tag] == sent[name]["found"]:
                continue
        told(name)
        crc32 = 0
        with io_errors(path, "read"), open_to_read(path) as source, new_file(there) as target:
            while piece := source.read(RANGE_BYTES):
                target.write(piece)
                crc32 = zlib.crc32(piece, crc32)
        found = locate(there)
        sent[name] = {"crc32": crc32, "found": [found.size, found.tag]}
        write_whole(journal, json.dumps(sent).encode())


def _make_directory(url: str) -> None:
    """Makes a directory on sftp; object stores have none."""
    if url.startswith(SFTP):
        with connection_errors(url, "write"):
            connect(url)[0].makedirs(urlsplit(url).path, exist_ok=True)
