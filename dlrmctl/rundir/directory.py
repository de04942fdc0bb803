"""The files of a run directory, which only rank 0 writes.

run.toml            all settings, and the format version of the directory
environment.json    versions, ranks, device, command line, job
plan.json           placement of the tables
metrics.jsonl       one line per interval and evaluation
results.json        validation and test of the best checkpoint
reading.json        bytes that each rank read of a prepared store
calibration.json    see `calibration`
features/           features of the data, needed to score raw rows
checkpoints/        see `checkpoint`
events/             the lines of metrics.jsonl for TensorBoard, with --tracker tensorboard
trackers.json       what other trackers call the run
run.lock            held by the process that writes

A directory is untrusted: files are replaced, never written through links.
"""

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrmctl.console.console import finite, warn
from dlrmctl.console.text import few
from dlrmctl.data.files import (
    appended_file,
    held_lock,
    io_errors,
    read_file,
    refuse_links,
    remove_leftovers,
    write_whole,
)
from dlrmctl.errors import UserError
from dlrmctl.ranks.cores import usable_cores
from dlrmctl.rundir.records import MOST_BYTES, read_record
from dlrmctl.settings.config import Config
from dlrmctl.settings.synonyms import nearest
from dlrmctl.settings.toml import read_run_settings, write_settings

if TYPE_CHECKING:
    from dlrmctl.data.features.space import FeatureSpace

FEATURES, LOCK, _ENVIRONMENT = "features", "run.lock", "environment.json"
_BEFORE_A_RUN = {LOCK, _ENVIRONMENT}  # left by a start that ended before the settings were written
_CHECKPOINT = re.compile(r"step-[0-9]{1,18}")
_DISTRUST = "remove the link; do not resume runs that you do not trust"
_PACKAGES = ("dlrmctl", "torch", "torchrec", "fbgemm-gpu", "numpy", "polars")


class RunDirectory:
    """Paths and files of a run. Only rank 0 writes; there, `listeners` are called with every recorded line."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self.path = path
        self.writes = writes
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.metrics_file = path / "metrics.jsonl"

    @property
    def settings_file(self) -> Path:
        return self.path / "run.toml"

    @property
    def is_finished(self) -> bool:
        """Whether the run has finished and has results."""
        return (self.path / "results.json").exists()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def complete_checkpoints(self) -> list[Path]:
        """The directories of complete checkpoints, by step."""
        return complete_checkpoints(self.checkpoints)

    @property
    def features(self) -> Path:
        """Vocabularies, counts and transforms of the data; see `data.features`."""
        return self.path / FEATURES

    def keep_features(self, features: "FeatureSpace") -> None:
        """Saves the features, so that raw rows can be scored without the training data.

        Raises:
            UserError, DataError: if they cannot be written, or the run already has features of other data.
        """
        from dlrmctl.data.features.space import FeatureSpace

        if not self.writes:
            return
        if not self.features.exists():
            features.save(self.features)
        elif FeatureSpace.open(self.features).vocabulary_fingerprint() != features.vocabulary_fingerprint():
            raise UserError(f"{self.features} belongs to other data than the run is trained on")

    @contextmanager
    def created(self, hint: str | None = None) -> Iterator[None]:
        """Creates the directory and locks it for the block. If the block fails before it wrote anything, removes it.

        Args:
            hint: for a directory that is not empty; default: to resume it.

        Raises:
            UserError, DataError: if it exists and is not empty, or cannot be created.
        """
        if not self.writes:
            yield
            return
        self._refuse_used(hint)
        with io_errors(self.path, "write"):
            self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._refuse_used(hint)
            try:
                yield
            except BaseException:
                self._discard()
                raise

    def _discard(self) -> None:
        """Removes the directory if it has nothing but what precedes a run."""
        with suppress(OSError):
            if not {*os.listdir(self.path)} - {LOCK}:
                (self.path / LOCK).unlink()
                self.path.rmdir()

    def _refuse_used(self, hint: str | None) -> None:
        hint = hint or f"use --resume {self.path}, or another --run-dir"
        with io_errors(self.path, "write"):
            if os.path.lexists(self.path) and (not self.path.is_dir() or {*os.listdir(self.path)} - _BEFORE_A_RUN):
                raise UserError(
                    f"{self.path} already exists", hint or f"use --resume {self.path}, or another --run-dir"
                )

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Checks and locks the directory of a run that is continued, for the block.

        Raises:
            UserError, DataError: if it is not a run, another process trains in it, it cannot be written, or it
                contains links.
        """
        if not self.writes:
            yield
            return
        self.settings()
        if (self.path / "manifest.json").exists() or any(self.path.glob("*.safetensors")):
            raise UserError(
                f"{self.path} is a compressed model, which cannot be trained", "resume the run that it was made from"
            )
        for directory in (self.checkpoints, self.features, self.path / "events"):
            if directory.is_symlink():
                raise UserError(f"{directory} is a link, which is not followed", _DISTRUST)
        refuse_links(self.path / "events", _DISTRUST)
        best = self.checkpoints / "best"
        if best.exists() and not best.is_symlink():
            raise UserError(f"{best} must be a link to the best checkpoint", f"remove it: rm -r {best}")
        with self._locked():
            remove_leftovers(self.path)
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        busy = f"{self.path} is in use by another training process"
        with held_lock(self.path / LOCK, busy, "wait until it ends, or stop it"):
            yield

    def describe(
        self,
        config: Config,
        world_size: int,
        device: str,
        command_line: Sequence[str] = (),
        *,
        job: str | None = None,
    ) -> None:
        """Writes the settings and the environment; for a resumed run, those that it continues with.

        Args:
            command_line: arguments of the command, if one was typed.
            job: see `names.part_of_job`; if the job is restarted, it continues the run.
        """
        if not self.writes:
            return
        environment = _environment() | {
            "arguments": list(command_line),
            "world_size": world_size,
            "device": device,
            "job": job,
        }
        self._write(_ENVIRONMENT, environment)  # before the settings, which turn the directory into a run
        write_settings(self.settings_file, config.to_dict())

    def job(self) -> str | None:
        """The job of torchrun or Slurm that last trained here, if any; see `names.part_of_job`.

        Raises:
            UserError, DataError: if environment.json is damaged.
        """
        path = self.path / _ENVIRONMENT
        if not path.exists():
            return None
        return read_record(path, lambda values: values.text("job") if values.has("job") else None)

    def write_plan(self, rows: list[dict[str, Any]]) -> None:
        """Writes the placement of the tables to plan.json."""
        if self.writes:
            self._write("plan.json", rows)

    def settings(self) -> dict[str, Any]:
        """The sections of the run's run.toml.

        Raises:
            UserError: if this is not a run directory.
        """
        if not self.path.exists():
            raise UserError(f"{self.path}: no such run directory", _runs_beside(self.path))
        if not (self.settings_file).is_file():
            raise UserError(f"{self.path} is not a run directory: run.toml is missing", _what_instead(self.path))
        return read_run_settings(self.settings_file)

    def record(self, entry: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl and passes it to the listeners."""
        if self.writes:
            for listener in self.listeners:
                listener(entry)
            with appended_file(self.metrics_file) as file:
                file.write((json.dumps(finite(entry)) + "\n").encode())

    def forget_after(self, step: int) -> None:
        """Drops the recorded lines of steps that a resumed run will repeat, and a truncated line."""
        if not self.writes or not self.metrics_file.exists():
            return
        content = read_file(self.metrics_file, most=MOST_BYTES)
        lines = content.decode(errors="replace").splitlines(keepends=True)
        steps = [_recorded_step(line) for line in lines]
        kept = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
        if lost := sum(at is None for at in steps[:-1]):  # the last line may be truncated
            warn(f"{self.metrics_file}: dropped {lost} damaged lines")
        write_whole(self.metrics_file, "".join(kept).encode())

    def write_results(self, results: dict[str, Any]) -> None:
        if self.writes:
            self._write("results.json", finite(results))

    def write_reading(self, bytes_read: dict[str, list[int]]) -> None:
        """Writes the bytes that the ranks of this process's job read, see `datasets.open.bytes_read`."""
        if self.writes:
            self._write("reading.json", {"bytes_read": bytes_read})

    def _write(self, name: str, value: Any) -> None:
        write_whole(self.path / name, (json.dumps(value, indent=2) + "\n").encode())


def _what_instead(path: Path) -> str | None:
    """A hint for a path that is not a run."""
    if _CHECKPOINT.fullmatch(path.name) and path.parent.name == "checkpoints":
        return f"use the run directory with --checkpoint: {path.parent.parent} --checkpoint {path.name}"
    if (path / "train.bin").exists():
        return f"to train on this prepared store: dlrmctl train --data {path}"
    if path.is_file():
        return "use a run directory, not a file"
    inside = sorted(str(found.parent) for found in path.glob("*/run.toml"))
    return f"it contains the runs {few(inside)}" if inside else None


def _runs_beside(path: Path) -> str | None:
    """A hint that names a run with a similar name, if there is one."""
    runs = [found.parent.name for found in path.parent.glob("*/run.toml")] if path.parent.is_dir() else []
    close = nearest(path.name, runs)
    return f"did you mean {path.parent / close}?" if close else None


def complete_checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints step-N in a directory, by N."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step N of a directory step-N."""
    return int(checkpoint.name.removeprefix("step-"))


def _recorded_step(line: str) -> int | None:
    """The step of a recorded line; None if it is damaged."""
    try:
        entry = json.loads(line) if line.endswith("\n") else None
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if type(step) is int else None


def _environment() -> dict[str, Any]:
    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "cores": usable_cores(),
    }
