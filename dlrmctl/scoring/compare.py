"""Compares two runs on the same rows, with significance (`dlrmctl compare`)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.console.console import output, print_table
from dlrmctl.console.text import METRICS, with_error
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks, process_group
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import open_run
from dlrmctl.scoring.paired import Difference, compare_seeds
from dlrmctl.scoring.scores import Scores, collect_scores, scoring_display
from dlrmctl.settings.config import Config, resolve

LEVEL = 0.05
_COMPARED = ("log_loss", "ne", "auc", "gauc")
_HIGHER_IS_BETTER = {"auc", "gauc"}


def compare_on_rank(
    settings: Sequence[Sequence[dict[str, Any]]],
    runs: Sequence[Sequence[str]],
    names: Sequence[str],
    *,
    checkpoint: str,
    split: str,
) -> dict[str, Any]:
    """Joins the process group and compares the runs.

    Args:
        settings: of each run of both sides, see `Config.to_dict`.
        runs: directories of both sides, one for each seed.
        names: of the sides, as typed.
    """
    sides = []
    for side_settings, side_runs in zip(settings, runs, strict=True):
        configs = [resolve(sections, {}, file_name="settings") for sections in side_settings]
        directories = [RunDirectory(Path(run), writes=False) for run in side_runs]
        sides.append(list(zip(directories, configs, strict=True)))
    with process_group(sides[0][0][1].train.device) as ranks:
        return compare_runs(sides, names, ranks, checkpoint=checkpoint, split=split)


def compare_runs(
    sides: Sequence[Sequence[tuple[RunDirectory, Config]]],
    names: Sequence[str],
    ranks: Ranks,
    *,
    checkpoint: str,
    split: str,
) -> dict[str, Any]:
    """Scores a split with the checkpoints of two runs, or of two settings with several seeds, and compares them.

    Args:
        sides: two; runs with their settings, which must all name the same data.
        names: of the sides.
        checkpoint: "best", "last" or "step-N".

    Returns:
        Plain values: the sides, and per metric both values, the difference (second minus first), its standard error,
        the part of the seeds in it, and p; and whether all scores, seed by seed, are "identical".

    Raises:
        UserError, DataError: if a checkpoint or the data is missing or does not fit.
    """
    scored: list[list[Scores]] = []
    described = []
    data: tuple[Any, Path] | None = None
    for name, side in zip(names, sides, strict=True):
        scores, checkpoints = [], []
        for run, config in side:
            opened = open_run(config, run, ranks, checkpoint=checkpoint, split=split)
            with scoring_display(str(run.path), ranks) as tell:
                scores.append(collect_scores(opened.model, opened.reader, ranks, tell=tell))
            checkpoints.append(opened.checkpoint.name)
            fingerprint = opened.source.fingerprint()
            if data is not None and data[0] != fingerprint:
                raise UserError(
                    f"{data[1]} and {run.path} were trained on different data", "pass the data for both with --data"
                )
            data = (fingerprint, run.path)
        scored.append([of_run for of_run in scores if of_run is not None])
        one = len(set(checkpoints)) == 1
        described.append({"run": name, "seeds": len(side), "checkpoint": checkpoints[0] if one else checkpoint})

    def compared() -> dict[str, Any]:
        rows = scored[0][0]
        logits = [[scores.logits_N for scores in side] for side in scored]
        found = compare_seeds(logits[0], logits[1], rows.labels_N, rows.weights_N, rows.groups_N)
        return {
            "examples": len(rows.labels_N),
            "identical": len(logits[0]) == len(logits[1]) and all(map(np.array_equal, *logits)),
            **{name: difference.to_dict() for name, difference in found.items()},
        }

    return {"a": described[0], "b": described[1], "split": split, **ranks.from_main(compared)}


def show_comparison(result: dict[str, Any]) -> None:
    """Prints the comparison as a table and in words."""
    rows = []
    for name in _COMPARED:
        if name in result:
            found = Difference(**result[name])
            change = with_error(found.difference, found.se, "+.5f")
            rows.append([METRICS[name], f"{found.a:.5f}", f"{found.b:.5f}", change, _p_text(found.p)])
    for letter in "AB":
        output.print(_side_text(letter, result[letter.lower()]))
    print_table(
        f"{result['split']} split, {result['examples']:,} examples",
        ["", "A", "B", "B - A", "p"],
        rows,
    )
    if result["identical"]:
        output.print("the scores are identical")
        return
    for name in _COMPARED:
        if name in result:
            found = Difference(**result[name])
            output.print(sentence(METRICS[name], found, higher_is_better=name in _HIGHER_IS_BETTER))
    if result["a"]["seeds"] == result["b"]["seeds"] == 1:
        output.print(
            "Errors and p count the rows only. Two seeds of the same settings differ by more: "
            "compare directories of train --seeds."
        )
    else:
        output.print("Errors and p count the rows and the seeds (seeds' variance pooled over A and B, Student's t).")


def _side_text(letter: str, side: dict[str, Any]) -> str:
    seeds = f" ({side['seeds']} seeds)" if side["seeds"] > 1 else ""
    return f"{letter} {side['run']}{seeds}, {side['checkpoint']}"


def sentence(title: str, found: Difference, *, higher_is_better: bool) -> str:
    """The difference in words: whether it is significant, and which side is better by how much."""
    if found.p >= LEVEL:
        farthest = abs(found.difference) + 1.96 * found.se  # end of the 95 % interval
        return f"{title}: not significant (p = {_p_text(found.p)}); the difference is within ±{farthest:.5f}"
    better = "B" if (found.difference > 0) == higher_is_better else "A"
    share = 100 * abs(found.difference) / abs(found.a) if found.a else math.nan
    return f"{title}: {better} is better by {abs(found.difference):.5f} ({share:.2f} % of A's), p {_p_text(found.p)}"


def _p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"
