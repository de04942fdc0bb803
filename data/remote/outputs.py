"""New files on other machines: sent by parts, and there under their names only when they are whole."""

import io
import itertools
import posixpath
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from dlrmctl.data.files import FRESH, whole_file
from dlrmctl.data.remote.connection import connect, connection_errors, current_info, pause_after
from dlrmctl.data.remote.urls import SFTP, is_remote, refuse_web

_PART_BYTES = 1 << 24  # kept in memory
_S3 = ("s3://", "s3a://")
_DOUBLE_AFTER = 1000  # parts: an object has at most 10,000

_Result = TypeVar("_Result")


def exists(url: str) -> bool:
    """Returns whether there is a file or a directory.

    Raises:
        DataError: if that cannot be found out.
    """
    with connection_errors(url, "write"):
        try:
            current_info(url)
        except FileNotFoundError:
            return False
        return True


def check_writable_at(url: str) -> None:
    """Checks that a file can be written, by beginning to.

    Raises:
        DataError: if it cannot.
    """
    refuse_web(url)
    _begin(url).discard()


@contextmanager
def new_file(name: Path | str) -> Iterator[BinaryIO]:
    """Context manager for a file that gets its name at the end, here or at a URL; nothing is left after an exception.

    Raises:
        DataError: if it cannot be written.
    """
    if not (isinstance(name, str) and is_remote(name)):
        with whole_file(Path(name)) as file:
            yield file
        return
    refuse_web(name)
    output = _begin(name)
    try:
        yield cast(BinaryIO, output)
        output.finish()
    except BaseException:
        output.discard()
        raise


def remove_unfinished(urls: Iterable[str]) -> None:
    """Removes what killed processes have sent of files: parts that no name shows, for which a server may charge.

    Args:
        urls: of the files; no other process may be sending them. Where the server does not allow it, the parts remain.
    """
    for directory, named in itertools.groupby(sorted(urls), posixpath.dirname):
        with suppress(Exception):
            filesystem, path = connect(directory)
            if directory.startswith(SFTP):
                for name in filesystem.ftp.listdir(path):
                    if name.startswith(FRESH):
                        filesystem.ftp.remove(posixpath.join(path, name))
            elif directory.startswith(_S3):
                bucket, _, prefix = path.partition("/")
                wanted = {connect(url)[1].partition("/")[2] for url in named}
                listed = filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
                for found in listed.get("Uploads", ()):
                    if found["Key"] in wanted:
                        of_file = {"Bucket": bucket, "Key": found["Key"], "UploadId": found["UploadId"]}
                        filesystem.call_s3("abort_multipart_upload", **of_file)


class _Output(io.RawIOBase):
    """A file that is sent."""

    def writable(self) -> bool:
        return True

    def finish(self) -> None:
        """Gives the file its name.

        Raises:
            DataError: if it cannot be written.
        """
        raise NotImplementedError

    def discard(self) -> None:
        """Removes what was sent, if the connection allows it."""
        raise NotImplementedError


def _begin(url: str) -> _Output:
    return _SftpOutput(url) if url.startswith(SFTP) else _ObjectOutput(url)


class _ObjectOutput(_Output):
    """An upload of several parts to an object store, which shows nothing before it is completed."""

    def __init__(self, url: str) -> None:
        self._url = url
        with connection_errors(url, "write"):
            filesystem, path = connect(url)
            self._file = filesystem.open(path, "wb", block_size=_PART_BYTES, autocommit=False)
            self._file.offset = 0
            self._file._initiate_upload()  # now, so that a refusal is known before there is anything to send

    def write(self, content: Any) -> int:
        with connection_errors(self._url, "write"):
            if self._file.tell() > _DOUBLE_AFTER * self._file.blocksize:
                self._file.blocksize *= 2
            return int(self._file.write(bytes(content)))

    def finish(self) -> None:
        with connection_errors(self._url, "write"):
            self._file.close()
            self._file.commit()

    def discard(self) -> None:
        with suppress(Exception):
            self._file.discard()
        self._file.closed = True  # otherwise its end would complete the upload


class _SftpOutput(_Output):
    """A file under another name in the same directory, renamed at the end; a part is sent again after a failure."""

    def __init__(self, url: str) -> None:
        self._url, self._at, self._waiting = url, 0, bytearray()
        self._handle: Any = None
        self._failed = False
        _, self._path = connect(url)
        self._temporary = posixpath.join(posixpath.dirname(self._path), f"{FRESH}{secrets.token_hex(8)}")
        self._persist(lambda: self._open("w"))

    def write(self, content: Any) -> int:
        self._waiting += content
        if len(self._waiting) >= _PART_BYTES:
            self._send()
        return len(content)

    def finish(self) -> None:
        self._send()
        self._drop()
        self._persist(self._rename)

    def discard(self) -> None:
        self._drop()
        with suppress(Exception):
            self._filesystem().ftp.remove(self._temporary)

    def _send(self) -> None:
        self._persist(self._send_once)
        self._at += len(self._waiting)
        self._waiting.clear()

    def _send_once(self) -> None:
        if not self._waiting:
            return
        if self._handle is None:
            self._open("r+")
        self._handle.seek(self._at)
        self._handle.set_pipelined(True)  # requests do not wait for the answers of others
        self._handle.write(memoryview(self._waiting)[:-1].tobytes())
        self._handle.set_pipelined(False)
        self._handle.write(bytes(self._waiting[-1:]))
        end, found = self._at + len(self._waiting), self._handle.stat().st_size
        if found != end:
            raise ConnectionError(f"{found:,} of {end:,} bytes arrived")

    def _rename(self) -> None:
        ftp = self._filesystem().ftp
        try:
            if ftp.stat(self._temporary).st_size != self._at:
                raise ConnectionError("the file is not whole")
        except FileNotFoundError:
            if ftp.stat(self._path).st_size == self._at:  # renamed, but the answer was lost
                return
            raise
        try:
            ftp.posix_rename(self._temporary, self._path)
        except OSError as problem:
            if "nsupported" not in str(problem):
                raise
            ftp.rename(self._temporary, self._path)

    def _open(self, mode: str) -> None:
        self._handle = self._filesystem().ftp.open(self._temporary, f"{mode}b", bufsize=0)

    def _filesystem(self) -> Any:
        failed, self._failed = self._failed, False
        return connect(self._url, again=failed)[0]

    def _persist(self, action: Callable[[], _Result]) -> _Result:
        failures = 0
        while True:
            try:
                return action()
            except Exception as error:
                failures += 1
                self._failed = True
                self._drop()
                pause_after(self._url, error, failures, "write")

    def _drop(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(Exception):
                handle.close()
