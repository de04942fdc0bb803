"""A directory that appears under its name when it is complete, and until then is `NAME.partial`."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import DataError
from data.files import io_errors, sync_file

_LOCK = "unfinished.lock"


@contextmanager
def partial_directory(out: Path) -> Iterator[Path]:
    """An empty directory `OUT.partial` that is renamed to `out` when the block ends well, and removed when it raises.

    A killed process leaves `OUT.partial` behind; the next one starts it over.

    Raises:
        DataError: if `out` exists, another process is at work on it, or `OUT.partial` is somebody else's.
    """
    if out.exists():
        raise DataError(f"{out}: exists already", "choose another output directory, or remove this one")
    partial = out.with_name(out.name + ".partial")
    lock = partial / _LOCK
    with io_errors(partial, "write"):
        if partial.exists() and not lock.exists():
            raise DataError(f"{partial}: exists, and is not an unfinished preparation", "move it away")
        partial.mkdir(parents=True, exist_ok=True)
        lock_file = lock.open("w")
    with lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{partial}: another process is preparing it", "wait until it has ended") from error
        try:
            with io_errors(partial, "write"):
                _clear(partial, keep=lock)
            yield partial
            with io_errors(partial, "write"):
                _clear_lock(lock)
                partial.rename(out)
                sync_file(out.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _clear(directory: Path, *, keep: Path) -> None:
    for path in directory.iterdir():
        if path == keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _clear_lock(lock: Path) -> None:
    lock.unlink()
    sync_file(lock.parent)
