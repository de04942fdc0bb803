"""Draws a search: its trials in order, and which settings mattered."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dlrmctl.console.pictures import picture
from dlrmctl.console.text import METRICS
from dlrmctl.tuning.study import TrialRecord, best_of

_ROW_HEIGHT, _AXES_HEIGHT, _HISTORY_HEIGHT = 0.28, 1.1, 3.2  # inches


def draw_study(
    trials: Sequence[TrialRecord], importances: Mapping[str, float], metric: str, title: str, out: Path
) -> None:
    """Draws the score of every trial with the best so far, and the importances of the settings if known.

    Args:
        metric: name of the score.

    Raises:
        UserError: if it cannot be written.
    """
    heights = [_HISTORY_HEIGHT, *([_AXES_HEIGHT + _ROW_HEIGHT * len(importances)] if importances else [])]
    with picture(out, height=sum(heights)) as figure:
        axes, *below = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
        complete = [trial for trial in trials if trial.state == "complete" and trial.score is not None]
        pruned = [trial for trial in trials if trial.state == "pruned" and trial.score is not None]
        for kind, label, look in ((complete, "complete", "o"), (pruned, "pruned, its best evaluation", "x")):
            numbers, scores = [trial.number for trial in kind], [trial.score or 0.0 for trial in kind]
            axes.plot(numbers, scores, look, color="C0" if look == "o" else "0.6", markersize=4, label=label)
        best = [best_of(complete[: count + 1]) for count in range(len(complete))]
        lowest = [trial.score for trial in best if trial is not None and trial.score is not None]
        axes.step([trial.number for trial in complete], lowest, where="post", color="C1", label="best so far")
        if default := next((trial.score for trial in complete if trial.is_default), None):
            axes.axhline(default, color="0.3", linestyle=":", linewidth=1, label="default settings")
        if lowest:  # scores far above hide the differences between good ones
            scores = sorted(trial.score or 0.0 for trial in complete)
            top = max(scores[(3 * len(scores)) // 4], default or 0.0)
            margin = 0.15 * (top - scores[0]) or 0.01
            axes.set_ylim(scores[0] - margin, top + 3 * margin)
        axes.set_title(title)
        axes.set_xlabel("trial")
        axes.set_ylabel(f"validation {METRICS[metric]}, lower is better")
        axes.legend()
        if importances:
            (bars,) = below
            names = sorted(importances, key=lambda name: importances[name])
            bars.barh(range(len(names)), [importances[name] for name in names], color="C0", height=0.7)
            bars.set_yticks(range(len(names)), names)
            bars.grid(visible=False, axis="y")
            bars.set_title("Importance of the settings")
            bars.set_xlabel("share of what distinguishes the best trials from all (PED-ANOVA)")
