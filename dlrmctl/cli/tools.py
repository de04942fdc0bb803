"""The commands `runs`, `plot` and `doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli.options import AsJson
from dlrmctl.console.console import say
from dlrmctl.settings.parse import one_of


def runs(
    directory: Annotated[Path, typer.Argument(help="Where the runs are.", metavar="DIR")] = Path("runs"),
    json: AsJson = False,
) -> None:
    """List the runs below a directory, the best validation NE first."""
    from dlrmctl.rundir.history import list_runs

    list_runs(directory, as_json=json)


def plot(
    run: Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write, .png or .svg.")],
    metric: Annotated[
        str | None,
        typer.Option(
            help="What to draw. \\[default: ne; log_loss if a run has no NE]", metavar="ne|log_loss|auc|calibration"
        ),
    ] = None,
) -> None:
    """Draw the learning curves of runs."""
    from dlrmctl.rundir.history import METRICS, plot_runs

    if metric is not None:
        one_of("--metric", metric, METRICS)
    plot_runs(run, out, metric=metric)
    say(f"{out}: written")


def doctor(
    smoke: Annotated[bool, typer.Option("--smoke/--no-smoke", help="Also train two steps on two ranks.")] = True,
    json: AsJson = False,
) -> None:
    """Examine this installation and machine; for each problem, the command that mends it."""
    from dlrmctl.doctor.command import doctor as examine

    raise typer.Exit(examine(smoke=smoke, as_json=json))
