"""The commands `dlrmctl train` and `dlrmctl daily`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli import completion
from dlrmctl.cli.options import LAUNCH_PANEL, AsJson, Nproc, SettingsFile, settings_file, settings_of_run, with_settings
from dlrmctl.console.console import print_json
from dlrmctl.errors import UserError
from dlrmctl.ranks.launch import is_main
from dlrmctl.rundir.seeds import MOST_SEEDS, SeedRuns
from dlrmctl.scoring.results import show_results
from dlrmctl.settings.config import Config
from dlrmctl.settings.parse import whole_number
from dlrmctl.settings.toml import read_settings
from dlrmctl.settings.typed import refuse_missing_store, resolve_typed
from dlrmctl.training.run import run_training, settings_to_start_from, warn_of_kept_settings
from dlrmctl.training.seeds import resume_seeds, show_seeds, train_seeds

_OF_THE_START = ("init_from", "init_embeddings", "refit_dense")  # settings that only the start of a run reads


@with_settings()
def train(
    config: SettingsFile = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            help="Resume the run in this directory; auto: the run in --run-dir, if there is one, else start it.",
            metavar="RUN|auto",
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
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Train one run for each of N seeds, starting at --seed.",
            metavar="N",
            rich_help_panel=LAUNCH_PANEL,
        ),
    ] = None,
    print_plan: Annotated[
        bool,
        typer.Option("--print-plan", help="Show which rank each table is placed on.", rich_help_panel=LAUNCH_PANEL),
    ] = False,
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Train a model, keep the best checkpoint by validation, and evaluate it on the test split.

    \b
    dlrmctl train --dataset synthetic
    dlrmctl train --data DIR --embedding qr --collisions 4 --nproc 2
    dlrmctl train --resume RUN
    dlrmctl train --init-from RUN --data NEW
    torchrun --nproc-per-node 2 --no-python dlrmctl train --data DIR
    """
    start_or_resume = resume == Path("auto") and run_dir is not None
    if start_or_resume:
        if seeds is not None:
            raise UserError("--resume auto and several seeds contradict", "choose a single run: DIR/seed-N")
        resume = None
    elif resume == Path("auto") and not resume.exists():
        raise UserError("--resume auto needs the directory of the run", "--run-dir DIR")
    if resume is not None and (config is not None or run_dir is not None):
        clash = "--config" if config is not None else "--run-dir"
        raise UserError(f"--resume {resume} and {clash} contradict: a run is resumed with its own settings")
    if resume is not None:
        for name in _OF_THE_START:
            if name in flags:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"--resume {resume} and {flag} contradict: the run has started", f"omit {flag}")
    ranks = whole_number("--nproc", nproc, at_least=1)
    group = None if resume is None else SeedRuns.open(resume)
    if seeds is not None or group is not None:
        for flag, given in (("--print-plan", print_plan), ("--resume", seeds is not None and resume is not None)):
            if given:
                raise UserError(f"{flag} and several seeds contradict", "choose a single run: DIR/seed-N")
        if group is not None:
            settings = resolve_typed(group.settings(), flags, file_name=str(group.path))
            results = resume_seeds(group, settings, nproc=ranks, command_line=sys.argv[1:])
        else:
            number = whole_number("--seeds", str(seeds), at_least=2, at_most=MOST_SEEDS)
            settings = training_settings(config, flags)
            results = train_seeds(settings, number, run_dir=run_dir, nproc=ranks, command_line=sys.argv[1:])
        print_json(results) if json else show_seeds(results)
        return
    settings = training_settings(config, flags) if resume is None else settings_of_run(resume, flags, scoring=False)[1]
    if start_or_resume and is_main():
        warn_of_kept_settings(run_dir, settings, flags)
    results = run_training(
        settings,
        run_dir=resume or run_dir,
        resume="auto" if start_or_resume else resume is not None,
        nproc=ranks,
        print_plan=print_plan,
        command_line=sys.argv[1:],
    )
    if is_main():
        print_json(results) if json else show_results(results)


def training_settings(config: Path | None, flags: dict[str, str]) -> Config:
    """Returns the settings of a training, completed by those of the run that it starts from, if there is one."""
    file = {} if config is None else read_settings(config)
    name = {} if config is None else {"file_name": str(config)}
    given = file.get("train")
    earlier = flags.get("init_from", given.get("init_from") if isinstance(given, dict) else None)
    if earlier is not None:
        file = settings_to_start_from(Path(str(earlier)), file, flags)
    return resolve_typed(file, flags, **name)


@with_settings()
def daily(
    stores: Annotated[
        list[Path],
        typer.Argument(
            help="Prepared data, oldest first, each made with --extend from the one before.",
            metavar="DIR...",
            autocompletion=completion.stores,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Write runs and report to this directory.", metavar="DIR")],
    config: Annotated[
        Path | None, settings_file("Read the settings of the first day from this file; options override it.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw NE by day to this file, .png or .svg.", metavar="FILE"),
    ] = None,
    nproc: Nproc = "1",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Train day after day, and score each day with the model of the day before.

    A run starts from that of the day before (see train --init-from). Its rows are scored first, by the models of the
    day before and of the first day. The same command continues after an interruption, and with further days.

    \b
    dlrmctl daily monday tuesday wednesday -o week --plot week.svg
    """
    for name, flag in (("path", "--data"), ("dataset", "--dataset"), ("init_from", "--init-from")):
        if name in flags:
            raise UserError(f"{flag} contradicts the stores, which are given by name", f"omit {flag}")
    if plot is not None:
        from dlrmctl.console.pictures import check_picture

        check_picture(plot)
    for store in stores:
        refuse_missing_store(store)
    ranks, file = whole_number("--nproc", nproc, at_least=1), {} if config is None else read_settings(config)
    from dlrmctl.training.daily import draw_daily, show_daily, train_daily

    result = train_daily(stores, out, file, flags, nproc=ranks, command_line=sys.argv[1:])
    if is_main():
        print_json(result) if json else show_daily(result)
        if plot is not None:
            draw_daily(result, plot)
