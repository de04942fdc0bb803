"""The commands that score: `dlrmctl evaluate`, `compare` and `predict`."""

from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli.options import LAUNCH_PANEL, AsJson, Nproc, number_of_ranks, settings_of_run, with_settings
from dlrmctl.console.console import print_json
from dlrmctl.ranks.launch import is_main, run_on_ranks
from dlrmctl.settings.parse import names_of, one_of, whole_number

SPLITS = ("train", "validation", "test")
Checkpoint = Annotated[str, typer.Option(help="best, last or step-N.", rich_help_panel=LAUNCH_PANEL)]
Split = Annotated[str, typer.Option(help="train, validation or test.", rich_help_panel=LAUNCH_PANEL)]


@with_settings(only=("path", "batch_size", "device", "precision"))
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")],
    checkpoint: Checkpoint = "best",
    split: Split = "test",
    by: Annotated[
        str | None, typer.Option("--slice", help="Metrics also for the ids of this feature.", metavar="FEATURE")
    ] = None,
    by_decile: Annotated[bool, typer.Option("--deciles", help="Calibration also by decile.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw calibration and ROC: .png or .svg.", metavar="FILE")
    ] = None,
    nproc: Nproc = "1",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Score a checkpoint of a run on a split of its data."""
    one_of("--split", split, SPLITS)
    _, settings = settings_of_run(run, flags)
    arguments = {
        "settings": settings.to_dict(),
        "run": str(run),
        "checkpoint": checkpoint,
        "split": split,
        "feature": by,
        "by_decile": by_decile,
        "plot": None if plot is None else str(plot),
    }
    result = run_on_ranks("dlrmctl.scoring.evaluate:evaluate_on_rank", arguments, number_of_ranks(settings, nproc))
    if not is_main():
        return
    if json:
        print_json(result)
    else:
        from dlrmctl.scoring.evaluate import show_evaluation

        show_evaluation(result)


@with_settings(only=("path", "batch_size", "device", "precision"))
def compare(
    run_a: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN_A")],
    run_b: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN_B")],
    checkpoint: Checkpoint = "best",
    split: Split = "test",
    nproc: Nproc = "1",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Compare two runs on the same rows: paired differences of log loss, NE and AUC."""
    one_of("--split", split, SPLITS)
    both = [settings_of_run(run, flags)[1] for run in (run_a, run_b)]
    arguments = {
        "settings": [settings.to_dict() for settings in both],
        "runs": [str(run_a), str(run_b)],
        "checkpoint": checkpoint,
        "split": split,
    }
    result = run_on_ranks("dlrmctl.scoring.compare:compare_on_rank", arguments, number_of_ranks(both[0], nproc))
    if not is_main():
        return
    if json:
        print_json(result)
    else:
        from dlrmctl.scoring.compare import show_comparison

        show_comparison(result)


@with_settings(only=("path", "batch_size", "device", "precision"))
def predict(
    run: Annotated[Path, typer.Argument(help="Run directory, or compressed model.", metavar="RUN")],
    sources: Annotated[list[str], typer.Argument(help="Rows as they were given to prepare.", metavar="SRC...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Predictions to write, .parquet or .csv.", metavar="FILE")],
    labelled: Annotated[bool, typer.Option("--labelled/--unlabelled", help="Whether rows have labels.")] = False,
    schema: Annotated[
        Path | None,
        typer.Option("--schema", help="For tables, if other than prepare had it.", metavar="FILE.toml"),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option("--keep", help="Columns of tables to write beside the predictions.", metavar="COLUMN,..."),
    ] = None,
    max_bad_rows: Annotated[
        str | None,
        typer.Option(help="Refuse the rows above this many bad ones. \\[default: 1 % and 100]", metavar="N"),
    ] = None,
    checkpoint: Checkpoint = "best",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Score new rows with the vocabulary of the training data."""
    kept = [] if keep is None else names_of("--keep", keep)
    most = None if max_bad_rows is None else whole_number("--max-bad-rows", max_bad_rows, at_least=0)
    directory, settings = settings_of_run(run, flags)
    from dlrmctl.ranks.group import process_group
    from dlrmctl.scoring.predict import predict as score
    from dlrmctl.scoring.predict import show_prediction

    with process_group(settings.train.device) as ranks:
        result = score(
            settings,
            directory,
            ranks,
            checkpoint=checkpoint,
            sources=sources,
            schema=schema,
            labelled=labelled,
            out=out,
            keep=kept,
            max_bad_rows=most,
            from_data="path" in flags,
        )
        if ranks.is_main:
            print_json(result) if json else show_prediction(result)
