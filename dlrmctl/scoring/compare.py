"""`dlrmctl compare`: two runs on the same rows, and how sure their difference is."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.console.console import output, print_table
from dlrmctl.console.text import with_error
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks, process_group
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import open_run
from dlrmctl.scoring.paired import Difference, compare_scores
from dlrmctl.scoring.scores import Scores, collect_scores
from dlrmctl.settings.config import Config, resolve

LEVEL = 0.05
_NAMES = {"log_loss": "log loss", "ne": "NE", "auc": "AUC"}
_HIGHER_IS_BETTER = {"auc"}


def compare_on_rank(
    settings: Sequence[dict[str, Any]], runs: Sequence[str], *, checkpoint: str, split: str
) -> dict[str, Any]:
    """Joins the ranks and compares with them.

    Args:
        settings: of each run, sections as `Config.to_dict` gives them.
    """
    configs = [resolve(sections, {}, file_name="settings") for sections in settings]
    directories = [RunDirectory(Path(run), writes=False) for run in runs]
    with process_group(configs[0].train.device) as ranks:
        return compare_runs(directories, configs, ranks, checkpoint=checkpoint, split=split)


def compare_runs(
    runs: Sequence[RunDirectory], configs: Sequence[Config], ranks: Ranks, *, checkpoint: str, split: str
) -> dict[str, Any]:
    """Scores the same split with the checkpoints of two runs.

    Args:
        runs, configs: two, each run with its settings; both name the same data.
        checkpoint: "best", "last" or "step-N", of both.

    Returns:
        Plain values: the runs, and per metric both values, the difference (second minus first), standard error and p;
        whether all scores are "identical".

    Raises:
        UserError, DataError: if a checkpoint or the data is not there, or does not fit.
    """
    scored: list[Scores] = []
    names, fingerprints = [], []
    for run, config in zip(runs, configs, strict=True):
        opened = open_run(config, run, ranks, checkpoint=checkpoint, split=split)
        scored.append(collect_scores(opened.model, opened.reader, ranks))
        names.append({"run": str(run.path), "checkpoint": opened.checkpoint.name})
        fingerprints.append(opened.source.fingerprint())
    if fingerprints[0] != fingerprints[1]:
        raise UserError(
            f"{runs[0].path} and {runs[1].path}: were trained on different data", "name the data for both with --data"
        )
    first, second = scored
    found = compare_scores(first.logits_N, second.logits_N, first.labels_N)
    return {
        "a": names[0],
        "b": names[1],
        "split": split,
        "examples": len(first.labels_N),
        "identical": np.array_equal(first.logits_N, second.logits_N),
        **{name: difference.to_dict() for name, difference in found.items()},
    }


def show_comparison(result: dict[str, Any]) -> None:
    """A table, and what it means in words."""
    rows = []
    for name, title in _NAMES.items():
        if name in result:
            found = Difference(**result[name])
            change = with_error(found.difference, found.se, "+.5f")
            rows.append([title, f"{found.a:.5f}", f"{found.b:.5f}", change, _p_text(found.p)])
    a, b = result["a"]["run"], result["b"]["run"]
    print_table(
        f"{result['split']} split, {result['examples']:,} examples\nA {a}, {result['a']['checkpoint']}\n"
        f"B {b}, {result['b']['checkpoint']}",
        ["", "A", "B", "B - A", "p"],
        rows,
    )
    if result["identical"]:
        output.print("the scores are identical")
        return
    for name, title in _NAMES.items():
        if name in result:
            output.print(sentence(title, Difference(**result[name]), higher_is_better=name in _HIGHER_IS_BETTER))


def sentence(title: str, found: Difference, *, higher_is_better: bool) -> str:
    """The difference in words: who is better, by how much, and whether chance explains it."""
    if found.p >= LEVEL:
        # Half-width of the 95 % interval: what this many rows could have shown.
        seen = abs(found.difference) + 1.96 * found.se
        return f"{title}: no difference that chance does not explain (p {_p_text(found.p)}); it is below {seen:.5f}"
    better = "B" if (found.difference > 0) == higher_is_better else "A"
    share = 100 * abs(found.difference) / abs(found.a) if found.a else math.nan
    return f"{title}: {better} is better by {abs(found.difference):.5f} ({share:.2f} % of A's), p {_p_text(found.p)}"


def _p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"
