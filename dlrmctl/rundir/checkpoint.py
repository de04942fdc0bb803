"""Checkpoints: written atomically, verified before use, and safe to load from untrusted sources.

    checkpoints/step-1200/        tensors in torch.distributed.checkpoint's format, one file per rank
        state.json                step, position of the reader, best result so far
        complete.json             every file with its size and CRC-32; written last
    checkpoints/best              link to the best one

An unfinished checkpoint is called `step-1200.partial` and is renamed when it is complete and on disk.
"""

import errno
import json
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dlrmctl.console.text import last_line
from dlrmctl.data.errors import DataError
from dlrmctl.data.files import file_crc32, sync_file, write_whole
from dlrmctl.data.sealed import Values
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.directory import complete_checkpoints
from dlrmctl.rundir.records import read_record
from dlrmctl.rundir.state import SavedState
from dlrmctl.rundir.tensor_files import DISTRUST, METADATA

FORMAT = "dlrmctl-checkpoint/1"
_STATE, _COMPLETE = "state.json", "complete.json"
_OTHER_TENSORS = ("Missing key", "Size mismatch")  # how torch's messages begin if the files are good
_Result = TypeVar("_Result")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: their common directory; created by the first save.
        ranks: all of them save and load together.
    """

    def __init__(self, directory: Path, ranks: Ranks) -> None:
        self.directory = directory
        self.ranks = ranks

    def save(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> Path:
        """Writes tensors and state, and returns the directory of the checkpoint. Every rank must call it.

        A step can be saved only once.

        Raises:
            UserError: on every rank, if one cannot write. Earlier checkpoints are kept.
        """
        from dlrmctl.rundir.tensor_exchange import ExchangeError, write_tensors

        final = self.directory / f"step-{step}"
        partial = self.directory / f"step-{step}.partial"
        try:
            self.ranks.from_main(lambda: self._attempt(final, lambda: _make_anew(partial)))
            try:
                write_tensors(partial, tensors, self.ranks.messages)
            except ExchangeError as problem:
                raise self._save_error(final, problem.causes, _reached_limit(partial)) from None
            mine = f"__{self.ranks.rank}_"
            found = self.ranks.from_all(lambda: self._attempt(final, lambda: _checksums(partial, mine)))
            files = {name: entry for of_rank in found for name, entry in of_rank.items()}
            complete = {"format": FORMAT, "step": step, "files": files}
            self.ranks.from_main(lambda: self._attempt(final, lambda: _complete(partial, final, complete, state)))
        except UserError:
            if self.ranks.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return final

    def _attempt(self, final: Path, work: Callable[[], _Result]) -> _Result:
        """Does a part of a save.

        Raises:
            UserError: if it cannot write.
        """
        try:
            return work()
        except (OSError, DataError) as problem:
            too_large = _reached_limit(final.with_name(f"{final.name}.partial"))
            raise self._save_error(final, [problem.__cause__ or problem], too_large) from None

    def _save_error(self, path: Path, causes: Sequence[BaseException], too_large: bool) -> UserError:
        kept = self.newest()
        stays = f"{kept.name} is kept and can be resumed" if kept else "there is no earlier checkpoint"
        if too_large or any(isinstance(cause, OSError) and cause.errno == errno.EFBIG for cause in causes):
            message = f"{path}: cannot save: the file would exceed the limit on file sizes; {stays}"
            return UserError(message, "raise the limit (`ulimit -f`), then --resume")
        full = any(isinstance(cause, OSError) and cause.errno in _NO_SPACE for cause in causes)
        # torch reports a short write in its own words and drops the reason.
        if full or any("unexpected pos" in str(cause) or "PytorchStreamWriter" in str(cause) for cause in causes):
            return UserError(f"{path}: cannot save: no space left on the disk; {stays}", "free space, then --resume")
        first = causes[0]
        reason = first.strerror.lower() if isinstance(first, OSError) and first.strerror else last_line(first)
        return UserError(f"{path}: cannot save: {reason}; {stays}")

    def newest(self) -> Path | None:
        """The complete checkpoint with the highest step, or None."""
        return self.complete()[-1] if self.complete() else None

    def complete(self) -> list[Path]:
        """The complete checkpoints, by step."""
        return complete_checkpoints(self.directory)

    def at(self, step: int | None) -> Path | None:
        """The complete checkpoint of a step, if there is one."""
        path = self.directory / f"step-{step}"
        return path if path in self.complete() else None

    def keep(self, latest: int, best_step: int | None) -> None:
        """Removes all checkpoints but the latest and the best, and remains of interrupted saves; call on one rank.

        Sets the link `best`, for convenience: each state.json also names the best step.
        """
        link, temporary = self.directory / "best", self.directory / ".best"
        if self.at(best_step):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(f"step-{best_step}")
            temporary.replace(link)
        else:
            link.unlink(missing_ok=True)
        for path in self.complete()[:-latest]:
            if path != self.at(best_step):
                shutil.rmtree(path, ignore_errors=True)
        for leftover in self.directory.glob("step-*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)


def read_state(path: Path) -> SavedState:
    """Reads the state of a checkpoint and checks the sizes of its files.

    Raises:
        UserError: if the checkpoint is missing, incomplete or of another format, or a file is missing or truncated.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint")
    for name, (size, _) in _files(path).items():
        if not (path / name).is_file():
            raise _damaged(path, f"{name} is missing")
        found = (path / name).stat().st_size
        if found != size:
            raise _damaged(path, f"{name} has {found} bytes, expected {size}")
    return read_record(path / _STATE, SavedState.from_values, _remove(path))


def verify(path: Path, rank: int, world_size: int) -> None:
    """Verifies the CRC-32 of this rank's share of the files of a checkpoint.

    Raises:
        UserError: naming the first file that differs.
    """
    for name, (_, crc32) in sorted(_files(path).items())[rank::world_size]:
        if file_crc32(path / name) != crc32:
            raise _damaged(path, f"{name} does not match its checksum")


def _files(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> bytes and CRC-32 of all files of a complete checkpoint that are read."""
    if not (path / _COMPLETE).exists():
        raise _damaged(path, f"{_COMPLETE} is missing")
    listed = read_record(path / _COMPLETE, _listed_files, _remove(path))
    there = {_STATE, METADATA, *(file.name for file in path.glob("*.distcp"))}
    if forgotten := sorted(there - listed.keys()):
        raise _damaged(path, f"{_COMPLETE} does not list {forgotten[0]}")
    return listed


def _listed_files(values: Values) -> dict[str, tuple[int, int]]:
    values.require("format", FORMAT)
    files = {}
    for name, entry in values.inner("files").entries.items():
        if Path(name).name != name or "\0" in name or not (isinstance(entry, list) and len(entry) == 2):
            raise DataError(f"files: {name!r} is not a file of the checkpoint with size and checksum")
        pair = Values({"size": entry[0], "crc32": entry[1]}, f"files.{name}.")
        files[name] = pair.whole("size"), pair.whole("crc32")
    return files


def load(path: Path, tensors: dict[str, Any], ranks: Ranks) -> None:
    """Fills tensors in place from a checkpoint, written on any number of ranks. Every rank must call it.

    Raises:
        UserError: if a file is damaged, or the checkpoint does not contain these tensors.
    """
    ranks.from_all(lambda: verify(path, ranks.rank, ranks.world_size))
    from dlrmctl.rundir.tensor_exchange import ExchangeError, fill_tensors

    try:
        fill_tensors(path, tensors, ranks.messages)
    except ExchangeError as failure:
        for cause in failure.causes:
            if isinstance(cause, UserError):
                raise cause from None
        reason = (str(failure).strip() or type(failure.causes[0]).__name__).splitlines()[0]
        if not reason.startswith(_OTHER_TENSORS):  # torch's message for a bad file advises to trust it
            raise UserError(f"{path}: cannot read tensors", DISTRUST) from None
        raise UserError(
            f"{path} does not fit this model: {reason}",
            "use the model and embedding settings that it was trained with",
        ) from None


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: damaged: {what}", _remove(path))


def _remove(path: Path) -> str:
    return f"remove {path.name} to resume from the previous checkpoint"


def _make_anew(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _complete(partial: Path, final: Path, complete: dict[str, Any], state: dict[str, Any]) -> None:
    """Writes what rank 0 writes last, and gives the checkpoint its name."""
    write_whole(partial / _STATE, json.dumps(state, indent=1).encode())
    files = complete["files"] | _checksums(partial, METADATA) | _checksums(partial, _STATE)
    write_whole(partial / _COMPLETE, json.dumps(complete | {"files": files}, indent=1).encode())
    sync_file(partial)
    partial.rename(final)
    sync_file(final.parent)


def _reached_limit(directory: Path) -> bool:
    """Whether a file has reached the limit on file sizes, which torch does not distinguish from a full disk."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY or not directory.is_dir():
        return False
    return any(path.stat().st_size >= limit for path in directory.iterdir())


def _checksums(directory: Path, prefix: str) -> dict[str, list[int]]:
    """Name -> [bytes, CRC-32] of the files with this prefix."""
    files = (file for file in sorted(directory.iterdir()) if file.name.startswith(prefix))
    return {file.name: [file.stat().st_size, file_crc32(file)] for file in files}
