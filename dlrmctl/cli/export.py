"""The command `dlrmctl export`."""

from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli.options import (
    CHECKPOINTS,
    STORE,
    AsJson,
    Calibrated,
    RunOrCompressed,
    option,
    settings_of_run,
    with_settings,
)
from dlrmctl.console.console import notice, print_json
from dlrmctl.errors import UserError
from dlrmctl.settings.parse import one_of, share, whole_number

PRECISIONS = ("fp32", "int8")
FORMATS = ("plain", "aoti")


@with_settings(only=(*STORE, "batch_size"))
def export(
    run: RunOrCompressed,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Write the model to this file: .dlrm or .pt2.", metavar="FILE")
    ],
    precision: Annotated[str | None, option("Precision of the tables. \\[default: fp32]", "|".join(PRECISIONS))] = None,
    checkpoint: Annotated[str | None, option("Checkpoint to export. \\[default: best]", "|".join(CHECKPOINTS))] = None,
    calibrated: Calibrated = False,
    check_rows: Annotated[
        str, typer.Option(help="Check the exported model on at most this many validation rows.", metavar="N")
    ] = "65536",
    max_ne_increase: Annotated[
        str | None,
        typer.Option(help="With int8, fail if NE increases by more than this. \\[default: 0.1%]", metavar="0.1%"),
    ] = None,
    format: Annotated[
        str | None,
        option("aoti adds native code for this machine to a bundle. \\[default: plain]", "|".join(FORMATS)),
    ] = None,
    vectors: Annotated[
        str | None,
        option("Write the vectors of this feature's values instead, to a .parquet or .faiss file.", "FEATURE"),
    ] = None,
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Export a trained model for other programs.

    \b
    dlrmctl export runs/first -o model.dlrm
    dlrmctl export runs/first -o model.pt2 --precision int8

    .dlrm: a bundle that scores raw rows, with `dlrmctl serve` or dlrmctl.serving.Scorer.

    --format aoti: with native code of AOTInductor, which is faster and needs a C++ compiler here.

    .pt2: the graph alone, from ids to probabilities, for torch.export.load without dlrmctl.

    --vectors: columns value, row and vector in .parquet; in .faiss an index of inner products, whose ids are the rows.
    """
    if precision is not None:
        precision = one_of("--precision", precision, PRECISIONS)
    if format is not None:
        format = one_of("--format", format, FORMATS)
    rows = whole_number("--check-rows", check_rows, at_least=1)
    rise = share("--max-ne-increase", max_ne_increase or "0.1%")
    if max_ne_increase is not None and precision != "int8":
        raise UserError(f"--max-ne-increase {max_ne_increase} needs --precision int8", "omit it")
    if vectors is not None:
        given = [
            ("--precision", precision),
            ("--calibrated", calibrated or None),
            ("--max-ne-increase", max_ne_increase),
            ("--format", format),
        ]
        for flag, value in given:
            if value is not None:
                raise UserError(f"--vectors and {flag} contradict: vectors are written as the run has them")
    directory, settings = settings_of_run(run, flags)
    notice("loading PyTorch")
    if vectors is not None:
        from dlrmctl.export.vectors import export_vectors, show_vectors
        from dlrmctl.ranks.group import process_group

        with process_group("cpu") as ranks:
            found = export_vectors(
                settings, directory, ranks, checkpoint=checkpoint or "best", feature=vectors, out=out
            )
            print_json(found) if json else show_vectors(found)
        return
    from dlrmctl.export.command import Wanted, show_export
    from dlrmctl.export.command import export as write
    from dlrmctl.ranks.group import process_group

    with process_group("cpu") as ranks:
        wanted = Wanted(out, checkpoint, precision, rows, rise, calibrated, compiled=format == "aoti")
        result = write(settings, directory, ranks, wanted)
        print_json(result) if json else show_export(result)
