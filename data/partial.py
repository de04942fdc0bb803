"""The directory `OUT.partial` of an unfinished preparation: one process works in it, and it stays if work can go on."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import DataError
from data.files import io_errors, sync_file
from data.journal import OtherPreparation

_LOCK = "unfinished.lock"
CONTINUES = "the same command goes on from there"


def partial_path(out: Path) -> Path:
    """Where the work on `out` lies until it is complete."""
    return out.with_name(out.name + ".partial")


@contextmanager
def partial_directory(out: Path) -> Iterator[Path]:
    """The directory `OUT.partial`, for this process alone, with whatever an interrupted process left in it.

    It stays when the block raises what a later run can outlive: an interruption, a full disk, a bug. It is removed
    after an error in the data.

    Raises:
        DataError: if another process is at work on it, or `OUT.partial` is somebody else's.
    """
    partial = partial_path(out)
    lock = partial / _LOCK
    with io_errors(partial, "write"):
        if partial.exists() and not lock.exists() and (not partial.is_dir() or any(partial.iterdir())):
            raise DataError(f"{partial}: exists, and is not an unfinished preparation", "move it away")
        partial.mkdir(parents=True, exist_ok=True)
        lock_file = lock.open("w")
    with lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{partial}: another process is preparing it", "wait until it has ended") from error
        try:
            yield partial
        except OtherPreparation:
            raise
        except DataError as error:
            if not _is_of_the_system(error):
                shutil.rmtree(partial, ignore_errors=True)
                raise
            kept = f"{partial} is kept: {CONTINUES}"
            raise DataError(error.message, f"{error.hint}; {kept}" if error.hint else kept) from error


def publish(store: Path, out: Path) -> None:
    """Gives a complete directory its final name.

    Raises:
        DataError: if it cannot be renamed.
    """
    with io_errors(out, "write"):
        sync_file(store)
        store.rename(out)
        sync_file(out.parent)


def clear(partial: Path) -> None:
    """Removes an `OUT.partial` whose work is done, the lock last."""
    with io_errors(partial, "write"):
        for path in sorted(partial.iterdir(), key=lambda path: path.is_file()):
            if path.name == _LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        (partial / _LOCK).unlink()
        partial.rmdir()


def _is_of_the_system(error: BaseException | None) -> bool:
    """Whether the system said no: that may change while the data stay as they are."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:  # a damaged gzip file has no number
            return True
        error = error.__cause__
    return False
