"""The command `train`."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli.options import LAUNCH_PANEL, AsJson, Nproc, with_settings
from dlrmctl.console.console import print_json
from dlrmctl.errors import UserError
from dlrmctl.ranks.launch import launch_local, needs_launch
from dlrmctl.rundir.directory import default_run_directory
from dlrmctl.settings.config import Config, check_batch, resolve
from dlrmctl.settings.parse import whole_number


@with_settings()
def train(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Settings file; typed flags override it.", rich_help_panel=LAUNCH_PANEL),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Run directory to go on with.", rich_help_panel=LAUNCH_PANEL)
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Directory of the new run.", rich_help_panel=LAUNCH_PANEL)
    ] = None,
    nproc: Nproc = "1",
    print_plan: Annotated[
        bool, typer.Option("--print-plan", help="Show where every table lives.", rich_help_panel=LAUNCH_PANEL)
    ] = False,
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Train, evaluate inside the epoch, keep the best, test once.

    One process, local ranks with --nproc, or under torchrun: torchrun --nproc-per-node 2 --no-python dlrmctl train ...
    """
    from dlrmctl.rundir.directory import RunDirectory

    if resume is not None:
        if config is not None or run_dir is not None:
            clash = "--config" if config is not None else "--run-dir"
            raise UserError(f"--resume {resume} and {clash} contradict: a run resumes with its own settings")
        run = RunDirectory(resume, writes=False)
        settings = resolve(run.settings(), flags, file_name=str(resume / "run.toml"))
    else:
        settings = _settings(config, flags)
        run = RunDirectory(run_dir or default_run_directory(settings, time.strftime("%Y%m%d-%H%M%S")), writes=False)
    ranks_here = whole_number("--nproc", nproc, at_least=1)
    check_batch(settings, ranks_here)
    if needs_launch(ranks_here):
        arguments = sys.argv[1:] if resume or run_dir else [*sys.argv[1:], "--run-dir", str(run.path)]
        raise typer.Exit(launch_local(ranks_here, arguments))
    _run_training(settings, run.path, resume=resume is not None, print_plan=print_plan, as_json=json)


def _run_training(settings: Config, path: Path, *, resume: bool, print_plan: bool, as_json: bool) -> None:
    from dlrmctl.ranks.ranks import process_group
    from dlrmctl.rundir.directory import RunDirectory
    from dlrmctl.scoring.metrics import show_results
    from dlrmctl.training.train import train

    with process_group(settings.train.device) as ranks:
        check_batch(settings, ranks.world_size)
        # Clocks differ between ranks: rank 0 names the directory.
        run = RunDirectory(ranks.broadcast(path), writes=ranks.is_main)
        results = train(settings, run, ranks, resume=resume, print_plan=print_plan)
        if ranks.is_main:
            print_json(results) if as_json else show_results(results)


def _settings(config: Path | None, flags: dict[str, str]) -> Config:
    if config is None:
        return resolve({}, flags)
    from dlrmctl.settings.toml import read_toml

    return resolve(read_toml(config), flags, file_name=str(config))
