"""A run's directory: its files, written by rank 0 alone.

run.toml            all settings; names the version of the whole directory
environment.json    versions, ranks, device, command line
plan.json           where every table lives
metrics.jsonl       one line per interval and evaluation
results.json        validation and test of the best checkpoint
features/           what scoring raw rows needs of the data
checkpoints/        see `checkpoint`
events/             the lines of metrics.jsonl for TensorBoard, if asked for
"""

import errno
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dlrmctl.console.console import finite
from dlrmctl.errors import UserError
from dlrmctl.settings.config import Config
from dlrmctl.settings.toml import read_settings, write_settings

if TYPE_CHECKING:
    from dlrmctl.data.features.space import FeatureSpace

FEATURES = "features"
_PACKAGES = ("dlrmctl", "torch", "torchrec", "fbgemm-gpu", "numpy", "polars")


class RunDirectory:
    """Paths and files of one run. Only rank 0 writes; `listeners` hear every recorded line there."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self.path = path
        self.writes = writes
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.metrics_file = path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def features(self) -> Path:
        """Of the data: vocabularies, counts, transforms; see `data.features`."""
        return self.path / FEATURES

    def keep_features(self, features: "FeatureSpace") -> None:
        """Keeps all that scoring raw rows needs, so that the data need not be there.

        Raises:
            UserError, DataError: if it cannot be written, or is there already and of other data.
        """
        from dlrmctl.data.features.space import FeatureSpace

        if not self.writes:
            return
        if not self.features.exists():
            features.save(self.features)
        elif FeatureSpace.open(self.features).vocabulary_fingerprint() != features.vocabulary_fingerprint():
            raise UserError(f"{self.features}: is of other data than the run is trained on")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what the disk refuses into one line."""
        try:
            yield
        except OSError as problem:
            reason = problem.strerror or str(problem)
            hint = "free space, then --resume" if problem.errno == errno.ENOSPC else None
            raise UserError(f"{problem.filename or self.path}: cannot be written: {reason}", hint) from None

    def create(self) -> None:
        """Makes the directory.

        Raises:
            UserError: if it exists and is not empty, or cannot be made.
        """
        if not self.writes:
            return
        with self._writing():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise UserError(f"{self.path}: already exists", f"--resume {self.path}, or another --run-dir")
            self.path.mkdir(parents=True, exist_ok=True)

    def describe(self, config: Config, world_size: int, device: str, command_line: Sequence[str] = ()) -> None:
        """Writes the settings and what they run on: of a resumed run, the settings it continues with.

        Args:
            command_line: arguments of the command, if one was typed.
        """
        if not self.writes:
            return
        with self._writing():
            write_settings(self.path / "run.toml", config.to_dict())
            environment = _environment() | {
                "arguments": list(command_line),
                "world_size": world_size,
                "device": device,
            }
            (self.path / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")

    def write_plan(self, rows: list[dict[str, Any]]) -> None:
        """Where every table lives, as plan.json."""
        if self.writes:
            with self._writing():
                (self.path / "plan.json").write_text(json.dumps(rows, indent=1) + "\n")

    def settings(self) -> dict[str, Any]:
        """The sections of the run's run.toml.

        Raises:
            UserError: if this is not a run.
        """
        if not self.path.exists():
            raise UserError(f"{self.path}: no such run directory")
        if not (self.path / "run.toml").is_file():
            raise UserError(f"{self.path}: is not a run directory: run.toml is missing")
        return read_settings(self.path / "run.toml")

    def record(self, entry: dict[str, Any]) -> None:
        """Appends one line to metrics.jsonl, and tells it to the listeners."""
        if self.writes:
            for listener in self.listeners:
                listener(entry)
            with self._writing(), self.metrics_file.open("a") as file:
                file.write(json.dumps(finite(entry)) + "\n")

    def forget_after(self, step: int) -> None:
        """Drops recorded lines of steps that a resumed run will take again, and a line cut short."""
        if not self.writes or not self.metrics_file.exists():
            return
        kept = []
        for line in self.metrics_file.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue
        temporary = self.metrics_file.with_suffix(".partial")
        with self._writing():
            temporary.write_text("".join(kept))
            temporary.replace(self.metrics_file)

    def write_results(self, results: dict[str, Any]) -> None:
        if self.writes:
            with self._writing():
                (self.path / "results.json").write_text(json.dumps(finite(results), indent=2) + "\n")


def _environment() -> dict[str, Any]:
    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "cores": len(os.sched_getaffinity(0)),
    }


class EventWriter:
    """Writes the numbers of every recorded line as scalars "train/ne", "validation/auc" and so on.

    Args:
        directory: of the event files; made if needed.
        first_step: events of this step and later ones, which a killed run may have left, are hidden.
    """

    def __init__(self, directory: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory), purge_step=first_step or None)

    def __call__(self, entry: dict[str, Any]) -> None:
        for name, value in entry.items():
            if name not in ("kind", "step") and isinstance(value, int | float):
                self.writer.add_scalar(f"{entry['kind']}/{name}", value, entry["step"])

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.writer.close()


def default_run_directory(config: Config, stamp: str) -> Path:
    """A name that says which data and which tables."""
    data = config.data.dataset if config.data.path is None else Path(config.data.path).name
    return Path("runs") / f"{data}-{config.embeddings.embedding}-{stamp}"
