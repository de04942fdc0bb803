"""The command line application. Commands import their workers when they run, so that --help and completion are fast."""

from typing import Annotated

import typer

from dlrmctl.cli.baseline import baseline
from dlrmctl.cli.bench import bench_app
from dlrmctl.cli.compress import compress_embeddings
from dlrmctl.cli.data import data_app, prepare
from dlrmctl.cli.export import export
from dlrmctl.cli.mistakes import Commands, show_version
from dlrmctl.cli.plan import plan
from dlrmctl.cli.score import calibrate, compare, evaluate, predict
from dlrmctl.cli.tools import doctor, plot, runs
from dlrmctl.cli.train import daily, train
from dlrmctl.cli.tune import tune

app = typer.Typer(
    name="dlrmctl",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DATA, _TRAINING, _AFTERWARDS, _MACHINE = "Data", "Training", "Trained models", "This machine"


@app.callback()
def dlrmctl(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Train DLRM recommendation models with compositional embeddings, sharded tables and distributed Shampoo.

    \b
    dlrmctl train --dataset synthetic         train on generated data; needs no files
    dlrmctl prepare criteo train.txt -o DIR   prepare Criteo's files, or your own with --schema
    dlrmctl train --data DIR                  train on prepared data
    dlrmctl COMMAND -h                        show the options of a command

    Run `dlrmctl --install-completion` once to complete commands, options, choices and run directories in new shells.
    """


app.command("prepare", no_args_is_help=True, rich_help_panel=_DATA)(prepare)
app.add_typer(data_app, name="data", cls=Commands, rich_help_panel=_DATA)
for command in (train, daily, tune, baseline, runs, plot, plan):
    app.command(rich_help_panel=_TRAINING)(command)
for command in (evaluate, compare, calibrate, predict):
    app.command(rich_help_panel=_AFTERWARDS)(command)
app.command("compress-embeddings", rich_help_panel=_AFTERWARDS)(compress_embeddings)
app.command(rich_help_panel=_AFTERWARDS)(export)
app.command(rich_help_panel=_MACHINE)(doctor)
app.add_typer(bench_app, name="bench", cls=Commands, rich_help_panel=_MACHINE)
