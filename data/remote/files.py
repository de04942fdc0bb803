"""Files that are read from other machines: in order or anywhere, in ranges that are repeated after a failure."""

import errno
import io
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from dlrmctl.data.errors import DataError
from dlrmctl.data.remote.connection import connect, connection_errors, content_tag, current_info, pause_after
from dlrmctl.data.remote.urls import SFTP, WEB, refuse_password, without_secrets

_MAGIC = re.compile(r"[*?\[]")
RANGE_BYTES = 1 << 23  # of a request
_LEAST_BYTES = 1 << 16  # after failures, so that any line makes progress
_BUFFER_BYTES = 1 << 20
_CHANGED = "wait until it is complete, and start from the beginning"


@dataclass(frozen=True)
class RemoteFile:
    """A file on another machine, with the methods of a path that readers need.

    Attributes:
        url: its address, which may have a secret query.
        size: bytes.
        tag: changes with the content.
        ranges: whether any part of it can be read alone.
    """

    url: str
    size: int
    tag: str
    ranges: bool = True

    def __str__(self) -> str:
        return without_secrets(self.url)

    def __repr__(self) -> str:
        return f"RemoteFile({without_secrets(self.url)!r})"

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return str(self).partition("?")[0].rpartition("/")[2]

    def exists(self) -> bool:
        """Returns True: it was found."""
        return True

    def is_dir(self) -> bool:
        """Returns False: directories are listed instead."""
        return False

    def stat(self) -> os.stat_result:
        """Returns its size; a file without ranges counts as a pipe, which is read once from its beginning."""
        mode = stat.S_IFREG if self.ranges else stat.S_IFIFO
        return os.stat_result((mode, 0, 0, 1, 0, 0, self.size, 0, 0, 0))

    def open(self, mode: str = "rb") -> BinaryIO:
        """Opens it for reading.

        Raises:
            DataError: if it cannot be read.
        """
        assert mode == "rb"
        return cast(BinaryIO, io.BufferedReader(RemoteStream(self), _BUFFER_BYTES))


def file_identity(path: Path | RemoteFile) -> dict[str, Any]:
    """Returns plain values that change with the content of a file."""
    if isinstance(path, RemoteFile):
        return {"bytes": path.size, "tag": path.tag}
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def remote_names(pattern: str) -> list[str] | None:
    """Returns the URLs that match a pattern or lie in a directory, unsorted; None for the URL of a file.

    Raises:
        DataError: if there is none, or the protocol lists no files.
    """
    refuse_password(pattern)
    if pattern.startswith(WEB):
        if "*" in pattern.partition("?")[0]:
            raise DataError(f"{without_secrets(pattern)}: files of web servers cannot be listed", "give each URL")
        return None
    with connection_errors(pattern):
        filesystem, path = connect(pattern)
        if _MAGIC.search(path):
            found = [name for name in filesystem.glob(path) if not name.endswith("/")]
            if not found:
                raise DataError(f"{pattern}: no file matches")
        elif path.endswith("/") or filesystem.isdir(path):
            found = [entry["name"] for entry in filesystem.ls(path, detail=True) if entry["type"] == "file"]
            found = [name for name in found if not name.endswith("/")]
            if not found:
                raise DataError(f"{pattern}: the directory has no files")
        else:
            return None
    scheme = pattern.partition("://")[0]
    start = f"{scheme}://{pattern.split('/')[2]}" if pattern.startswith(SFTP) else f"{scheme}://"
    return [start + name for name in found]


def locate(url: str) -> RemoteFile:
    """Finds a file.

    Raises:
        DataError: if it does not exist, or cannot be reached or read.
    """
    refuse_password(url)
    with connection_errors(url):
        info = current_info(url)
    if info.get("type") == "directory":
        raise DataError(f"{url}: a directory, expected a file", f"give the files inside it: '{url.rstrip('/')}/*'")
    size = info.get("size")
    if size is None:
        raise DataError(f"{without_secrets(url)}: the server does not tell the size of the file", "download it first")
    return RemoteFile(url, int(size), content_tag(info), not url.startswith(WEB) or _has_ranges(url, int(size)))


def _has_ranges(url: str, size: int) -> bool:
    """Whether a web server sends the second byte alone."""
    if size < 2:
        return True
    with connection_errors(url):
        filesystem, path = connect(url)
        try:
            with filesystem.open(path, "rb", size=size, cache_type="none") as file:
                file.seek(1)
                return len(file.read(1)) == 1
        except ValueError:  # all of it came
            return False


class RemoteStream(io.RawIOBase):
    """The bytes of a remote file, from any position if it has ranges."""

    def __init__(self, file: RemoteFile) -> None:
        self._remote, self._at, self._size = file, 0, file.size
        self._handle: Any = None
        self._handle_at = 0
        self._failed = False  # so that the next connection is a new one

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._remote.ranges

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if not self._remote.ranges and base + offset != self._at:
            raise io.UnsupportedOperation("the server has no ranges")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Reads the next bytes, with new connections after failures."""
        wanted = min(len(buffer), self._size - self._at)
        length, failures = RANGE_BYTES, 0
        while wanted > 0:
            try:
                content = self._read(min(wanted, length))
                if not content:
                    raise ConnectionError(errno.ECONNRESET, "the connection ended early")
            except Exception as error:
                failures += 1
                self._failed = True
                self._drop()
                pause_after(self._remote.url, error, failures, "read")
                length = max(length // 4, _LEAST_BYTES)
                continue
            buffer[: len(content)] = content
            self._at += len(content)
            self._handle_at = self._at
            if self._at == self._size:
                self._check_unchanged()
            return len(content)
        return 0

    def _read(self, size: int) -> bytes:
        if self._handle is None:
            self._check_unchanged()
            filesystem, path = connect(self._remote.url)
            options = {"cache_type": "none"} if self._remote.ranges else {"block_size": 0}
            if self._remote.url.startswith(SFTP):
                options = {}
            self._handle, self._handle_at = filesystem.open(path, "rb", **options), 0
            if self._remote.url.startswith(SFTP):
                _send_silently(self._handle)
        if self._remote.url.startswith(SFTP):
            return b"".join(self._handle.readv([(self._at, size)]))  # many requests at a time
        if self._remote.ranges:
            self._handle.seek(self._at)
        while self._handle_at < self._at and not self._remote.ranges:
            skipped = self._handle.read(min(self._at - self._handle_at, RANGE_BYTES))
            if not skipped:
                raise ConnectionError(errno.ECONNRESET, "the connection ended early")
            self._handle_at += len(skipped)
        return bytes(self._handle.read(size))

    def _check_unchanged(self) -> None:
        """Raises DataError if the file is not the one that was found."""
        failed, self._failed = self._failed, False
        now = current_info(self._remote.url, again=failed)
        if (now.get("size"), content_tag(now)) != (self._remote.size, self._remote.tag):
            raise DataError(f"{self._remote}: the file has changed while it was read", _CHANGED)

    def _drop(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(Exception):  # of a connection that is lost already
                handle.close()

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()


def _send_silently(handle: Any) -> None:
    """Lets the thread that sends the requests of a file of paramiko end silently: reading raises the same error."""
    send = handle._prefetch_thread

    def silently(*arguments: Any) -> None:
        with suppress(Exception):
            send(*arguments)

    handle._prefetch_thread = silently
