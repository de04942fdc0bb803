"""File operations that raise data errors, and atomic writes.

Directories may come from somebody else and contain links: nothing here writes through a link. A new file is written
under a random name and then renamed; locks and growing files are opened only if they are regular files.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import GzipFile
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from dlrmctl.data.errors import DataError

if TYPE_CHECKING:
    import numpy as np

_GZIP_LEVEL = 1  # higher levels hardly compress random digits better
_PIECE_BYTES = 1 << 22  # small, since a checkpoint is checksummed beside tables that fill the memory
FRESH = ".dlrmctl-new-"  # prefix of the names of incomplete files
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")
_COPY = {
    "s3": "aws s3 cp {url} .",
    "gs": "gcloud storage cp {url} .",
    "hdfs": "hdfs dfs -get {url} .",
    "http": "curl -LO {url}",
    "https": "curl -LO {url}",
    "ftp": "curl -O {url}",
}
_FREE_SPACE = "free some space, or choose an output directory on another disk"
_PERMISSIONS = "check the permissions of the file and of its directory"
_WHAT_TO_DO = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "a file may not grow so large here: raise the limit (`ulimit -f`), or choose another disk",
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
}
_NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EROFS)
NO_SCRATCH = "No usable temporary directory"  # prefix of `tempfile`'s message
SCRATCH_HINT = "export TMPDIR=DIR, a directory that you can write to, on a disk with free space"


@contextmanager
def io_errors(path: object, doing: str) -> Iterator[None]:
    """Turns errors of the system about `path` into a DataError.

    Args:
        path: the file or directory.
        doing: "read" or "write".
    """
    try:
        yield
    except OSError as error:
        if no_scratch := scratch_error(error):
            raise no_scratch from error
        hint = _WHAT_TO_DO.get(error.errno or 0)
        if hint is None and doing == "write" and error.errno in _NO_PLACE:
            hint = "choose a directory that files can be written to"
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{path}: cannot {doing}: {reason}", hint) from error


def refuse_url(name: str, *, writes: bool = False) -> None:
    """Checks that a name is that of a file on this machine.

    Args:
        writes: whether the file is written.

    Raises:
        DataError: if it is a URL, with the command that downloads it.
    """
    match = _URL.match(name)
    if match is None:
        return
    if match[1] == "file":
        raise DataError(f"{name}: a URL, expected a path", name[match.end() :])
    if writes:
        raise DataError(f"{name}: this can only be written on this machine", "choose a name here, and copy it then")
    copy = _COPY.get(match[1])
    hint = "copy it to this machine, or mount it, and give the file's path"
    raise DataError(
        f"{name}: only files on this machine can be given here",
        hint if copy is None else f"{hint}: {copy.format(url=name)}",
    )


def sync_file(path: Path) -> None:
    """Flushes the file (or the directory's list of names) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: "bytes | memoryview", *, sync: bool = True) -> None:
    """Writes a file atomically; replaces another file or link of the name.

    Args:
        sync: False if the content may be lost when the machine fails, though not the name.

    Raises:
        DataError: if the disk is full or the file may not be written.
    """
    with _fresh_file(path, sync=sync) as file:
        file.write(content)


def read_array(path: Path, dtype: "np.dtype", count: int, offset: int = 0) -> "np.ndarray":
    """Reads `count` numbers from byte `offset` of a file.

    Raises:
        DataError: if it cannot be read, or is too short.
    """
    with io_errors(path, "read"), open_to_read(path) as file:
        return read_numbers(file, path, dtype, count, offset)


def read_numbers(file: FileIO, path: Path, dtype: "np.dtype", count: int, offset: int) -> "np.ndarray":
    """As `read_array`, from a file that is open.

    Raises:
        DataError, OSError: if it cannot be read, or is too short.
    """
    import numpy as np

    array = np.empty(count, dtype)
    content, at = array.view(np.uint8).data, 0
    file.seek(offset)
    while at < len(content) and (read := file.readinto(content[at:])):
        at += read
    if at < len(content):
        raise DataError(f"{path}: {offset + at:,} bytes, expected at least {offset + len(content):,}")
    return array


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Context manager for a new file that gets its name at the end, or is removed after an exception.

    Args:
        path: compressed if it ends in .gz; replaces another file or link of the name.

    Raises:
        DataError: if the disk is full or the file may not be written.
    """
    with _fresh_file(path) as file:
        if path.suffix == ".gz":
            # Without name and time, so that equal rows give equal files.
            with GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                yield cast(BinaryIO, packed)
        else:
            yield file


@contextmanager
def _fresh_file(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Context manager for a file under another name, renamed to `path` at the end."""
    with io_errors(path, "write"):
        _refuse_special(path)
        temporary = path.with_name(_fresh_name())
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with io_errors(path, "write"):
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(descriptor)
            temporary.replace(path)
            if sync:
                sync_file(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """As `whole_file`; but opens a pipe, a device or /dev/stdout itself.

    Raises:
        DataError: if it cannot be written.
    """
    if not is_stream(path):
        with whole_file(path) as file:
            yield file
        return
    with io_errors(path, "write"):
        inherited = _inherited_descriptor(path)
        descriptor = os.open(path, os.O_WRONLY) if inherited is None else os.dup(inherited)
        with open(descriptor, "wb") as stream:
            yield stream


def is_stream(path: Path) -> bool:
    """Returns whether the name is that of a pipe, a device, or an open file of this process, such as /dev/stdout."""
    if _inherited_descriptor(path) is not None:
        return True
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _inherited_descriptor(path: Path) -> int | None:
    """Returns N for names of the open file N of this process: /dev/stdout, /dev/fd/N or /proc/self/fd/N."""
    opened = Path("/proc/self/fd").resolve()
    if path.is_symlink() and path.parent == Path("/dev"):
        path = path.readlink()
    return int(path.name) if path.name.isdecimal() and path.parent.resolve() == opened else None


def check_writable(path: Path) -> None:
    """Checks that `whole_file` can make a file of this name.

    Raises:
        DataError: if the name is that of a directory or special file, or no file can be made there.
    """
    with io_errors(path, "write"):
        _refuse_special(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = path.with_name(_fresh_name())
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        temporary.unlink()


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Context manager for a new temporary directory.

    Raises:
        DataError: if it cannot be made.
    """
    try:
        directory = tempfile.TemporaryDirectory(prefix="dlrmctl-")
    except OSError as problem:
        raise scratch_error(problem) or problem from None
    with directory as place:
        yield Path(place)


def check_scratch() -> None:
    """Checks that there is a usable temporary directory, before work that needs one.

    Raises:
        DataError: if there is none.
    """
    try:
        tempfile.gettempdir()
    except OSError as problem:
        raise scratch_error(problem) or problem from None


def scratch_error(problem: BaseException) -> DataError | None:
    """Returns the error for a machine without a usable temporary directory, which packages need too; else None."""
    said = problem.strerror if isinstance(problem, OSError) else None
    if said is None or not said.startswith(NO_SCRATCH):
        return None
    return DataError(f"there is {said[:1].lower()}{said[1:]}", SCRATCH_HINT)


def _fresh_name() -> str:
    return f"{FRESH}{secrets.token_hex(8)}"


def _refuse_special(path: Path) -> None:
    """Checks that `path` is not a device, pipe or socket, which must not be replaced by a file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path} is not a file", "choose another name")


def fresh_directory(path: Path) -> Path:
    """Makes a new directory beside `path`, to be filled and renamed to it.

    Raises:
        DataError: if it cannot be made.
    """
    with io_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        directory = path.with_name(_fresh_name())
        directory.mkdir()
    return directory


def remove_leftovers(directory: Path) -> None:
    """Removes incomplete files and directories of killed processes, here and in all directories below.

    Call it only where no other process writes.
    """
    for place, directories, files in os.walk(directory):
        for name in [name for name in directories if name.startswith(FRESH)]:
            directories.remove(name)
            shutil.rmtree(Path(place) / name, ignore_errors=True)
        for name in [name for name in files if name.startswith(FRESH)]:
            (Path(place) / name).unlink(missing_ok=True)


@contextmanager
def appended_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file at its end; makes it if it does not exist.

    Raises:
        DataError: if it is not a regular file, or cannot be written.
    """
    with io_errors(path, "write"), open(_open_itself(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
        yield file


def read_file(path: Path, *, most: int) -> bytes:
    """Reads a whole file.

    Raises:
        DataError: if it cannot be read, is not a file, or has more than `most` bytes.
    """
    with io_errors(path, "read"), open_to_read(path) as file:
        found = os.fstat(file.fileno()).st_size
        if found > most:
            raise DataError(f"{path} has {found:,} bytes, more than {most:,}")
        return file.read()


def open_to_read(path: Path) -> FileIO:
    """Opens a regular file; does not block, as opening a pipe would.

    Raises:
        DataError, OSError: if it is not a regular file, or cannot be opened.
    """
    return FileIO(descriptor_to_read(path), "rb")


def descriptor_to_read(path: Path) -> int:
    """Opens a regular file like `open_to_read`; the caller closes the descriptor."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path} is not a file")
    return descriptor


@contextmanager
def held_lock(path: Path, busy: str, hint: str) -> Iterator[None]:
    """Context manager that holds a lock file, which stays; the end of the process releases the lock.

    Args:
        path: made if it does not exist; its content does not change.
        busy: the error if another process holds the lock.
        hint: the hint of that error.

    Raises:
        DataError: `busy`; or if it is not a regular file, or cannot be written.
    """
    with io_errors(path, "write"):
        descriptor = _open_itself(path, os.O_RDWR | os.O_CREAT)
    try:
        with io_errors(path, "lock"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(busy, hint) from error
        yield
    finally:
        os.close(descriptor)


def _open_itself(path: Path, flags: int) -> int:
    """Opens a regular file without following links.

    Raises:
        DataError, OSError: if it is not a regular file, or cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP or path.is_symlink():
            raise DataError(f"{path} is a link, and nothing is written through it", "remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path} is not a file", "remove it")
    return descriptor


def refuse_links(directory: Path, hint: str) -> None:
    """Checks that nothing in a directory is a link, before files in it are written.

    Raises:
        DataError: naming the first link.
    """
    with io_errors(directory, "read"):
        for place, directories, files in os.walk(directory):
            for name in sorted(directories + files):
                if (Path(place) / name).is_symlink():
                    raise DataError(f"{Path(place) / name} is a link, and nothing is written through it", hint)


def file_crc32(path: Path) -> int:
    crc32 = 0
    with io_errors(path, "read"), open_to_read(path) as file:
        while piece := file.read(_PIECE_BYTES):
            crc32 = zlib.crc32(piece, crc32)
    return crc32
