"""Draws learning curves of runs (`dlrmctl plot`); does not load torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrmctl.console.pictures import check_picture, picture, thousands
from dlrmctl.console.text import METRICS
from dlrmctl.errors import UserError
from dlrmctl.rundir.history import History, read_history

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

DRAWN = ("ne", "log_loss", "auc", "calibration")
_BETTER = {
    "ne": "normalized entropy, lower is better",
    "log_loss": "nats, lower is better",
    "auc": "higher is better",
    "calibration": "1 is best",
}
_OF_TRAINING = {"ne": "ne", "log_loss": "loss", "calibration": "calibration"}
_TRAINING: dict[str, Any] = {"alpha": 0.5, "linewidth": 1.0}
_VALIDATION: dict[str, Any] = {"marker": "o", "markersize": 4.0}
_OPTIMUM: dict[str, Any] = {"linestyle": ":", "linewidth": 1.5}
_BASELINE: dict[str, Any] = {"linestyle": "--", "linewidth": 1.5}  # has no learning curve
_SETTLED = 0.1  # fraction of a run before which training values may lie outside the picture

Points = tuple[list[int], list[float]]


def plot_runs(paths: Sequence[Path], out: Path, *, metric: str | None = None) -> None:
    """Draws a metric over the training examples: training, validation, and the optimum if known.

    Args:
        metric: None for NE, or log loss if a run has no NE because all its validation labels are the same.

    Raises:
        UserError: if a run has no values yet, or the picture cannot be written.
    """
    check_picture(out)
    histories = [read_history(path) for path in paths]
    if metric is None:
        without_ne = any(history.best and history.best.get("ne") is None for history in histories)
        metric = "log_loss" if without_ne else "ne"
    for history in histories:
        if not any(entry.get(metric) is not None for entry in history.validations):
            raise UserError(f"{history.path} has no evaluation with {METRICS[metric]} yet")
    with picture(out) as figure:
        axes, heights = figure.subplots(), []
        for number, history in enumerate(histories):
            colour = f"C{number % 10}"
            if history.is_baseline:
                best = float((history.best or {})[metric])
                axes.axhline(best, color=colour, **_BASELINE)
                heights.append(best)
                continue
            training = _points(history, "train", _OF_TRAINING.get(metric))
            validation = _points(history, "validation", metric)
            optimum = (history.results or {}).get("validation", {}).get(f"bayes_{metric}")
            axes.plot(*training, color=colour, **_TRAINING)
            axes.plot(*validation, color=colour, **_VALIDATION)
            # Several runs are compared by their validation; training values waver more.
            heights += validation[1] if len(histories) > 1 else [*validation[1], *_settled(training)]
            if optimum is not None:
                axes.axhline(optimum, color=colour, **_OPTIMUM)
                heights.append(optimum)
        margin = 0.05 * (max(heights) - min(heights)) or 0.01
        axes.set_ylim(min(heights) - margin, max(heights) + margin)
        whose = histories[0].path.name if len(histories) == 1 else f"{len(histories)} runs"
        axes.set_title(f"Learning curves of {whose}")
        axes.set_xlabel("training examples")
        axes.set_ylabel(f"{METRICS[metric]} ({_BETTER[metric]})")
        thousands(axes.xaxis)
        axes.legend(handles=_legend(histories, metric))


def _points(history: History, kind: str, key: str | None) -> Points:
    """Number of examples seen and value of the entries that have one."""
    size = int(history.settings.get("train", {}).get("batch_size", 1))
    known = [entry for entry in history.entries if entry.get("kind") == kind and entry.get(key or "") is not None]
    return [int(entry["step"]) * size for entry in known], [float(entry[key]) for entry in known] if key else []


def _settled(training: Points) -> list[float]:
    examples, values = training
    return [value for seen, value in zip(examples, values, strict=True) if seen >= _SETTLED * examples[-1]]


def _legend(histories: Sequence[History], metric: str) -> "list[Line2D]":
    """Legend entries for the runs, if there are several, and for the kinds of curves."""
    from matplotlib.lines import Line2D

    several = len(histories) > 1
    runs = [
        Line2D([], [], color=f"C{n % 10}", label=history.path.name, **(_BASELINE if history.is_baseline else {}))
        for n, history in enumerate(histories)
    ]
    colour = "0.4" if several else "C0"
    kinds = [Line2D([], [], color=colour, label="validation", **_VALIDATION)]
    if metric in _OF_TRAINING:
        kinds.append(Line2D([], [], color=colour, label="training, mean since the previous point", **_TRAINING))
    if any(f"bayes_{metric}" in (history.results or {}).get("validation", {}) for history in histories):
        kinds.append(Line2D([], [], color=colour, label="best possible (Bayes), validation", **_OPTIMUM))
    return [*(runs if several else []), *kinds]
