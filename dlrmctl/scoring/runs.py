"""Lists the runs in a directory, the best first (`dlrmctl runs`); does not load torch."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dlrmctl.console.console import output, print_json, print_table, warn
from dlrmctl.console.text import counted, number_text, with_error
from dlrmctl.data.errors import DataError
from dlrmctl.errors import UserError
from dlrmctl.rundir.history import find_runs, read_history
from dlrmctl.rundir.seeds import SeedRuns, spread


def list_runs(directory: Path, *, as_json: bool) -> None:
    """Prints all runs below a directory, best validation NE first.

    Raises:
        UserError, DataError: if there is no run that can be read.
    """
    runs, problems = [], []
    for path in find_runs(directory):
        try:
            runs.append(read_history(path).summary())
        except (UserError, DataError) as error:  # the others are still listed
            problems.append(error)
    if not runs:
        nothing = UserError(f"{directory} contains no run", "`dlrmctl train` makes one; or give another directory")
        raise problems[0] if problems else nothing
    for problem in problems:
        warn(problem.message)
    groups = groups_of([Path(run["run"]) for run in runs])
    for run, group in zip(runs, groups, strict=True):
        run["group"] = group
    if as_json:
        print_json(sorted(runs, key=_by_quality))
        return
    rows = sorted(together(runs, directory), key=_by_quality)
    print_table(
        f"{counted(len(runs), 'run')} in {directory}, by validation NE",
        ["", "data", "tables", "MLPs", "steps", "validation NE", "test NE", "test AUC"],
        [_row(row, directory) for row in rows],
        optional=("MLPs", "data", "test AUC", "tables"),
    )
    if any(row["seeds"] > 1 for row in rows):
        output.print("Several seeds of the same settings are one row: mean ± standard deviation over the seeds.")
    unfinished = [run for run in runs if not run["finished"]]
    if unfinished:
        output.print(f"{len(unfinished)} not finished; continue with: dlrmctl train --resume RUN")
    for run in unfinished:
        if run["checkpoint_step"] is None:
            output.print(f"{run['run']} has no checkpoint yet and starts over when resumed")


def groups_of(runs: Sequence[Path]) -> list[str | None]:
    """The directory of the group of seeds that each run belongs to; None for a single run, or if it cannot be read."""
    members = {path for directory in {run.parent for run in runs} for path in _members(directory)}
    return [str(run.parent) if run in members else None for run in runs]


def _members(directory: Path) -> Collection[Path]:
    """The runs of the group of seeds in a directory."""
    try:
        group = SeedRuns.open(directory)
    except (UserError, DataError):
        return ()
    return () if group is None else group.runs.values()


def together(runs: Sequence[dict[str, Any]], directory: Path) -> list[dict[str, Any]]:
    """The rows of a table: one per single run, and one with means per group below `directory`.

    Args:
        runs: summaries of runs, each with its "group".
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    rows = []
    for run in runs:
        if run["group"] is None or directory not in Path(run["group"]).parents:
            rows.append({**run, "seeds": 1})
        else:
            groups.setdefault(run["group"], []).append(run)
    for group, members in groups.items():
        spreads = {name: spread([run[name] for run in members]) for name in ("validation_ne", "test_ne", "test_auc")}
        row = {
            **members[0],
            "run": group,
            "seeds": len(members),
            "step": max(run["step"] for run in members),
            "finished": all(run["finished"] for run in members),
            "validation_log_loss": spread([run["validation_log_loss"] for run in members])["mean"],
            **{name: found["mean"] for name, found in spreads.items()},
            "test_ne_se": spreads["test_ne"]["sd"],
        }
        rows.append(row)
    return rows


def _by_quality(run: dict[str, Any]) -> tuple[bool, float]:
    """Sort key: validation NE; runs without NE last, by log loss."""
    return run["validation_ne"] is None, run["validation_ne"] or run["validation_log_loss"] or 0.0


def _row(run: dict[str, Any], directory: Path) -> Sequence[str]:
    path = Path(run["run"])
    name = str(path.relative_to(directory)) if path != directory else str(path)
    return [
        name if run["seeds"] == 1 else f"{name} ({counted(run['seeds'], 'seed')})",
        run["dataset"] or "-",
        run["tables"] or "-",
        run["dense_optimizer"] or "-",
        f"{run['step']:,}" + ("" if run["finished"] else " ..."),
        number_text(run["validation_ne"]),
        with_error(run["test_ne"], run["test_ne_se"]),
        number_text(run["test_auc"]),
    ]
