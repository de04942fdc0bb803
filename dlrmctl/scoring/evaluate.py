"""Evaluates a checkpoint on a split (`dlrmctl evaluate`)."""

from pathlib import Path
from typing import Any

from dlrmctl.console.console import print_table
from dlrmctl.console.pictures import check_picture
from dlrmctl.datasets.open import open_source
from dlrmctl.ranks.group import Ranks, process_group
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import open_run
from dlrmctl.scoring.calibration import decile_rows, deciles, draw_calibration_and_roc
from dlrmctl.scoring.metrics import StreamingMetrics, with_optimum
from dlrmctl.scoring.results import table_of
from dlrmctl.scoring.scores import collect_scores, evaluate, scoring_display, sliced_column
from dlrmctl.scoring.slices import slice_rows, slices
from dlrmctl.settings.config import Config, resolve


def evaluate_on_rank(settings: dict[str, Any], run: str, *, plot: str | None, **options: Any) -> dict[str, Any]:
    """Joins the process group and evaluates.

    Args:
        settings: see `Config.to_dict`.
        options: further arguments of `evaluate_run`.
    """
    config, picture = resolve(settings, {}, file_name="settings"), None if plot is None else Path(plot)
    with process_group(config.train.device) as ranks:
        return evaluate_run(config, RunDirectory(Path(run), writes=False), ranks, plot=picture, **options)


def evaluate_run(
    config: Config,
    run: RunDirectory,
    ranks: Ranks,
    *,
    checkpoint: str,
    split: str,
    feature: str | None = None,
    by_decile: bool = False,
    plot: Path | None = None,
    calibrated: bool = False,
) -> dict[str, Any]:
    """Scores a checkpoint of a run on a split of the data that the settings name.

    Args:
        checkpoint: "best", "last" or "step-N".
        feature: a sparse feature; adds metrics for its most frequent ids.
        by_decile: adds calibration by decile.
        plot: file for a picture of calibration and ROC.
        calibrated: whether to apply the calibration of the checkpoint.

    Returns:
        {"checkpoint": ..., split: metrics}, and "deciles" and "slices" if requested; the same on every rank.

    Raises:
        UserError, DataError: if the checkpoint or the data is missing or does not fit.
    """
    if plot is not None:
        check_picture(plot)
    if feature is not None:  # before the checkpoint is loaded
        sliced_column(feature, open_source(config.data, verify=()).schema)
    opened = open_run(config, run, ranks, checkpoint=checkpoint, split=split, calibrated=calibrated)
    inference, reader = opened.model, opened.reader
    result: dict[str, Any] = {
        "run": str(run.path),
        "checkpoint": opened.checkpoint.name,
        "calibrated": calibrated,
        "split": split,
    }
    if feature is None and plot is None and not by_decile:
        with scoring_display(split, ranks) as tell:
            metrics = evaluate(inference, reader, ranks, tell=tell)
        return result | {split: with_optimum(metrics.to_dict(), opened.source, split)}
    streaming = StreamingMetrics.of(opened.source.schema, ranks.device, ranks.world_size)
    with scoring_display(split, ranks) as tell:
        scores = collect_scores(inference, reader, ranks, feature=feature, metrics=streaming, tell=tell)
    result[split] = with_optimum(streaming.compute(ranks.group).to_dict(), opened.source, split)

    def views() -> dict[str, Any]:
        assert scores is not None
        found: dict[str, Any] = {}
        if by_decile:
            found["deciles"] = deciles(scores.logits_N, scores.labels_N, scores.weights_N)
        if feature is not None:
            found |= {"slices": slices(scores, feature, opened.source), "feature": feature}
        if plot is not None:
            whose = f"{result['checkpoint']} of {run.path.name}{', calibrated' if calibrated else ''}"
            title = f"{whose}, {split} split, {len(scores.labels_N):,} examples"
            draw_calibration_and_roc(scores.logits_N, scores.labels_N, title, plot, scores.weights_N)
        return found

    return result | ranks.from_main(views)


def show_evaluation(result: dict[str, Any]) -> None:
    """Prints the result of `evaluate_run` as tables."""
    split = result["split"]
    alone = result["checkpoint"] == Path(result["run"]).name  # a compressed model has no checkpoints
    whose = result["run"] if alone else f"{result['checkpoint']} of {result['run']}"
    print_table(f"{whose}{', calibrated' if result['calibrated'] else ''}", *table_of({split: result[split]}))
    if "deciles" in result:
        print_table(
            "calibration by decile of the prediction; ± is the standard error of observed",
            *decile_rows(result["deciles"]),
        )
    if "slices" in result:
        print_table(f"by {result['feature']}", *slice_rows(result["slices"]))
