"""Fits a baseline in one call, on ranks of this machine or of a launcher; does not load torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrmctl.data.files import check_scratch
from dlrmctl.ranks.launch import run_on_ranks
from dlrmctl.ranks.process import configure
from dlrmctl.settings.config import Config


def run_baseline(
    config: Config, *, run_dir: Path | str | None = None, nproc: int = 1, command_line: Sequence[str] = ()
) -> dict[str, Any]:
    """Fits a logistic regression to prepared data and evaluates it; under torchrun, every rank must call it.

    Args:
        config: settings with those of the baseline.
        run_dir: directory of the run. Default: named after the data and the time.
        nproc: number of ranks on this machine.
        command_line: arguments to record in environment.json.

    Returns:
        The results: {"run", "solver", "l2", "path", "train": metrics, "validation", "test", ...}; the same on every
        rank.

    Raises:
        UserError, DataError: for mistakes that the user can fix.
    """
    configure()
    check_scratch()
    arguments = {
        "settings": config.to_dict(),
        "run_dir": None if run_dir is None else str(run_dir),
        "command_line": list(command_line),
    }
    results: dict[str, Any] = run_on_ranks("dlrmctl.baseline.fit:fit_on_rank", arguments, nproc)
    return results
