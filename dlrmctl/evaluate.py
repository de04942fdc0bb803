"""`dlrmctl evaluate`: a checkpoint on a split."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.reader import Reader
from data.source import Source
from dlrmctl.build import build_model
from dlrmctl.calibration import decile_rows, deciles, draw_calibration_and_roc
from dlrmctl.checkpoint import Checkpoints, load, read_state
from dlrmctl.compress.model import is_compressed, load_model, open_artifact
from dlrmctl.config import Config
from dlrmctl.console import print_table
from dlrmctl.datasets import logit_offset, open_reader, open_source
from dlrmctl.errors import UserError
from dlrmctl.metrics import Metrics, StreamingMetrics
from dlrmctl.plot import check_picture
from dlrmctl.ranks import Ranks
from dlrmctl.results import table_of, with_optimum
from dlrmctl.resume import same_shape
from dlrmctl.rundir import RunDirectory
from dlrmctl.scores import Inference, collect_scores
from dlrmctl.slices import slice_rows, slices
from models import DLRM


@dataclass(frozen=True)
class Opened:
    """A checkpoint of a run, loaded and ready to score a split."""

    checkpoint: Path
    source: Source
    reader: Reader
    embeddings: nn.Module
    network: nn.Module

    @property
    def inference(self) -> DLRM:
        """Gives the logits."""
        return DLRM(self.embeddings, self.network)


def evaluate(inference: Inference, reader: Reader, ranks: Ranks) -> Metrics:
    """The metrics of a model on everything the reader gives, over all ranks; the same on each."""
    metrics = StreamingMetrics(ranks.device, ranks.world_size)
    offset = logit_offset(reader.source, reader.split)
    with torch.no_grad(), closing(reader.batches(epoch=0)) as batches:  # type: ignore[type-var]
        for batch in batches:
            on_device = batch.to(ranks.device, non_blocking=True)
            logits_B = inference(on_device.dense_BI, on_device.kjt()) + offset
            metrics.update(logits_B[: batch.num_valid], on_device.labels_B[: batch.num_valid])
    return metrics.compute(ranks.group)


def open_run(config: Config, run: RunDirectory, ranks: Ranks, *, checkpoint: str, split: str) -> Opened:
    """Loads a checkpoint of a run, and the split of the data that the settings name.

    Args:
        run: of a run, or the directory of its compressed model.
        checkpoint: "best", "last" or "step-N"; a compressed model has but one.

    Raises:
        UserError, DataError: if checkpoint or data are not there or do not fit.
    """
    set_precision(config.train.precision)
    source = open_source(config.data)
    reader = open_reader(config, source, split, ranks, training=False)
    if is_compressed(run.path):
        artifact = open_artifact(run.path)
        same_ids(run.path, artifact.source.get("vocabulary"), source)
        small = load_model(run.path, artifact, config, source.schema, ranks.device)
        return Opened(run.path, source, reader, small.embeddings, small.dense)
    path = ranks.broadcast(find_checkpoint(Checkpoints(run.checkpoints, ranks), run, checkpoint))
    state = read_state(path)
    same_shape(config, state["settings"], path, sections=("model", "embeddings"))
    same_ids(path, state["vocabulary"], source)
    model = build_model(config, source.schema, ranks, batch_size=reader.local_batch_size)
    load(path, model.tensors(), ranks)
    return Opened(path, source, reader, model.embeddings, model.network)


def same_ids(path: Path, vocabulary: str | None, source: Source) -> None:
    """Raises:
    UserError: if ids of the data mean other values than those a model was trained on.
    """
    if vocabulary != source.vocabulary_fingerprint():
        raise UserError(
            f"{path}: was trained with other ids than this data has ({source.vocabulary_fingerprint()})",
            "prepare the data with the vocabulary of the training data, or name that data with --data",
        )


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
) -> dict[str, Any]:
    """Scores a checkpoint of a run on a split of the data that the settings name.

    Args:
        checkpoint: "best", "last" or "step-N".
        feature: a sparse feature; the metrics are given for its most frequent ids too.
        by_decile: calibration is given by decile too.
        plot: a picture of calibration and ROC to write.

    Returns:
        {"checkpoint": ..., split: metrics}, and if asked for "deciles" and "slices"; the same on every rank.

    Raises:
        UserError, DataError: if checkpoint or data are not there or do not fit.
    """
    if plot is not None:
        check_picture(plot)
    opened = open_run(config, run, ranks, checkpoint=checkpoint, split=split)
    inference, reader = opened.inference, opened.reader
    result: dict[str, Any] = {"run": str(run.path), "checkpoint": opened.checkpoint.name, "split": split}
    if feature is None and plot is None and not by_decile:
        metrics = evaluate(inference, reader, ranks)
        return result | {split: with_optimum(metrics.to_dict(), opened.source, split)}
    streaming = StreamingMetrics(ranks.device, ranks.world_size)
    scores = collect_scores(inference, reader, ranks, feature=feature, metrics=streaming)
    result[split] = with_optimum(streaming.compute(ranks.group).to_dict(), opened.source, split)
    if by_decile:
        result["deciles"] = deciles(scores.logits_N, scores.labels_N)
    if feature is not None:
        result["slices"] = slices(scores, feature, opened.source)
        result["feature"] = feature
    if plot is not None and ranks.is_main:
        draw_calibration_and_roc(scores.logits_N, scores.labels_N, plot)
    return result


def show_evaluation(result: dict[str, Any]) -> None:
    """The result of `evaluate_run` as tables on standard output."""
    split = result["split"]
    alone = result["checkpoint"] == Path(result["run"]).name  # a compressed model has no checkpoints
    print_table(
        result["run"] if alone else f"{result['checkpoint']} of {result['run']}", *table_of({split: result[split]})
    )
    if "deciles" in result:
        print_table("calibration by decile of the prediction", *decile_rows(result["deciles"]))
    if "slices" in result:
        print_table(f"by {result['feature']}", *slice_rows(result["slices"]))


def set_precision(precision: str) -> None:
    """How float32 products are computed in this process; see the setting of that name."""
    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")


def find_checkpoint(checkpoints: Checkpoints, run: RunDirectory, wanted: str) -> Path:
    """The checkpoint of a run that is called "best", "last" or "step-N".

    Raises:
        UserError: if there is none.
    """
    newest = checkpoints.newest()
    if newest is None:
        raise UserError(f"{run.path}: has no checkpoint yet")
    if wanted == "last":
        return newest
    name = f"step-{read_state(newest)['progress']['best_step']}" if wanted == "best" else wanted
    there = {path.name: path for path in checkpoints.complete()}
    if name not in there:
        raise UserError(
            f"{run.path}: has no checkpoint {wanted!r}", f"there are: best, last, {', '.join(sorted(there))}"
        )
    return there[name]
