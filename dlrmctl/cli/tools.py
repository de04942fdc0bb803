"""The commands `runs`, `plot` and `doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli import completion
from dlrmctl.cli.options import AsJson, option
from dlrmctl.console.console import say
from dlrmctl.settings.parse import one_of


def runs(
    directory: Annotated[Path, typer.Argument(help="Directory to search.", metavar="DIR")] = Path("runs"),
    json: AsJson = False,
) -> None:
    """List runs, best validation NE first.

    \b
    dlrmctl runs
    dlrmctl runs experiments --json
    """
    from dlrmctl.scoring.runs import list_runs

    list_runs(directory, as_json=json)


def plot(
    run: Annotated[
        list[Path], typer.Argument(help="Run directories.", metavar="RUN...", autocompletion=completion.runs)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Write the picture to this file, .png or .svg.", metavar="FILE")
    ],
    metric: Annotated[
        str | None,
        option("Metric to draw. \\[default: ne; log_loss if a run has no NE]", "ne|log_loss|auc|calibration"),
    ] = None,
) -> None:
    """Draw learning curves of runs.

    \b
    dlrmctl plot runs/first runs/full -o curves.png
    """
    from dlrmctl.scoring.curves import DRAWN, plot_runs

    if metric is not None:
        metric = one_of("--metric", metric, DRAWN)
    plot_runs(run, out, metric=metric)
    say(f"wrote {out}")


def doctor(
    smoke: Annotated[bool, typer.Option("--smoke/--no-smoke", help="Also train two steps on ranks and GPUs.")] = True,
    json: AsJson = False,
) -> None:
    """Check this installation and machine, and print a command to fix each problem."""
    from dlrmctl.doctor.command import doctor as examine

    raise typer.Exit(examine(smoke=smoke, as_json=json))
