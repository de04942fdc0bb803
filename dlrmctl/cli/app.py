"""The command line. Commands import their workers inside, so that --help answers at once."""

import typer

from dlrmctl.cli.bench import bench_app
from dlrmctl.cli.compress import compress_embeddings
from dlrmctl.cli.data import data_app, prepare
from dlrmctl.cli.export import export
from dlrmctl.cli.plan import plan
from dlrmctl.cli.score import compare, evaluate, predict
from dlrmctl.cli.tools import doctor, plot, runs
from dlrmctl.cli.train import train

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
for command in (export, train, runs, plot, doctor):
    app.command()(command)
