"""Training as one call: from settings to results, on ranks of this machine or those a launcher started.

No torch here: it is loaded where the training runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrmctl.errors import UserError
from dlrmctl.ranks.launch import needs_launch, run_on_ranks
from dlrmctl.ranks.process import configure
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.settings.config import Config, check_batch, resolve

if TYPE_CHECKING:
    from dlrmctl.data.source import Source


def run_training(
    config: Config | None = None,
    *,
    run_dir: Path | str | None = None,
    resume: bool = False,
    nproc: int = 1,
    source: "Source | None" = None,
    print_plan: bool = False,
    command_line: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains in a run directory, evaluates, keeps the best, tests once.

    Under torchrun every rank calls it. It works from any thread; signals are taken on the main one.

    Args:
        config: the settings; default: those of the resumed run, else the defaults.
        run_dir: of the run; else it is named after data, tables and time, or after the job of torchrun or Slurm that
            this is. A run of this job and these settings that is there already is continued.
        resume: continues the run in `run_dir` from its newest checkpoint.
        nproc: ranks on this machine.
        source: the data, if other than the settings name; on this process alone.
        print_plan: shows where every table lives.
        command_line: arguments to record in environment.json.

    Returns:
        {"run", "steps", "best_step", "validation": metrics, "test": metrics, "advice": one line or None}; the same on
        every rank.

    Raises:
        UserError, DataError: for what the user can mend. Interrupted: after SIGTERM or Ctrl-C, with the state saved.
    """
    configure()
    if resume and run_dir is None:
        raise UserError("a run is resumed in its directory, which was not given", "run_dir=...")
    if config is None:
        config = resolve(RunDirectory(Path(str(run_dir)), writes=False).settings(), {}) if resume else Config()
    check_batch(config, nproc)
    arguments: dict[str, Any] = {
        "settings": config.to_dict(derived=False),
        "run_dir": None if run_dir is None else str(run_dir),
        "resume": resume,
        "print_plan": print_plan,
        "command_line": list(command_line),
    }
    if source is not None:
        if needs_launch(nproc):
            raise UserError(f"nproc = {nproc}: a source that is handed over is for one process", "nproc=1, or torchrun")
        arguments["source"] = source
    results: dict[str, Any] = run_on_ranks("dlrmctl.training.train:train_on_rank", arguments, nproc)
    return results
