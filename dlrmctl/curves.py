"""`dlrmctl plot`: learning curves of runs."""

from collections.abc import Sequence
from pathlib import Path

from dlrmctl.errors import UserError
from dlrmctl.history import History, read_history
from dlrmctl.plot import check_picture, picture

METRICS = ("ne", "log_loss", "auc", "calibration")
_NAMES = {"ne": "NE", "log_loss": "log loss", "auc": "AUC", "calibration": "calibration"}
_OF_TRAINING = {"ne": "ne", "log_loss": "loss", "calibration": "calibration"}


def plot_runs(paths: Sequence[Path], out: Path, *, metric: str) -> None:
    """Draws a metric over the examples seen: training as thin lines, validation as marked ones.

    Raises:
        UserError: if a run has nothing to draw yet, or the picture cannot be written.
    """
    check_picture(out)
    histories = [read_history(path) for path in paths]
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
