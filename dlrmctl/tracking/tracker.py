"""What a tracker does, and what every tracker is told.

Sent are the name of the run, its settings (with the path of the data), the lines of metrics.jsonl, the results, and the
files `FILES`. Nothing else: no environment variables, names of users and hosts, or source code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dlrmctl.console.console import finite
from dlrmctl.settings.config import Config

FILES = ("run.toml", "plan.json", "results.json")
PROJECT = "dlrmctl"  # unless the variable of the tracker names another


class Tracker(Protocol):
    """A place that shows runs."""

    def record(self, entry: Mapping[str, Any]) -> None:
        """Takes a line of metrics.jsonl."""

    def finish(self, summary: Mapping[str, float]) -> None:
        """Takes the results of a finished run, and its files."""

    def close(self, *, failed: bool) -> None:
        """Sends what is left, and ends. Without `finish` before, the run is to be continued or failed."""


@dataclass(frozen=True)
class TrackedRun:
    """The run, for a tracker that begins.

    Attributes:
        path: its directory, whose last part is the name of the run.
        settings: by name, such as "optim.dense_lr".
        first_step: first step that will be recorded; an earlier process may have recorded later ones.
        known_as: what the tracker returned as the identity of the run when it began; None for a new run.
    """

    path: Path
    settings: Mapping[str, Any]
    first_step: int
    known_as: str | None

    @property
    def files(self) -> list[Path]:
        """Those of `FILES` that there are."""
        return [self.path / name for name in FILES if (self.path / name).is_file()]


def flat_settings(config: Config) -> dict[str, Any]:
    """The settings by section and name."""
    flat: dict[str, Any] = {}
    for section, values in config.to_dict().items():
        for name, value in values.items():
            if isinstance(value, Mapping):  # tables of individual features
                flat |= {f"{section}.{name}.{pattern}": str(dict(one)) for pattern, one in value.items()}
            else:
                flat[f"{section}.{name}"] = value
    return flat


def scalars(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, as "train/ne"."""
    return _numbers({f"{entry['kind']}/{name}": value for name, value in entry.items() if name not in ("kind", "step")})


def summary_of(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of results.json, as "test/auc"."""
    found = {"best_step": results["best_step"], "steps": results["steps"]}
    for split, place in (("validation", "best"), ("test", "test")):
        found |= {f"{place}/{name}": value for name, value in (results.get(split) or {}).items()}
    return _numbers(found)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those values that are finite numbers."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and finite(value) is not None
    }
