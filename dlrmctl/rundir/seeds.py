"""Runs with the same settings and several seeds: directories seed-N in a common directory."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrmctl.data.files import write_whole
from dlrmctl.data.sealed import Values
from dlrmctl.errors import UserError
from dlrmctl.rundir.directory import LOCK, RunDirectory
from dlrmctl.rundir.records import read_record
from dlrmctl.settings.config import Config
from dlrmctl.settings.toml import read_run_settings, write_settings

_FILE, _SETTINGS = "seeds.json", "seeds.toml"
MOST_SEEDS = 1000


@dataclass(frozen=True)
class SeedRuns:
    """A group of runs with several seeds.

    Attributes:
        path: their common directory.
        first: the smallest seed; the others follow it.
        number: of seeds.
    """

    path: Path
    first: int
    number: int

    @classmethod
    def open(cls, path: Path) -> "SeedRuns | None":
        """Opens a directory that `create` made; returns None for other directories.

        Raises:
            UserError, DataError: if its record is damaged.
        """
        if not (path / _FILE).is_file():
            return None

        def parse(values: Values) -> "SeedRuns":
            return cls(path, values.whole("first"), values.whole("seeds", least=1, most=MOST_SEEDS))

        return read_record(path / _FILE, parse, "use the runs in it one by one")

    @classmethod
    def create(cls, path: Path, config: Config, number: int) -> "SeedRuns":
        """Creates the directory and its record, before the first run.

        Args:
            config: of all runs; its seed is the first one.

        Raises:
            UserError: if the directory exists and is not empty, or cannot be written.
        """
        with RunDirectory(path, writes=True).created():
            write_settings(path / _SETTINGS, config.to_dict(derived=False))
            write_whole(path / _FILE, (json.dumps({"first": config.train.seed, "seeds": number}) + "\n").encode())
        return cls(path, config.train.seed, number)

    @property
    def runs(self) -> dict[int, Path]:
        """Seed -> directory of its run, including runs that were not started yet."""
        return {seed: self.path / f"seed-{seed}" for seed in range(self.first, self.first + self.number)}

    def settings(self) -> dict[str, Any]:
        """The sections of the settings that all runs share.

        Raises:
            UserError: if they are damaged.
        """
        return read_run_settings(self.path / _SETTINGS)

    def discard(self) -> None:
        """Removes the directory if none of its runs was started."""
        if not any(run.exists() for run in self.runs.values()):
            for name in (_FILE, _SETTINGS, LOCK):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes the results of all runs together."""
        write_whole(self.path / "results.json", (json.dumps(results, indent=2) + "\n").encode())


def finished_runs(path: Path) -> list[Path]:
    """The run in a directory, or the finished runs of several seeds.

    Raises:
        UserError: if none of several runs is finished.
    """
    group = SeedRuns.open(path)
    if group is None:
        return [path]
    finished = [run for run in group.runs.values() if RunDirectory(run, writes=False).is_finished]
    if not finished:
        raise UserError(f"none of the {group.number} runs in {path} is finished", f"dlrmctl train --resume {path}")
    return finished


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation over the seeds; None if a value is missing, or there is only one seed."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "sd": None}
    return {"mean": statistics.fmean(known), "sd": statistics.stdev(known) if len(known) > 1 else None}
