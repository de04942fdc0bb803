"""A bounded cache of ranges of remote files on the local disk, shared by the processes of a machine.

A range is a file, written under another name and renamed, so that a process that is killed leaves nothing wrong. What
was not used for longest is removed. All processes together stay within the bound, if there are at most 32.
"""

import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import FRESH, io_errors, write_whole
from dlrmctl.data.remote.files import RemoteFile, RemoteStream

_RANGES, _COPIES = "ranges", "copies"  # directories: one per file, with a file per range; and one per copy
_FULL, _KEPT, _LOOKED_AFTER = 7 / 8, 3 / 4, 1 / 256  # shares of the bound
_ABANDONED_SECONDS = 3600.0  # of an incomplete file

Stamp = tuple[int, int]  # size and modification time in nanoseconds


class RangeCache:
    """The cache in one directory.

    Args:
        directory: made if it does not exist.
        most_bytes: of all files in it.

    Raises:
        DataError: if the directory cannot be written to.
    """

    def __init__(self, directory: Path, most_bytes: int) -> None:
        self.directory, self.most_bytes = directory, most_bytes
        with io_errors(directory, "write"):
            for name in (_RANGES, _COPIES):
                (directory / name).mkdir(parents=True, exist_ok=True)
            self._lock_file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        self._written = most_bytes  # since this process looked at the size of all: it looks at the first write

    def read(self, name: str, content: memoryview) -> Stamp | None:
        """Reads a range, if it is there and as long as the content."""
        try:
            with (self.directory / _RANGES / name).open("rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                at = 0
                while at < len(content) and (count := file.readinto(content[at:])):
                    at += count
                if at < len(content) or found.st_size != len(content):
                    return None
                os.utime(file.fileno(), ns=(time.time_ns(), found.st_mtime_ns))
                return found.st_size, found.st_mtime_ns
        except OSError:
            return None

    def stamp(self, name: str) -> Stamp | None:
        """Returns what changes when a range is written; None if it is not there."""
        try:
            found = (self.directory / _RANGES / name).stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def write(self, name: str, content: memoryview) -> Stamp | None:
        """Keeps a range; None if the disk is full or fails, without which reading still goes on."""
        path = self.directory / _RANGES / name
        try:
            path.parent.mkdir(exist_ok=True)
            write_whole(path, content, sync=False)
        except (DataError, OSError):
            return None
        self.make_room(len(content))
        return self.stamp(name)

    def remove(self, name: str) -> None:
        """Removes a range that is wrong."""
        (self.directory / _RANGES / name).unlink(missing_ok=True)

    def copy(self, name: str) -> "HeldCopy":
        """Returns the directory of a copy of files, which is not removed while the result lives."""
        return HeldCopy(self.directory / _COPIES / name)

    def make_room(self, written: int) -> None:
        """Removes what was not used for longest, if the cache is full.

        Args:
            written: bytes that were written.
        """
        with self._lock:
            self._written += written
            if self._written < self.most_bytes * _LOOKED_AFTER:
                return
            self._written = 0
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            try:
                self._remove_oldest()
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _remove_oldest(self) -> None:
        ranges, total = [], 0
        for directory in (self.directory / _RANGES).iterdir():
            for found in _files(directory):
                ranges.append(found)
                total += found.size
        copies = [_File(path, sum(f.size for f in _files(path)), _used(path)) for path in _copies(self.directory)]
        total += sum(copy.size for copy in copies)
        if total <= self.most_bytes * _FULL:
            return
        for found in [*sorted(ranges, key=lambda f: f.used), *sorted(copies, key=lambda f: f.used)]:
            if total <= self.most_bytes * _KEPT:
                break
            total -= found.size
            if found.path.is_dir():
                _remove_unused(found.path)
                continue
            found.path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                found.path.parent.rmdir()


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    used: int  # nanoseconds


def _files(directory: Path) -> Iterator[_File]:
    """The files below a directory; removes those that a killed process left incomplete."""
    for place, _, names in os.walk(directory):
        for name in names:
            path = Path(place) / name
            with suppress(OSError):  # removed meanwhile
                found = path.stat()
                if name.startswith(FRESH) and time.time() - found.st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
                    continue
                yield _File(path, found.st_size, found.st_atime_ns)


def _copies(directory: Path) -> list[Path]:
    return [path for path in (directory / _COPIES).iterdir() if path.is_dir()]


def _used(path: Path) -> int:
    with suppress(OSError):
        return path.with_suffix(".lock").stat().st_mtime_ns
    return 0


class HeldCopy:
    """The directory of a copy of files; it is not removed while a process holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with io_errors(path, "write"):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = open(os.open(path.with_suffix(".lock"), flags, 0o600), "rb")  # noqa: SIM115 (held)
            os.utime(self._file.fileno())
        fcntl.flock(self._file, fcntl.LOCK_SH)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Context manager while no other process holds it; waits for those that are filling it."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_SH)


def _remove_unused(path: Path) -> None:
    """Removes the directory of a copy, unless a process holds it; does not wait."""
    with suppress(OSError), path.with_suffix(".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)


class CachedFile:
    """A remote file whose ranges are read through a cache; safe to use from several threads.

    Raises:
        DataError: if the server has no ranges.
    """

    def __init__(self, file: RemoteFile, cache: RangeCache) -> None:
        if not file.ranges:
            raise DataError(f"{file}: the server sends no parts of files", "download the store, or use another server")
        self.num_bytes = file.size
        self._file, self._cache = file, cache
        identity = f"{file.url}\n{file.size}\n{file.tag}"
        self._name = hashlib.sha256(identity.encode()).hexdigest()[:32]
        self._idle: list[RemoteStream] = []

    def read(self, start: int, content: np.ndarray) -> tuple[int, Stamp | None]:
        """Reads bytes from `start` on.

        Returns:
            The number of bytes, fewer only at the end; and the stamp of the range.

        Raises:
            DataError: if they cannot be read, or the file has changed.
        """
        name, target = f"{self._name}/{start}", content.data
        stamp = self._cache.read(name, target)
        if stamp is not None:
            return len(content), stamp
        try:
            stream = self._idle.pop()
        except IndexError:
            stream = RemoteStream(self._file)
        stream.seek(start)
        at = 0
        while count := stream.readinto(target[at:]):
            at += count
        self._idle.append(stream)
        return at, self._cache.write(name, target) if at == len(content) else None

    def stamp(self, start: int) -> Stamp | None:
        """Returns what changes when the range from `start` on is written again; None if it is not kept."""
        return self._cache.stamp(f"{self._name}/{start}")

    def read_again(self, start: int, content: np.ndarray) -> bool:
        """Reads a range that is wrong from the server, once more; returns True."""
        self._cache.remove(f"{self._name}/{start}")
        idle, self._idle = self._idle, []
        for stream in idle:
            stream.close()
        self.read(start, content)
        return True
