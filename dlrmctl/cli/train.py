"""The command `train`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli import completion
from dlrmctl.cli.options import LAUNCH_PANEL, AsJson, Nproc, settings_of_run, with_settings
from dlrmctl.console.console import print_json
from dlrmctl.errors import UserError
from dlrmctl.ranks.launch import is_main
from dlrmctl.scoring.results import show_results
from dlrmctl.settings.config import Config, resolve
from dlrmctl.settings.parse import whole_number
from dlrmctl.settings.toml import read_settings
from dlrmctl.training.run import run_training


@with_settings()
def train(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="Read settings from this file; flags override it.",
            metavar="FILE.toml",
            rich_help_panel=LAUNCH_PANEL,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            help="Resume the run in this directory.",
            metavar="RUN",
            rich_help_panel=LAUNCH_PANEL,
            autocompletion=completion.runs,
        ),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            help="Write the run to this directory. Default: runs/NAME-EMBEDDING-TIME.",
            metavar="DIR",
            rich_help_panel=LAUNCH_PANEL,
        ),
    ] = None,
    nproc: Nproc = "1",
    print_plan: Annotated[
        bool, typer.Option("--print-plan", help="Show the rank of every table.", rich_help_panel=LAUNCH_PANEL)
    ] = False,
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Train a model, keep its best checkpoint by validation, and test that.

    \b
    dlrmctl train --dataset synthetic
    dlrmctl train --data DIR --embedding qr --collisions 4 --nproc 2
    dlrmctl train --resume RUN
    torchrun --nproc-per-node 2 --no-python dlrmctl train --data DIR
    """
    if resume is not None:
        if config is not None or run_dir is not None:
            clash = "--config" if config is not None else "--run-dir"
            raise UserError(f"--resume {resume} and {clash} contradict: a run resumes with its own settings")
        _, settings = settings_of_run(resume, flags)
    else:
        settings = _settings(config, flags)
    results = run_training(
        settings,
        run_dir=resume or run_dir,
        resume=resume is not None,
        nproc=whole_number("--nproc", nproc, at_least=1),
        print_plan=print_plan,
        command_line=sys.argv[1:],
    )
    if is_main():
        print_json(results) if json else show_results(results)


def _settings(config: Path | None, flags: dict[str, str]) -> Config:
    if config is None:
        return resolve({}, flags)
    return resolve(read_settings(config), flags, file_name=str(config))
