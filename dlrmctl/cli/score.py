"""The commands `dlrmctl evaluate`, `calibrate`, `compare` and `predict`."""

from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli import completion
from dlrmctl.cli.options import (
    CHECKPOINTS,
    SPLITS,
    STORE,
    AsJson,
    Calibrated,
    Nproc,
    Run,
    RunOrCompressed,
    number_of_ranks,
    option,
    settings_of_run,
    with_settings,
)
from dlrmctl.console.console import notice, print_json
from dlrmctl.errors import UserError
from dlrmctl.ranks.launch import is_main, run_on_ranks
from dlrmctl.rundir.seeds import finished_runs
from dlrmctl.settings.parse import names_of, one_of, whole_number

METHODS = ("platt", "bias")
_WHAT = "What to score"
Checkpoint = Annotated[str, option("Checkpoint to score.", "|".join(CHECKPOINTS), _WHAT)]
Split = Annotated[str, option("Split to score.", "|".join(SPLITS), _WHAT)]


@with_settings(only=(*STORE, "batch_size", "device", "precision"))
def evaluate(
    run: Run,
    checkpoint: Checkpoint = "best",
    split: Split = "test",
    calibrated: Calibrated = False,
    by: Annotated[
        str | None,
        typer.Option("--slice", help="Also show metrics per id of this sparse feature.", metavar="FEATURE"),
    ] = None,
    by_decile: Annotated[
        bool,
        typer.Option("--deciles", help="Also show calibration by decile of the prediction, ± standard error."),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw calibration and ROC curve to this file, .png or .svg.", metavar="FILE"),
    ] = None,
    nproc: Nproc = "1",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Evaluate a checkpoint of a run on a split of its data. Numbers after ± are standard errors.

    \b
    dlrmctl evaluate runs/first
    dlrmctl evaluate runs/first --split validation --deciles
    """
    split = one_of("--split", split, SPLITS)
    _, settings = settings_of_run(run, flags)
    arguments = {
        "settings": settings.to_dict(),
        "run": str(run),
        "checkpoint": checkpoint,
        "split": split,
        "calibrated": calibrated,
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


@with_settings(only=(*STORE, "batch_size", "device", "precision"))
def calibrate(
    run: RunOrCompressed,
    method: Annotated[
        str, option("Fit slope and bias of the logit (platt), or only the bias.", "|".join(METHODS), _WHAT)
    ] = "platt",
    checkpoint: Annotated[str, option("Checkpoint to calibrate.", "|".join(CHECKPOINTS), _WHAT)] = "best",
    nproc: Nproc = "1",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Calibrate a model: fit its probabilities to the validation split.

    The calibration is kept in the run directory; evaluate, predict and export apply it with --calibrated.

    \b
    dlrmctl calibrate runs/first
    dlrmctl evaluate runs/first --calibrated
    """
    method = one_of("--method", method, METHODS)
    _, settings = settings_of_run(run, flags)
    arguments = {"settings": settings.to_dict(), "run": str(run), "checkpoint": checkpoint, "method": method}
    result = run_on_ranks("dlrmctl.scoring.calibrate:calibrate_on_rank", arguments, number_of_ranks(settings, nproc))
    if not is_main():
        return
    if json:
        print_json(result)
    else:
        from dlrmctl.scoring.calibrate import show_calibration

        show_calibration(result)


@with_settings(only=(*STORE, "batch_size", "device", "precision"))
def compare(
    run_a: Annotated[
        Path,
        typer.Argument(
            help="Run directory, or directory of several seeds.", metavar="RUN_A", autocompletion=completion.runs
        ),
    ],
    run_b: Annotated[
        Path, typer.Argument(help="Run directory to compare with.", metavar="RUN_B", autocompletion=completion.runs)
    ],
    checkpoint: Checkpoint = "best",
    split: Split = "test",
    nproc: Nproc = "1",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Compare two runs on the same rows by paired differences of log loss, NE and AUC.

    For directories written by train --seeds, the variation between seeds is taken into account.

    \b
    dlrmctl compare runs/first runs/full
    """
    split = one_of("--split", split, SPLITS)
    sides = [finished_runs(run) for run in (run_a, run_b)]
    settings = [[settings_of_run(run, flags)[1] for run in side] for side in sides]
    arguments = {
        "settings": [[config.to_dict() for config in side] for side in settings],
        "runs": [[str(run) for run in side] for side in sides],
        "names": [str(run_a), str(run_b)],
        "checkpoint": checkpoint,
        "split": split,
    }
    result = run_on_ranks("dlrmctl.scoring.compare:compare_on_rank", arguments, number_of_ranks(settings[0][0], nproc))
    if not is_main():
        return
    if json:
        print_json(result)
    else:
        from dlrmctl.scoring.compare import show_comparison

        show_comparison(result)


@with_settings(only=(*STORE, "batch_size", "device", "precision"))
def predict(
    run: RunOrCompressed,
    sources: Annotated[
        list[str], typer.Argument(help="Files of rows, in the format of the training data.", metavar="SRC...")
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", help="Write the predictions to this file or URL, .parquet or .csv.", metavar="FILE"
        ),
    ],
    labelled: Annotated[
        bool, typer.Option("--labelled/--unlabelled", help="Read a label from each row and report metrics.")
    ] = False,
    schema: Annotated[
        Path | None,
        typer.Option(
            "--schema",
            help="Schema of the files. Default: that of the training data.",
            metavar="FILE.toml",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option("--keep", help="Copy these columns to the output.", metavar="COLUMN,..."),
    ] = None,
    max_bad_rows: Annotated[
        str | None,
        typer.Option(help="Stop if more rows than this are bad. \\[default: 1 % and 100]", metavar="N"),
    ] = None,
    checkpoint: Checkpoint = "best",
    calibrated: Calibrated = False,
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Predict probabilities for new rows.

    \b
    dlrmctl predict runs/first new.txt -o predictions.parquet
    dlrmctl predict runs/first test.csv --labelled --keep user -o predictions.csv
    """
    _refuse_swapped(run, sources)
    kept = [] if keep is None else names_of("--keep", keep)
    most = None if max_bad_rows is None else whole_number("--max-bad-rows", max_bad_rows, at_least=0)
    directory, settings = settings_of_run(run, flags)
    notice("loading PyTorch")
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
            calibrated=calibrated,
        )
        if ranks.is_main:
            print_json(result) if json else show_prediction(result)


def _refuse_swapped(run: Path, sources: list[str]) -> None:
    """Refuses swapped arguments.

    Raises:
        UserError: if the rows come before the run.
    """
    later = next((source for source in sources if (Path(source) / "run.toml").is_file()), None)
    if later is not None and not run.is_dir():
        rows = " ".join(str(run) if source == later else source for source in sources)
        raise UserError(f"{run} is not a run directory, but {later} is", f"dlrmctl predict {later} {rows} -o FILE")
