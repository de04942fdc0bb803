"""Checkpoints: written whole or not at all, checked before use, never able to run code.

    checkpoints/step-1200/        tensors in torch.distributed.checkpoint's format, one file per rank
        state.json                step, position of the reader, best result so far
        complete.json             every file with its size and CRC-32; written last
    checkpoints/best              link to the best one

A checkpoint under way is called `step-1200.partial` and is renamed when it is complete and on disk.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dlrmctl.data.files import file_crc32, sync_file
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks

FORMAT = "dlrmctl-checkpoint/1"
_NAME = re.compile(r"step-(\d+)")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: their common directory; made on the first save.
        ranks: all of them save and load together.
    """

    def __init__(self, directory: Path, ranks: Ranks) -> None:
        self.directory = directory
        self.ranks = ranks

    def save(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> Path:
        """Writes tensors and state; returns the finished checkpoint's directory. Every rank must call it.

        A step is saved once: the directory must not exist.

        Raises:
            UserError: if it cannot be written. Earlier checkpoints stay as they were.
        """
        from dlrmctl.rundir.tensor_exchange import ExchangeError, write_tensors

        final = self.directory / f"step-{step}"
        partial = self.directory / f"step-{step}.partial"
        try:
            if self.ranks.is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self._barrier()
            write_tensors(partial, tensors, self.ranks.group)
            mine = _checksums(partial, f"__{self.ranks.rank}_")
            files = {name: entry for of_rank in self.ranks.gather(mine) for name, entry in of_rank.items()}
            if self.ranks.is_main:
                _write_json(partial / "state.json", state)
                files |= _checksums(partial, ".metadata") | _checksums(partial, "state.json")
                _write_json(partial / "complete.json", {"format": FORMAT, "step": step, "files": files})
                sync_file(partial)
                partial.rename(final)
                sync_file(self.directory)
            self._barrier()
        except (OSError, ExchangeError) as problem:
            if self.ranks.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            causes = problem.causes if isinstance(problem, ExchangeError) else [problem]
            raise self._save_error(final, causes) from None
        return final

    def _save_error(self, path: Path, causes: Sequence[BaseException]) -> UserError:
        kept = self.newest()
        stays = f"{kept.name} stays and can be resumed" if kept else "there is no earlier checkpoint"
        full = any(isinstance(cause, OSError) and cause.errno in _NO_SPACE for cause in causes)
        # torch's writer of tensors tells of a short write in its own words and drops the reason.
        if full or any("unexpected pos" in str(cause) or "PytorchStreamWriter" in str(cause) for cause in causes):
            return UserError(f"{path}: no space left on the disk while saving; {stays}", "free space, then --resume")
        reason = str(causes[0]).strip().splitlines()[-1] if str(causes[0]).strip() else type(causes[0]).__name__
        return UserError(f"{path}: cannot be saved: {reason}; {stays}")

    def newest(self) -> Path | None:
        """The complete checkpoint with the highest step, or None."""
        return max(self.complete(), key=_step_of, default=None)

    def complete(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]

    def at(self, step: int | None) -> Path | None:
        """The complete checkpoint of a step, if there is one."""
        path = self.directory / f"step-{step}"
        return path if path in self.complete() else None

    def keep(self, latest: int, best_step: int | None) -> None:
        """Removes all but the latest and the best, and what interrupted saves left; call on one rank.

        `best` becomes a link to the best one, for people; which one it is stands in every state.json.
        """
        link, temporary = self.directory / "best", self.directory / ".best"
        if self.at(best_step):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(f"step-{best_step}")
            temporary.replace(link)
        else:
            link.unlink(missing_ok=True)
        for path in sorted(self.complete(), key=_step_of)[:-latest]:
            if path != self.at(best_step):
                shutil.rmtree(path, ignore_errors=True)
        for leftover in self.directory.glob("step-*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _barrier(self) -> None:
        if self.ranks.world_size > 1:
            dist.barrier(group=self.ranks.group)


def read_state(path: Path) -> dict[str, Any]:
    """The state of a complete checkpoint, after its files were held against their checksums' sizes.

    Raises:
        UserError: if the checkpoint is not there, not complete, of another format, or a file is missing or cut short.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint")
    try:
        complete = json.loads((path / "complete.json").read_text())
        if complete["format"] != FORMAT:
            raise UserError(f"{path}: format {complete['format']!r}, this version reads {FORMAT!r}")
        for name, (size, _) in complete["files"].items():
            found = (path / name).stat().st_size
            if found != size:
                raise _damaged(path, f"{name} has {found} bytes, expected {size}")
        return json.loads((path / "state.json").read_text())
    except FileNotFoundError as problem:
        raise _damaged(path, f"{Path(problem.filename).name} is missing") from None
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, UnicodeDecodeError):
        raise _damaged(path, "complete.json or state.json cannot be read") from None


def verify(path: Path, rank: int, world_size: int) -> None:
    """Holds this rank's share of a checkpoint's files against their CRC-32.

    Raises:
        UserError: naming the first file that differs.
    """
    files = sorted(json.loads((path / "complete.json").read_text())["files"].items())
    for name, (_, crc) in files[rank::world_size]:
        if file_crc32(path / name) != crc:
            raise _damaged(path, f"{name} does not match its checksum")


def _problem_with(path: Path, ranks: Ranks) -> UserError | None:
    try:
        verify(path, ranks.rank, ranks.world_size)
    except UserError as error:
        return error
    return None


def load(path: Path, tensors: dict[str, Any], ranks: Ranks) -> None:
    """Fills tensors in place from a checkpoint written on any number of ranks. Every rank must call it.

    Raises:
        UserError: if a file is damaged, or the checkpoint holds other tensors than are asked for.
    """
    for problem in ranks.gather(_problem_with(path, ranks)):
        if problem is not None:
            raise problem
    from dlrmctl.rundir.tensor_exchange import ExchangeError, fill_tensors

    try:
        fill_tensors(path, tensors, ranks.group)
    except ExchangeError as failure:
        raise UserError(
            f"{path}: does not fit this model: {str(failure).strip().splitlines()[0]}",
            "the model and embedding settings must be those it was trained with",
        ) from None


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1])


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: damaged: {what}", f"remove {path.name} to resume from the checkpoint before it")


def _checksums(directory: Path, prefix: str) -> dict[str, list[int]]:
    """Name -> [bytes, CRC-32] of the files with this prefix."""
    files = (file for file in sorted(directory.iterdir()) if file.name.startswith(prefix))
    return {file.name: [file.stat().st_size, file_crc32(file)] for file in files}


def _write_json(path: Path, value: Any) -> None:
    with path.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
