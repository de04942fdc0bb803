"""The flags of `dlrmctl export`."""

from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli.options import AsJson, settings_of_run, with_settings
from dlrmctl.console.console import print_json
from dlrmctl.errors import UserError
from dlrmctl.settings.parse import one_of, share, whole_number

PRECISIONS = ("fp32", "int8")


@with_settings(only=("path", "batch_size"))
def export(
    run: Annotated[Path, typer.Argument(help="Run directory, or compressed model.", metavar="RUN")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .pt2.", metavar="FILE")],
    precision: Annotated[
        str | None, typer.Option(help="Of the tables; default fp32.", metavar="|".join(PRECISIONS))
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="best, last or step-N of a run; default best.", metavar="TEXT")
    ] = None,
    check_rows: Annotated[str, typer.Option(help="Validation rows to check on, at most.", metavar="N")] = "65536",
    max_ne_increase: Annotated[
        str | None, typer.Option(help="With int8: refuse a larger rise of NE; default 0.1%.", metavar="0.1%")
    ] = None,
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Write a trained model as one file that plain torch serves: torch.export.load needs nothing of this program."""
    if precision is not None:
        one_of("--precision", precision, PRECISIONS)
    rows = whole_number("--check-rows", check_rows, at_least=1)
    rise = share("--max-ne-increase", max_ne_increase or "0.1%")
    if max_ne_increase is not None and precision != "int8":
        raise UserError(
            f"--max-ne-increase {max_ne_increase} is for --precision int8: nothing else may raise NE", "leave it out"
        )
    directory, settings = settings_of_run(run, flags)
    from dlrmctl.export.command import Wanted, show_export
    from dlrmctl.export.command import export as write
    from dlrmctl.ranks.group import process_group

    with process_group("cpu") as ranks:
        result = write(settings, directory, ranks, Wanted(out, checkpoint, precision, rows, rise))
        print_json(result) if json else show_export(result)
