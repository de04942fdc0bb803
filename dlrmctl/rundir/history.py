"""The recorded history of runs, finished or not; does not load torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.kept_schema import kept_schema
from dlrmctl.data.sealed import Values
from dlrmctl.errors import UserError
from dlrmctl.rundir.directory import RunDirectory, step_of
from dlrmctl.rundir.records import read_lines, read_record
from dlrmctl.settings.config import Config, resolve
from dlrmctl.settings.embeddings import embedding_of

_DEEPEST = 3  # levels below the given directory


@dataclass(frozen=True)
class History:
    """The settings, metrics and results of a run.

    Attributes:
        path: its directory.
        settings: the sections of run.toml.
        entries: the lines of metrics.jsonl, in order; kind "train" or "validation".
        results: results.json; None while the run is not finished.
        checkpoint_step: step of the newest checkpoint; None if there is none.
        tables: type of the tables that are compressed, or "full"; None if the run does not keep its features.
    """

    path: Path
    settings: dict[str, Any]
    entries: list[dict[str, Any]]
    results: dict[str, Any] | None
    checkpoint_step: int | None = None
    tables: str | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether the run is a baseline; its entries are fits with different penalties, not the steps of a training."""
        return "baseline" in self.settings

    @property
    def validations(self) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry.get("kind") == "validation"]

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest validation NE, or log loss if NE is not defined."""
        for metric in ("ne", "log_loss"):
            if known := [entry for entry in self.validations if entry.get(metric) is not None]:
                return min(known, key=lambda entry: float(entry[metric]))
        return None

    def summary(self) -> dict[str, Any]:
        """Plain values for a line of the list of runs."""
        model, embeddings, optim = (self.settings.get(section, {}) for section in ("model", "embeddings", "optim"))
        tables = self.tables or embeddings.get("embedding")
        best, test = self.best or {}, (self.results or {}).get("test", {})
        return {
            "run": str(self.path),
            "dataset": self.settings.get("data", {}).get("dataset"),
            "embedding": "baseline" if self.is_baseline else embeddings.get("embedding"),
            "tables": "baseline" if self.is_baseline else f"{tables} + wide" if model.get("wide") else tables,
            "dense_optimizer": None if self.is_baseline else optim.get("dense_optimizer"),
            "step": max((int(entry["step"]) for entry in self.entries), default=0),
            "finished": self.results is not None,
            "checkpoint_step": self.checkpoint_step,
            "best_step": best.get("step"),
            "validation_ne": best.get("ne"),
            "validation_log_loss": best.get("log_loss"),
            "validation_auc": best.get("auc"),
            "test_ne": test.get("ne"),
            "test_log_loss": test.get("log_loss"),
            "test_ne_se": test.get("ne_se"),
            "test_auc": test.get("auc"),
        }


def read_history(path: Path) -> History:
    """Reads the run in a directory.

    Raises:
        UserError, DataError: if it is not a run, or one of its files is damaged.
    """
    run = RunDirectory(path, writes=False)
    settings = run.settings()
    config = resolve(settings, {}, file_name=str(run.settings_file))  # checks them
    results, steps = path / "results.json", run.complete_checkpoints()
    return History(
        path,
        settings,
        read_lines(run.metrics_file, _entry, "remove that line") if run.metrics_file.exists() else [],
        read_record(results, _results, f"remove it, then --resume {path}") if results.exists() else None,
        step_of(steps[-1]) if steps else None,
        _tables(config, run),
    )


def _tables(config: Config, run: RunDirectory) -> str | None:
    try:
        schema = kept_schema(run.features)
    except DataError:  # of an earlier version, or damaged, which `predict` tells
        return None
    return embedding_of(config.embeddings, config.tables, {feature.name: feature.rows for feature in schema.sparse})


def _entry(values: Values) -> dict[str, Any]:
    """Parses a line of metrics.jsonl: kind, step, and numbers by name."""
    numbers = {
        name: values.number(name) for name in values.entries if name not in ("kind", "step") and values.has(name)
    }
    return {"kind": values.text("kind"), "step": values.whole("step"), **numbers}


def _results(values: Values) -> dict[str, Any]:
    """Parses results.json: numbers by split and name; a trial of a search has no test scores."""
    splits = {"validation": values.inner("validation")}
    if values.has("test"):
        splits["test"] = values.inner("test")
    return {
        split: {name: metrics.number(name) for name in metrics.entries if metrics.has(name)}
        for split, metrics in splits.items()
    }


def find_runs(directory: Path) -> list[Path]:
    """The run directories in and below a directory, by name.

    Raises:
        UserError: if the directory does not exist.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    found, level = [], [directory]
    for _ in range(_DEEPEST + 1):
        found += [path for path in level if (path / "run.toml").is_file()]
        deeper = [path for path in level if not (path / "run.toml").is_file()]
        level = [child for path in deeper for child in path.iterdir() if child.is_dir() and not child.is_symlink()]
    return sorted(found)
