"""Reads what runs left in their directories, finished or not, without torch; lists them and draws learning curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrmctl.console.console import output, print_json, print_table, warn
from dlrmctl.console.pictures import check_picture, picture
from dlrmctl.console.text import number_text, with_error
from dlrmctl.data.errors import DataError
from dlrmctl.data.sealed import Values
from dlrmctl.errors import UserError
from dlrmctl.rundir.directory import RunDirectory, step_of
from dlrmctl.rundir.records import read_lines, read_record
from dlrmctl.settings.config import resolve

_DEEPEST = 3  # directories below the one that was named
METRICS = ("ne", "log_loss", "auc", "calibration")
_NAMES = {"ne": "NE", "log_loss": "log loss", "auc": "AUC", "calibration": "calibration"}
_OF_TRAINING = {"ne": "ne", "log_loss": "loss", "calibration": "calibration"}


@dataclass(frozen=True)
class History:
    """One run as its files tell it.

    Attributes:
        path: its directory.
        settings: the sections of run.toml.
        entries: the lines of metrics.jsonl, in order; kind "train" or "validation".
        results: results.json; None while the run has not come to its end.
        checkpoint_step: of the newest checkpoint, from which the run can be resumed; None if there is none yet.
    """

    path: Path
    settings: dict[str, Any]
    entries: list[dict[str, Any]]
    results: dict[str, Any] | None
    checkpoint_step: int | None = None

    @property
    def validations(self) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry.get("kind") == "validation"]

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest validation NE, or log loss where NE is not defined."""
        for metric in ("ne", "log_loss"):
            if known := [entry for entry in self.validations if entry.get(metric) is not None]:
                return min(known, key=lambda entry: float(entry[metric]))
        return None

    def summary(self) -> dict[str, Any]:
        """Plain values: one line of the list of runs."""
        embeddings, optim = self.settings.get("embeddings", {}), self.settings.get("optim", {})
        best, test = self.best or {}, (self.results or {}).get("test", {})
        return {
            "run": str(self.path),
            "dataset": self.settings.get("data", {}).get("dataset"),
            "embedding": embeddings.get("embedding"),
            "dense_optimizer": optim.get("dense_optimizer"),
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
    """The run in a directory.

    Raises:
        UserError, DataError: if it is not a run, or a file of it is damaged.
    """
    run = RunDirectory(path, writes=False)
    settings = run.settings()
    resolve(settings, {}, file_name=str(run.settings_file))  # checks them
    results, steps = path / "results.json", run.complete_checkpoints()
    return History(
        path,
        settings,
        read_lines(run.metrics_file, _entry, "remove that line") if run.metrics_file.exists() else [],
        read_record(results, _results, f"remove it, then --resume {path}") if results.exists() else None,
        step_of(steps[-1]) if steps else None,
    )


def _entry(values: Values) -> dict[str, Any]:
    """A line of metrics.jsonl: kind, step, and numbers by name."""
    numbers = {
        name: values.number(name) for name in values.entries if name not in ("kind", "step") and values.has(name)
    }
    return {"kind": values.text("kind"), "step": values.whole("step"), **numbers}


def _results(values: Values) -> dict[str, Any]:
    """Numbers by split and name."""
    splits = {split: values.inner(split) for split in ("validation", "test")}
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
        raise UserError(f"{directory}: there is no such directory")
    found, level = [], [directory]
    for _ in range(_DEEPEST + 1):
        found += [path for path in level if (path / "run.toml").is_file()]
        deeper = [path for path in level if not (path / "run.toml").is_file()]
        level = [child for path in deeper for child in path.iterdir() if child.is_dir() and not child.is_symlink()]
    return sorted(found)


def list_runs(directory: Path, *, as_json: bool) -> None:
    """Shows every run below a directory, the best validation NE first.

    Raises:
        UserError, DataError: if there is none, or none that can be read.
    """
    runs, problems = [], []
    for path in find_runs(directory):
        try:
            runs.append(read_history(path).summary())
        except (UserError, DataError) as error:  # the others are listed all the same
            problems.append(error)
    if not runs:
        nothing = UserError(f"{directory}: no run in it", "`dlrmctl train` makes one; name the directory they are in")
        raise problems[0] if problems else nothing
    for problem in problems:
        warn(problem.message)
    # Those without NE come last, by log loss.
    runs.sort(key=lambda run: (run["validation_ne"] is None, run["validation_ne"] or run["validation_log_loss"] or 0.0))
    if as_json:
        print_json(runs)
        return
    print_table(
        f"{len(runs)} run{'s'[: len(runs) != 1]} in {directory}, by validation NE",
        ["", "data", "tables", "MLPs", "steps", "validation NE", "test NE", "test AUC"],
        [_row(run, directory) for run in runs],
    )
    unfinished = [run for run in runs if not run["finished"]]
    if unfinished:
        output.print(f"{len(unfinished)} not finished: dlrmctl train --resume RUN goes on")
    for run in unfinished:
        if run["checkpoint_step"] is None:
            output.print(f"{run['run']}: no checkpoint yet, starts over when it is resumed")


def _row(run: dict[str, Any], directory: Path) -> Sequence[str]:
    path = Path(run["run"])
    name = str(path.relative_to(directory)) if path != directory else str(path)
    return [
        name,
        run["dataset"] or "-",
        run["embedding"] or "-",
        run["dense_optimizer"] or "-",
        f"{run['step']:,}" + ("" if run["finished"] else " ..."),
        number_text(run["validation_ne"]),
        with_error(run["test_ne"], run["test_ne_se"]),
        number_text(run["test_auc"]),
    ]


def plot_runs(paths: Sequence[Path], out: Path, *, metric: str | None = None) -> None:
    """Draws a metric over the examples seen: training as thin lines, validation as marked ones.

    Args:
        metric: None for NE, or log loss if a run has no NE because all its validation labels are the same.

    Raises:
        UserError: if a run has nothing to draw yet, or the picture cannot be written.
    """
    check_picture(out)
    histories = [read_history(path) for path in paths]
    if metric is None:
        without_ne = any(history.best and history.best.get("ne") is None for history in histories)
        metric = "log_loss" if without_ne else "ne"
    for history in histories:
        if not any(entry.get(metric) is not None for entry in history.validations):
            raise UserError(f"{history.path}: no evaluation with {_NAMES[metric]} recorded yet")
    with picture(out) as figure:
        axes = figure.subplots()
        for number, history in enumerate(histories):
            colour = f"C{number % 10}"
            steps, values = _points(history, "train", _OF_TRAINING.get(metric))
            axes.plot(steps, values, color=colour, alpha=0.35, linewidth=1)
            steps, values = _points(history, "validation", metric)
            axes.plot(steps, values, color=colour, marker="o", markersize=4, label=history.path.name)
            optimum = (history.results or {}).get("validation", {}).get(f"bayes_{metric}")
            if optimum is not None:
                axes.axhline(optimum, color=colour, linestyle=":", linewidth=1)
        axes.set_xlabel("examples")
        axes.set_ylabel(f"{_NAMES[metric]} (line: training; points: validation)")
        axes.legend(frameon=False)


def _points(history: History, kind: str, key: str | None) -> tuple[list[int], list[float]]:
    """Examples seen, and values, of the entries that have one."""
    size = int(history.settings.get("train", {}).get("batch_size", 1))
    known = [entry for entry in history.entries if entry.get("kind") == kind and entry.get(key or "") is not None]
    return [int(entry["step"]) * size for entry in known], [float(entry[key]) for entry in known] if key else []
