"""Files whose troubles are told as data errors, and that appear whole or not at all.

Directories may come from somebody else, with links in them: nothing here writes through a link. A new file is written
under a name that nobody can guess, made for it, and then renamed; locks and files that grow are opened as they are, or
refused.
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

_GZIP_LEVEL = 1  # random digits are hardly smaller with more
_PIECE_BYTES = 1 << 22  # a checkpoint is checksummed beside tables that fill the memory
_FRESH = ".dlrmctl-new-"  # begins the names of what is not complete
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
NO_SCRATCH = "No usable temporary directory"  # begins what `tempfile` says
SCRATCH_HINT = "export TMPDIR=DIR, a directory that you can write to, on a disk with free space"


@contextmanager
def io_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns what the system says about `path` into a DataError.

    Args:
        path: the file or directory at work.
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


def refuse_url(name: str) -> None:
    """Check that a name is that of a file on this machine.

    Raises:
        DataError: if it is a URL, with the command that copies what it names.
    """
    match = _URL.match(name)
    if match is None:
        return
    if match[1] == "file":
        raise DataError(f"{name}: a URL, expected a path", name[match.end() :])
    copy = _COPY.get(match[1])
    hint = "copy it to this machine, or mount it, and name the file"
    raise DataError(
        f"{name}: only files on this machine are read and written",
        hint if copy is None else f"{hint}: {copy.format(url=name)}",
    )


def sync_file(path: Path) -> None:
    """Waits until the file (or the directory's list of names) is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all; another file or a link of the name is replaced.

    Raises:
        DataError: if the disk is full or the place may not be written.
    """
    with _fresh_file(path) as file:
        file.write(content)


def read_array(path: Path, dtype: "np.dtype", count: int, offset: int = 0) -> "np.ndarray":
    """`count` numbers that begin at byte `offset` of a file.

    Raises:
        DataError: if it cannot be read, or ends before.
    """
    import numpy as np

    array = np.empty(count, dtype)
    content, at = array.view(np.uint8).data, 0
    with io_errors(path, "read"), _open_to_read(path) as file:
        file.seek(offset)
        while at < len(content) and (read := file.readinto(content[at:])):
            at += read
    if at < len(content):
        raise DataError(f"{path}: {offset + at:,} bytes, expected at least {offset + len(content):,}")
    return array


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that appears under its name when the block ends well, and leaves nothing behind when not.

    Args:
        path: compressed if it ends in .gz; another file or a link of the name is replaced.

    Raises:
        DataError: if the disk is full or the place may not be written.
    """
    with _fresh_file(path) as file:
        if path.suffix == ".gz":
            # Without name and time of its own: equal rows give equal files.
            with GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                yield cast(BinaryIO, packed)
        else:
            yield file


@contextmanager
def _fresh_file(path: Path) -> Iterator[BinaryIO]:
    """A file under another name, which becomes `path` when the block ends well."""
    with io_errors(path, "write"):
        _refuse_special(path)
        temporary = path.with_name(_fresh_name())
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with io_errors(path, "write"):
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            temporary.replace(path)
            sync_file(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """A new file as `whole_file` makes it; of a pipe, a device or /dev/stdout, that itself.

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
    """Whether the name is of a pipe, a device, or a file that this process has open, as /dev/stdout is."""
    if _inherited_descriptor(path) is not None:
        return True
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _inherited_descriptor(path: Path) -> int | None:
    """N of a name that stands for the open file N of this process: /dev/stdout, /dev/fd/N or /proc/self/fd/N."""
    opened = Path("/proc/self/fd").resolve()
    if path.is_symlink() and path.parent == Path("/dev"):
        path = path.readlink()
    return int(path.name) if path.name.isdecimal() and path.parent.resolve() == opened else None


def check_writable(path: Path) -> None:
    """Check that `whole_file` can make a file of this name now.

    Raises:
        DataError: if the name is of a directory or no file, or its directory takes no files.
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
    """A new directory for temporary files, which goes when the block ends.

    Raises:
        DataError: if there is no place for it.
    """
    try:
        directory = tempfile.TemporaryDirectory(prefix="dlrmctl-")
    except OSError as problem:
        raise scratch_error(problem) or problem from None
    with directory as place:
        yield Path(place)


def scratch_error(problem: BaseException) -> DataError | None:
    """The error of a machine without a place for temporary files, which packages need too; None for other errors."""
    said = problem.strerror if isinstance(problem, OSError) else None
    if said is None or not said.startswith(NO_SCRATCH):
        return None
    return DataError(f"there is {said[:1].lower()}{said[1:]}", SCRATCH_HINT)


def _fresh_name() -> str:
    return f"{_FRESH}{secrets.token_hex(8)}"


def _refuse_special(path: Path) -> None:
    """Check that `path` is no device, pipe or socket, which must not be replaced by a file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: is not a file", "choose another name")


def fresh_directory(path: Path) -> Path:
    """A new directory beside `path`, to be filled and renamed to it.

    Raises:
        DataError: if it cannot be made.
    """
    with io_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        directory = path.with_name(_fresh_name())
        directory.mkdir()
    return directory


def remove_leftovers(directory: Path) -> None:
    """Removes what killed processes left of fresh files and directories, here and in all directories below.

    Call it where no other process writes.
    """
    for place, directories, files in os.walk(directory):
        for name in [name for name in directories if name.startswith(_FRESH)]:
            directories.remove(name)
            shutil.rmtree(Path(place) / name, ignore_errors=True)
        for name in [name for name in files if name.startswith(_FRESH)]:
            (Path(place) / name).unlink(missing_ok=True)


@contextmanager
def appended_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is made if it is not there, open at its end.

    Raises:
        DataError: if it is a link or no file, or cannot be written.
    """
    with io_errors(path, "write"), open(_open_itself(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
        yield file


def read_file(path: Path, *, most: int) -> bytes:
    """A whole file.

    Raises:
        DataError: if it cannot be read, is no file, or has more than `most` bytes.
    """
    with io_errors(path, "read"), _open_to_read(path) as file:
        found = os.fstat(file.fileno()).st_size
        if found > most:
            raise DataError(f"{path}: has {found:,} bytes, at most {most:,} are read")
        return file.read()


def _open_to_read(path: Path) -> FileIO:
    """Opens a regular file; without waiting, as a pipe in its place would for somebody to write.

    Raises:
        DataError, OSError: if it is something else, or cannot be opened.
    """
    file = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DataError(f"{path}: is not a file")
    return file


@contextmanager
def held_lock(path: Path, busy: str, hint: str) -> Iterator[None]:
    """Holds the lock that a file is, which stays there, empty; it is let go when the process ends, however it does.

    Args:
        path: made if it is not there; what it holds stays.
        busy: the error where another process holds it.
        hint: with that error.

    Raises:
        DataError: `busy`; or if it is a link or no file, or cannot be written.
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
    """Opens a regular file, not what a link of the name leads to.

    Raises:
        DataError, OSError: if it is something else, or cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP or path.is_symlink():
            raise DataError(f"{path}: is a link, and nothing is written through it", "remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path}: is not a file", "remove it")
    return descriptor


def refuse_links(directory: Path, hint: str) -> None:
    """Check that nothing in a directory is a link: files in it will be written.

    Raises:
        DataError: naming the first link.
    """
    with io_errors(directory, "read"):
        for place, directories, files in os.walk(directory):
            for name in sorted(directories + files):
                if (Path(place) / name).is_symlink():
                    raise DataError(f"{Path(place) / name}: is a link, and nothing is written through it", hint)


def file_crc32(path: Path) -> int:
    crc32 = 0
    with io_errors(path, "read"), _open_to_read(path) as file:
        while piece := file.read(_PIECE_BYTES):
            crc32 = zlib.crc32(piece, crc32)
    return crc32
