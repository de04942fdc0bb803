"""The command `dlrmctl baseline`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli.options import LAUNCH_PANEL, STORE, AsJson, Nproc, SettingsFile, with_settings
from dlrmctl.console.console import print_json
from dlrmctl.ranks.launch import is_main
from dlrmctl.settings.config import BASELINE, SECTIONS, resolve
from dlrmctl.settings.parse import whole_number
from dlrmctl.settings.toml import read_settings

_DATA = ("dataset", *STORE, "synthetic_size", "synthetic_rows", "synthetic_seed")


@with_settings(only=(*_DATA, "solver", "sketch", "l2", "max_features", "dense"), sections=SECTIONS | BASELINE)
def baseline(
    config: SettingsFile = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            help="Write the run to this directory. Default: runs/NAME-baseline-TIME.",
            metavar="DIR",
            rich_help_panel=LAUNCH_PANEL,
        ),
    ] = None,
    nproc: Nproc = "1",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Fit a logistic regression to compare models with, and evaluate it on all splits.

    \b
    dlrmctl baseline --data DIR
    dlrmctl compare RUN BASELINE
    """
    ranks = whole_number("--nproc", nproc, at_least=1)
    sections = {} if config is None else read_settings(config)
    settings = resolve({"baseline": {}, **sections}, flags, file_name=str(config))
    from dlrmctl.baseline.report import show_baseline
    from dlrmctl.baseline.run import run_baseline

    results = run_baseline(settings, run_dir=run_dir, nproc=ranks, command_line=sys.argv[1:])
    if is_main():
        print_json(results) if json else show_baseline(results)
