"""Files on other machines, named by URLs: read in order or anywhere, in ranges that are repeated after a failure.

fsspec opens them, with its own credentials and settings. What is shown or recorded of a URL has no query, which may be
a signature; a password in it is refused.
"""

import errno
import io
import os
import re
import stat
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from dlrmctl.data.errors import DataError

_URL = re.compile(r"(s3a?|gs|gcs|sftp|ssh|https?)://")
_USER = re.compile(r"^(\w+://)([^/@]*)@")
_MAGIC = re.compile(r"[*?\[]")
_HTTP, _SFTP = ("http://", "https://"), ("sftp://", "ssh://")
# What changes with the content of a file.
_TAGS = ("generation", "ETag", "etag", "mtime", "LastModified", "Last-Modified")
_RANGE_BYTES, _LEAST_BYTES = 1 << 23, 1 << 16  # of a request: less after a failure, so that any line makes progress
_BUFFER_BYTES = 1 << 20
_ATTEMPTS = 6  # in a row without a byte
_CONNECT_SECONDS, _SILENT_SECONDS = 20, 60
_CHANGED = "wait until it is complete, and start from the beginning"
_INSTALL = 'pip install "dlrmctl[remote]"'
_DENIED = "check the credentials: see the documentation of fsspec for this protocol"
_DENIED_CLASSES = ("NoCredentialsError", "PartialCredentialsError", "AuthenticationException", "PermissionError")
_UNREACHABLE = ("gaierror", "EndpointConnectionError", "ClientConnectorDNSError", "ClientConnectorError")
_SPOOLED_FILES = 4  # unused local copies

_connections = threading.local()


def is_remote(name: str) -> bool:
    """Returns whether a name is a URL of a file that can be read."""
    return _URL.match(name) is not None


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
        return cast(BinaryIO, io.BufferedReader(_Stream(self), _BUFFER_BYTES))


def file_identity(path: Path | RemoteFile) -> dict[str, Any]:
    """Returns plain values that change with the content of a file."""
    if isinstance(path, RemoteFile):
        return {"bytes": path.size, "tag": path.tag}
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def without_secrets(url: str) -> str:
    """Returns a URL without the query, if it has one."""
    if not url.startswith(_HTTP):
        return url
    address, mark, _ = url.partition("?")
    return address + "?..." * bool(mark)


def remote_names(pattern: str) -> list[str] | None:
    """Returns the URLs that match a pattern or lie in a directory, unsorted; None for the URL of a file.

    Raises:
        DataError: if there is none, or the protocol lists no files.
    """
    _refuse_password(pattern)
    if pattern.startswith(_HTTP):
        if "*" in pattern.partition("?")[0]:
            raise DataError(f"{without_secrets(pattern)}: files of web servers cannot be listed", "give each URL")
        return None
    with _errors(pattern):
        filesystem, path = _connect(pattern)
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
    start = f"{scheme}://{pattern.split('/')[2]}" if pattern.startswith(_SFTP) else f"{scheme}://"
    return [start + name for name in found]


def locate(url: str) -> RemoteFile:
    """Finds a file.

    Raises:
        DataError: if it does not exist, or cannot be reached or read.
    """
    _refuse_password(url)
    with _errors(url):
        info = _info(url)
    if info.get("type") == "directory":
        raise DataError(f"{url}: a directory, expected a file", f"give the files inside it: '{url.rstrip('/')}/*'")
    size = info.get("size")
    if size is None:
        raise DataError(f"{without_secrets(url)}: the server does not tell the size of the file", "download it first")
    return RemoteFile(url, int(size), _tag(info), not url.startswith(_HTTP) or _has_ranges(url, int(size)))


def _has_ranges(url: str, size: int) -> bool:
    """Whether a web server sends the second byte alone."""
    if size < 2:
        return True
    with _errors(url):
        filesystem, path = _connect(url)
        try:
            with filesystem.open(path, "rb", size=size, cache_type="none") as file:
                file.seek(1)
                return len(file.read(1)) == 1
        except ValueError:  # all of it came
            return False


def _refuse_password(url: str) -> None:
    user = _USER.match(url)
    if user is not None and (":" in user[2] or not url.startswith(_SFTP)):
        shown = _USER.sub(r"\1...@", without_secrets(url))
        raise DataError(f"{shown}: a URL with credentials would be recorded", "give them in fsspec's configuration")


def _connect(url: str, *, again: bool = False) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it; a connection of this thread, or a new one."""
    try:
        import fsspec
        from fsspec.core import url_to_fs
    except ImportError:
        raise DataError(f"{without_secrets(url)}: reading URLs needs fsspec", _INSTALL) from None
    options: dict[str, Any] = {"skip_instance_cache": again}
    if url.startswith(_HTTP):
        try:
            import aiohttp
        except ImportError:
            raise DataError(f"{without_secrets(url)}: reading URLs needs aiohttp", _INSTALL) from None
        limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        configured = fsspec.config.conf.get("http", {}).get("client_kwargs", {})
        options["client_kwargs"] = {"timeout": limits, "trust_env": True, **configured}
    elif url.startswith(_SFTP):
        options["timeout"] = _CONNECT_SECONDS
        host = url.split("/")[2]
        kept = _connections.__dict__.setdefault("sftp", {})
        if again:
            kept.pop(host, None)
        if host not in kept:
            kept[host] = url_to_fs(url, **{**options, "skip_instance_cache": True})[0]
            kept[host].ftp.get_channel().settimeout(_SILENT_SECONDS)
        return kept[host], kept[host]._strip_protocol(url)
    try:
        return cast(tuple[Any, str], url_to_fs(url, **options))
    except ImportError as error:
        raise DataError(f"{without_secrets(url)}: {str(error)[:100]}", _INSTALL) from None


def _info(url: str, *, again: bool = False) -> dict[str, Any]:
    """Returns what the server says about a file now."""
    filesystem, path = _connect(url, again=again)
    filesystem.invalidate_cache()
    return dict(filesystem.info(path))


def _tag(info: Mapping[str, Any]) -> str:
    return next((str(info[key]) for key in _TAGS if info.get(key)), "")


class _Stream(io.RawIOBase):
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
        length, failures = _RANGE_BYTES, 0
        while wanted > 0:
            try:
                content = self._read(min(wanted, length))
                if not content:
                    raise ConnectionError(errno.ECONNRESET, "the connection ended early")
            except Exception as error:
                failures += 1
                self._failed = True
                self._drop()
                if failures >= _ATTEMPTS or _is_final(error):
                    raise _explained(self._remote.url, error) from error
                length = max(length // 4, _LEAST_BYTES)
                time.sleep(0.05 * 4 ** min(failures - 1, 3))
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
            filesystem, path = _connect(self._remote.url)
            options = {"cache_type": "none"} if self._remote.ranges else {"block_size": 0}
            if self._remote.url.startswith(_SFTP):
                options = {}
            self._handle, self._handle_at = filesystem.open(path, "rb", **options), 0
        if self._remote.url.startswith(_SFTP):
            return b"".join(self._handle.readv([(self._at, size)]))  # many requests at a time
        if self._remote.ranges:
            self._handle.seek(self._at)
        while self._handle_at < self._at and not self._remote.ranges:
            skipped = self._handle.read(min(self._at - self._handle_at, _RANGE_BYTES))
            if not skipped:
                raise ConnectionError(errno.ECONNRESET, "the connection ended early")
            self._handle_at += len(skipped)
        return bytes(self._handle.read(size))

    def _check_unchanged(self) -> None:
        """Raises DataError if the file is not the one that was found."""
        failed, self._failed = self._failed, False
        now = _info(self._remote.url, again=failed)
        if (now.get("size"), _tag(now)) != (self._remote.size, self._remote.tag):
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


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Turns the errors of a file system into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise _explained(url, error) from error


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _names(error: BaseException) -> list[str]:
    """The names of the classes of an error and of its causes, with their bases."""
    return [cls.__name__ for one in _with_causes(error) for cls in type(one).__mro__]


def _status(error: BaseException) -> int | None:
    """The status of HTTP that an error, or a cause of it, tells."""
    statuses = (getattr(one, "status", None) for one in _with_causes(error))
    return next((status for status in statuses if isinstance(status, int)), None)


def _is_final(error: BaseException) -> bool:
    """Returns whether the same request would fail again."""
    if isinstance(error, DataError):
        return True
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 429)
    names = _names(error)
    return any(name in names for name in _DENIED_CLASSES) or isinstance(error, FileNotFoundError | ImportError)


def _explained(url: str, error: Exception) -> DataError:
    """The one line about an error; its cause has a number, so that a preparation is kept and can continue."""
    if isinstance(error, DataError):
        return error
    shown, names, status = without_secrets(url), _names(error), _status(error)
    if status in (401, 403) or any(name in names for name in _DENIED_CLASSES):
        return DataError(f"{shown}: cannot read: access denied", _DENIED)
    if any(name in names for name in _UNREACHABLE):
        return _of_the_network(f"{shown}: cannot read: the host cannot be reached", "check its name and the network")
    if status == 404 or isinstance(error, FileNotFoundError):
        return DataError(f"{shown}: cannot read: no such file or bucket", "check its name")
    said = (" ".join(str(error).split()) or type(error).__name__).replace(url, shown)
    return _of_the_network(f"{shown}: cannot read: {said[:120]}", "check the network, and try again")


def _of_the_network(message: str, hint: str) -> DataError:
    problem = DataError(message, hint)
    problem.__cause__ = OSError(errno.EIO, "network")
    return problem


class _Copies:
    """Local copies of remote tables, whose readers need files: first only the end, which describes the columns."""

    def __init__(self) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._used: OrderedDict[RemoteFile, int] = OrderedDict()
        self._whole: set[RemoteFile] = set()
        self._places: dict[RemoteFile, Path] = {}
        self._filling: dict[RemoteFile, threading.Lock] = {}

    @contextmanager
    def of(self, file: RemoteFile, *, whole: bool) -> Iterator[Path]:
        with self._lock:
            if self._directory is None:
                self._directory = tempfile.TemporaryDirectory(prefix="dlrmctl-")
            place = self._places.setdefault(file, Path(self._directory.name) / f"{len(self._places)}")
            filling = self._filling.setdefault(file, threading.Lock())
            self._used[file] = self._used.get(file, 0) + 1
            self._used.move_to_end(file)
        try:
            with filling:
                if whole and file not in self._whole:
                    _download(file, place, 0)
                    self._whole.add(file)
                elif not place.exists():
                    _download(file, place, _footer_at(file))
            yield place
        finally:
            with self._lock:
                self._used[file] -= 1
                unused = [old for old, uses in self._used.items() if not uses and old in self._whole]
                for old in unused[: max(len(self._whole) - _SPOOLED_FILES, 0)]:
                    self._places[old].unlink(missing_ok=True)
                    self._whole.discard(old)


def _footer_at(file: RemoteFile) -> int:
    """Where the description at the end of a Parquet or Arrow file begins; both end with its length and a mark."""
    with file.open() as stream:
        stream.seek(max(file.size - 10, 0))
        end = stream.read(10)
    length = int.from_bytes(end[2:6], "little") + 8 if end.endswith(b"PAR1") else int.from_bytes(end[:4], "little") + 10
    return max(file.size - length, 0)


def _download(file: RemoteFile, place: Path, start: int) -> None:
    """Writes the bytes from `start` on to a file as long as the whole; before them are a few and then zeros."""
    with file.open() as stream, place.open("wb") as target:
        target.truncate(file.size)
        target.write(stream.read(min(16, file.size)))
        stream.seek(start)
        target.seek(start)
        while piece := stream.read(_RANGE_BYTES):
            target.write(piece)


_copies = _Copies()


@contextmanager
def local_copy(path: Path | RemoteFile, *, whole: bool) -> Iterator[Path]:
    """Context manager for a file on this machine with the content of another.

    Args:
        path: a local file is its own copy.
        whole: False if only the end of a Parquet or Arrow file is needed.
    """
    if isinstance(path, Path):
        yield path
    else:
        with _copies.of(path, whole=whole) as place:
            yield place
