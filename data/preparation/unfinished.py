"""The directory `OUT.partial` of an unfinished preparation: one process works in it, and it stays if work can continue.

Its journal says how far the work is, in a small file that is replaced whole: what it says is on the disk already. It
names the version of everything in the directory.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import held_lock, io_errors, refuse_links, remove_leftovers, sync_file, write_whole

_LOCK = "unfinished.lock"
CONTINUES = "the same command continues from there"
_FORMAT = "dlrmctl-prepare/2"
_SHOWN = 80  # characters of a value that differs


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
    with held_lock(lock, f"{partial}: another process is preparing it", "wait until it has ended"):
        try:
            refuse_links(partial, "remove the directory, unless you know who made it")
            remove_leftovers(partial)
        except DataError as error:
            raise OtherPreparation(error.message, error.hint) from error
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


class OtherPreparation(DataError):
    """What lies there was begun from other sources, with other options or by another version; it is left alone."""


class Journal:
    """The journal in a directory.

    Args:
        directory: of the unfinished preparation.
        task: what is prepared and how, as plain values for JSON; work that was begun for another task is refused.

    Attributes:
        state: what was last saved, changed in place before `save`; empty at the beginning.

    Raises:
        OtherPreparation: naming the first difference, or saying that the journal is damaged.
    """

    def __init__(self, directory: Path, task: Mapping[str, Any]) -> None:
        self._path = directory / "journal.json"
        self._task = json.loads(json.dumps({"format": _FORMAT, **task}))
        self.state: dict[str, Any] = {}
        if not self._path.exists():
            self.save()
            return
        start_over = f"remove {directory} to start over"
        with io_errors(self._path, "read"):
            content = self._path.read_bytes()
        try:
            saved = json.loads(content)
            task, format, self.state = saved["task"], saved["task"]["format"], saved["state"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise OtherPreparation(f"{self._path}: damaged: {error!r}", start_over) from error
        if format != _FORMAT:
            formats = f"the format is {_short(format)}, expected {_short(_FORMAT)}"
            raise OtherPreparation(f"{directory}: begun by another version: {formats}", start_over)
        difference = _difference(task, self._task)
        if difference:
            raise OtherPreparation(
                f"{directory}: begun with {difference}",
                f"give the same sources and options to continue it, or {start_over}",
            )

    def save(self) -> None:
        """Brings `state` to the disk; what it vouches for must be there."""
        write_whole(self._path, json.dumps({"task": self._task, "state": self.state}).encode())


def _difference(old: Any, new: Any, where: str = "") -> str | None:
    """The first difference between two plain values, in words; None if they are equal."""
    if old == new:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *new):
            place = f"{where}.{key}" if where else key
            found = _difference(old.get(key), new.get(key), place)
            if found:
                return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, values in enumerate(zip(old, new, strict=True)):
            found = _difference(*values, f"{where}[{index}]")
            if found:
                return found
    if isinstance(old, list) and isinstance(new, list):
        return f"{len(old)} {where}, now {len(new)}"
    return f"{where} = {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
