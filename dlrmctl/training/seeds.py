"""Training with several seeds, to measure the variation of results; does not load torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrmctl.console.console import finite, print_table, say
from dlrmctl.console.text import METRICS, counted, number_text, with_error
from dlrmctl.data.errors import DataError
from dlrmctl.datasets.place import table_rows
from dlrmctl.errors import Interrupted, UserError
from dlrmctl.ranks.launch import launch_environment
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.names import named_after_data, new_name
from dlrmctl.rundir.seeds import SeedRuns, spread
from dlrmctl.settings.config import LARGEST_SEED, Config
from dlrmctl.training.run import run_training

_SHOWN = ("log_loss", "ne", "auc", "calibration")


def train_seeds(
    config: Config,
    seeds: int,
    *,
    run_dir: Path | None = None,
    nproc: int = 1,
    command_line: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains the same settings with several seeds, one after another, each in its own run directory.

    Args:
        config: the settings; its seed is the first one.
        seeds: number of seeds.
        run_dir: common directory, with a directory seed-N for each run. Default: a new name.
        nproc: number of ranks on this machine.

    Returns:
        {"run", "seeds", "runs": results of each, "validation" and "test": metric -> {"mean", "sd"}}; sd is the
        standard deviation over the seeds.

    Raises:
        UserError, DataError: see `run_training`; also under another launcher.
        Interrupted: see `run_training`; the directory can be resumed.
    """
    if config.train.seed + seeds - 1 > LARGEST_SEED:
        raise UserError(f"--seeds {seeds} from --seed {config.train.seed}: the largest seed is {LARGEST_SEED}")
    _refuse_launcher(f"--seeds {seeds}")
    config = named_after_data(config)
    group = SeedRuns.create(run_dir or new_name(config, table_rows(config.data)), config, seeds)
    return _train(group, config, nproc=nproc, command_line=command_line)


def resume_seeds(
    group: SeedRuns, config: Config, *, nproc: int = 1, command_line: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains the remaining runs of several seeds; see `train_seeds`."""
    _refuse_launcher(f"--resume {group.path} with {group.number} runs")
    return _train(group, config, nproc=nproc, command_line=command_line)


def _train(group: SeedRuns, config: Config, *, nproc: int, command_line: Sequence[str]) -> dict[str, Any]:
    runs = []
    for number, (seed, path) in enumerate(group.runs.items(), 1):
        say(f"seed {seed}, {number} of {group.number}")
        started = RunDirectory(path, writes=False).settings_file.exists()
        try:
            found = run_training(
                config.change(seed=seed), run_dir=path, resume=started, nproc=nproc, command_line=command_line
            )
        except (Interrupted, KeyboardInterrupt):
            say(f"all seeds continue with: dlrmctl train --resume {group.path}")
            raise
        except (UserError, DataError):
            group.discard()
            raise
        runs.append({"seed": seed, **found})
    results: dict[str, Any] = {"run": str(group.path), "seeds": list(group.runs), "runs": runs}
    for split in ("validation", "test"):
        results[split] = {name: spread([run[split].get(name) for run in runs]) for name in _SHOWN}
    group.write_results(finite(results))
    return results


def _refuse_launcher(what: str) -> None:
    if launch_environment().from_launcher:
        raise UserError(f"{what} cannot run under torchrun or another launcher", "start one job for each --seed")


def show_seeds(results: Mapping[str, Any]) -> None:
    """Prints the results of the seeds as a table, with mean and standard deviation."""
    rows = [
        [f"seed {run['seed']}", f"{run['best_step']:,}"] + [number_text(run["test"].get(name)) for name in _SHOWN]
        for run in results["runs"]
    ]
    means = [results["test"][name] for name in _SHOWN]
    rows.append(["mean ±sd", "", *(with_error(found["mean"], found["sd"]) for found in means)])
    print_table(
        f"{counted(len(results['seeds']), 'seed')} in {results['run']}: best weights on the test split",
        ["", "step", *(METRICS[name] for name in _SHOWN)],
        rows,
    )
