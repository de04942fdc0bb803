"""`dlrmctl runs`: the runs below a directory, the best first. No torch here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrmctl.console.console import output, print_json, print_table, warn
from dlrmctl.console.text import counted, number_text, with_error
from dlrmctl.data.errors import DataError
from dlrmctl.errors import UserError
from dlrmctl.rundir.history import find_runs, read_history


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
        f"{counted(len(runs), 'run')} in {directory}, by validation NE",
        ["", "data", "tables", "MLPs", "steps", "validation NE", "test NE", "test AUC"],
        [_row(run, directory) for run in runs],
        optional=("MLPs", "data", "test AUC", "tables"),
    )
    unfinished = [run for run in runs if not run["finished"]]
    if unfinished:
        output.print(f"{len(unfinished)} not finished; continue with: dlrmctl train --resume RUN")
    for run in unfinished:
        if run["checkpoint_step"] is None:
            output.print(f"{run['run']} has no checkpoint yet and starts over when it is resumed")


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
