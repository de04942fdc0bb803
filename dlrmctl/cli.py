"""The command line. Commands import their workers inside, so that --help answers at once."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.bench.commands import bench_app
from dlrmctl.compress.cli import compress_embeddings
from dlrmctl.config import Config, default_run_directory, resolve
from dlrmctl.console import print_json, say
from dlrmctl.data_cli import data_app, prepare
from dlrmctl.errors import UserError
from dlrmctl.export.cli import export
from dlrmctl.launch import launch_local, needs_launch
from dlrmctl.options import LAUNCH_PANEL, AsJson, one_of, whole_number, with_settings
from dlrmctl.plan.cli import plan
from dlrmctl.scoring_cli import compare, evaluate, predict
from dlrmctl.starting import Nproc, check_batch

app = typer.Typer(
    name="dlrmctl",
    help="Train DLRM recommendation models with compositional embeddings, sharded tables and distributed Shampoo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("prepare", no_args_is_help=True)(prepare)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
for command in (evaluate, compare, predict):
    app.command()(command)
app.command("compress-embeddings")(compress_embeddings)
app.command("plan")(plan)
app.command()(export)


@app.command()
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
    from dlrmctl.rundir import RunDirectory

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
    from dlrmctl.ranks import process_group
    from dlrmctl.results import show_results
    from dlrmctl.rundir import RunDirectory
    from dlrmctl.train import train

    with process_group(settings.train.device) as ranks:
        check_batch(settings, ranks.world_size)
        # Clocks differ between ranks: rank 0 names the directory.
        run = RunDirectory(ranks.broadcast(path), writes=ranks.is_main)
        results = train(settings, run, ranks, resume=resume, print_plan=print_plan)
        if ranks.is_main:
            print_json(results) if as_json else show_results(results)


@app.command()
def runs(
    directory: Annotated[Path, typer.Argument(help="Where the runs are.", metavar="DIR")] = Path("runs"),
    json: AsJson = False,
) -> None:
    """List the runs below a directory, the best validation NE first."""
    from dlrmctl.history import list_runs

    list_runs(directory, as_json=json)


@app.command()
def plot(
    run: Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write, .png or .svg.")],
    metric: Annotated[str, typer.Option(help="What to draw.", metavar="ne|log_loss|auc|calibration")] = "ne",
) -> None:
    """Draw the learning curves of runs."""
    from dlrmctl.curves import METRICS, plot_runs

    one_of("--metric", metric, METRICS)
    plot_runs(run, out, metric=metric)
    say(f"{out}: written")


@app.command()
def doctor(
    smoke: Annotated[bool, typer.Option("--smoke/--no-smoke", help="Also train two steps on two ranks.")] = True,
    json: AsJson = False,
) -> None:
    """Examine this installation and machine; for each problem, the command that mends it."""
    from dlrmctl.doctor.command import doctor as examine

    raise typer.Exit(examine(smoke=smoke, as_json=json))


def _settings(config: Path | None, flags: dict[str, str]) -> Config:
    if config is None:
        return resolve({}, flags)
    from dlrmctl.toml import read_toml

    return resolve(read_toml(config), flags, file_name=str(config))
