"""The command line. Commands import their workers inside, so that --help answers at once."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.bench.commands import bench_app
from dlrmctl.config import Config, default_run_directory, resolve
from dlrmctl.console import print_json, say
from dlrmctl.errors import UserError
from dlrmctl.launch import launch_local, needs_launch
from dlrmctl.options import LAUNCH_PANEL, AsJson, one_of, whole_number, with_settings

app = typer.Typer(
    name="dlrmctl",
    help="Train DLRM recommendation models with compositional embeddings, sharded tables and distributed Shampoo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
prepare_app = typer.Typer(help="Turn raw data into a training-ready store.", no_args_is_help=True)
app.add_typer(prepare_app, name="prepare")
app.add_typer(bench_app, name="bench")

# Numbers arrive as text and are read by the same code as settings, so that mistakes read the same.
Nproc = Annotated[str, typer.Option(help="Ranks to start on this machine.", metavar="N", rich_help_panel=LAUNCH_PANEL)]


@prepare_app.command("criteo")
def prepare_criteo(
    sources: Annotated[list[Path], typer.Argument(help="TSV files, plain or .gz, in order of time.", metavar="SRC...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the new store.")],
    ids: Annotated[str, typer.Option(help="How values become ids.", metavar="vocabulary|hash")] = "vocabulary",
    min_count: Annotated[str, typer.Option(help="Vocabulary: rarer values share row 1.", metavar="N")] = "2",
    hash_rows: Annotated[str, typer.Option(help="Hashing: rows per table.", metavar="N")] = "1000000",
    split: Annotated[
        str,
        typer.Option(
            help="order: first 6/7 train, the rest halved; last-file: the last file halved.", metavar="order|last-file"
        ),
    ] = "order",
    max_bad_rows: Annotated[
        str | None,
        typer.Option(help="Refuse the data above this many rejected lines. Default: 1 % and 100 lines.", metavar="N"),
    ] = None,
    json: AsJson = False,
) -> None:
    """Criteo click logs (Kaggle or 1TB) -> a store for `dlrmctl train --data DIR`."""
    one_of("--ids", ids, ("vocabulary", "hash"))
    one_of("--split", split, ("order", "last-file"))
    from dlrmctl.prepare import prepare

    prepare(
        sources,
        out,
        min_count=whole_number("--min-count", min_count, at_least=1),
        hash_rows=whole_number("--hash-rows", hash_rows, at_least=2) if ids == "hash" else None,
        split=split,
        max_bad_rows=None if max_bad_rows is None else whole_number("--max-bad-rows", max_bad_rows, at_least=0),
        as_json=json,
    )


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
    _check_batch(settings, ranks_here)
    if needs_launch(ranks_here):
        arguments = sys.argv[1:] if resume or run_dir else [*sys.argv[1:], "--run-dir", str(run.path)]
        raise typer.Exit(launch_local(ranks_here, arguments))
    _run_training(settings, run.path, resume=resume is not None, print_plan=print_plan, as_json=json)


def _run_training(settings: Config, path: Path, *, resume: bool, print_plan: bool, as_json: bool) -> None:
    from dlrmctl.ranks import process_group
    from dlrmctl.results import show_results
    from dlrmctl.rundir import RunDirectory
    from dlrmctl.train import Interrupted, train

    with process_group(settings.train.device) as ranks:
        _check_batch(settings, ranks.world_size)
        # Clocks differ between ranks: rank 0 names the directory.
        run = RunDirectory(ranks.broadcast(path), writes=ranks.is_main)
        try:
            results = train(settings, run, ranks, resume=resume, print_plan=print_plan)
        except Interrupted as interruption:
            raise typer.Exit(interruption.exit_status) from None
        if ranks.is_main:
            print_json(results) if as_json else show_results(results)


@app.command()
@with_settings(only=("path", "batch_size", "device", "precision"))
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")],
    checkpoint: Annotated[str, typer.Option(help="best, last or step-N.", rich_help_panel=LAUNCH_PANEL)] = "best",
    split: Annotated[str, typer.Option(help="train, validation or test.", rich_help_panel=LAUNCH_PANEL)] = "test",
    nproc: Nproc = "1",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Score a checkpoint of a run on a split of its data."""
    from dlrmctl.rundir import RunDirectory

    one_of("--split", split, ("train", "validation", "test"))
    directory = RunDirectory(run, writes=False)
    settings = resolve(directory.settings(), flags, file_name=str(run / "run.toml"))
    ranks_here = whole_number("--nproc", nproc, at_least=1)
    _check_batch(settings, ranks_here)
    if needs_launch(ranks_here):
        raise typer.Exit(launch_local(ranks_here, sys.argv[1:]))
    from dlrmctl.console import print_table
    from dlrmctl.evaluate import evaluate_run
    from dlrmctl.ranks import process_group
    from dlrmctl.results import table_of

    with process_group(settings.train.device) as ranks:
        result = evaluate_run(settings, directory, ranks, checkpoint=checkpoint, split=split)
        if ranks.is_main:
            title = f"{result['checkpoint']} of {run}"
            print_json(result) if json else print_table(title, *table_of({split: result[split]}))


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


def _check_batch(settings: Config, world_size: int) -> None:
    size = settings.train.batch_size
    if size % world_size:
        raise UserError(
            f"train.batch_size = {size} cannot be cut into {world_size} equal parts, one per rank",
            f"--batch-size {size + -size % world_size}",
        )
