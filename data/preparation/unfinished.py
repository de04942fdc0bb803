"""The directory `OUT.partial` of an unfinished preparation: one process works in it; it remains if work can continue.

Its journal records the progress in a small file that is replaced atomically, after the work is on disk. It has the
version of everything in the directory.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlrmctl.data.errors import DataError, system_error
from dlrmctl.data.files import held_lock, io_errors, refuse_links, remove_leftovers, sync_file, write_whole
from dlrmctl.data.workers.pool import WorkersLost

_LOCK = "unfinished.lock"
CONTINUES = "the same command continues from there"
_FORMAT = "dlrmctl-prepare/6"
_SHOWN = 80  # the most characters of a value that differs


def partial_path(out: Path) -> Path:
    """Returns the directory of the work on `out` until it is complete."""
    return out.with_name(out.name + ".partial")


@contextmanager
def partial_directory(out: Path) -> Iterator[Path]:
    """Context manager that locks `OUT.partial` for this process, with the work of an interrupted one.

    It remains after errors that a later run may not have: an interruption, a full disk, a bug. It is removed after an
    error in the data.

    Raises:
        DataError: if another process uses it, or `OUT.partial` is something else.
    """
    partial = partial_path(out)
    lock = partial / _LOCK
    with io_errors(partial, "write"):
        if partial.exists() and not lock.exists() and (not partial.is_dir() or any(partial.iterdir())):
            raise DataError(f"{partial} exists, and is not an unfinished preparation", "move it away")
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
            if not isinstance(error, WorkersLost) and system_error(error) is None:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            kept = f"{partial} is kept: {CONTINUES}"
            raise DataError(error.message, f"{error.hint}; {kept}" if error.hint else kept) from error


def publish(store: Path, out: Path) -> None:
    """Renames a complete directory to its final name.

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


class OtherPreparation(DataError):
    """Raised if the work was begun from other sources, with other options or by another version; it is not changed."""


class Journal:
    """The journal in a directory.

    Args:
        directory: the directory of the unfinished preparation.
        task: what is prepared and how, as plain values for JSON; work of another task is refused.

    Attributes:
        state: the last saved state, changed in place before `save`; initially empty.

    Raises:
        OtherPreparation: naming the first difference, or that the journal is damaged.
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
        """Writes `state` to disk; the work that it records must be there already."""
        write_whole(self._path, json.dumps({"task": self._task, "state": self.state}).encode())


def _difference(old: Any, new: Any, where: str = "") -> str | None:
    """Describes the first difference between two plain values; None if they are equal."""
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
