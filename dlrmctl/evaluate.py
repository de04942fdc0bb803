"""`dlrmctl evaluate`: a checkpoint on a split."""

from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from data.reader import Reader
from dlrmctl.build import Model, build_model
from dlrmctl.checkpoint import Checkpoints, load, read_state
from dlrmctl.config import Config
from dlrmctl.datasets import open_reader, open_source
from dlrmctl.errors import UserError
from dlrmctl.metrics import Metrics, StreamingMetrics
from dlrmctl.ranks import Ranks
from dlrmctl.results import with_optimum
from dlrmctl.resume import same_shape
from dlrmctl.rundir import RunDirectory


def evaluate(model: Model, reader: Reader, ranks: Ranks) -> Metrics:
    """The metrics of the model on everything the reader gives, over all ranks; the same on each."""
    metrics = StreamingMetrics(ranks.device, ranks.world_size)
    inference = model.inference
    with torch.no_grad(), closing(reader.batches(epoch=0)) as batches:  # type: ignore[type-var]
        for batch in batches:
            on_device = batch.to(ranks.device, non_blocking=True)
            logits_B = inference(on_device.dense_BI, on_device.kjt())
            metrics.update(logits_B[: batch.num_valid], on_device.labels_B[: batch.num_valid])
    return metrics.compute(ranks.group)


def evaluate_run(config: Config, run: RunDirectory, ranks: Ranks, *, checkpoint: str, split: str) -> dict[str, Any]:
    """Scores a checkpoint of a run on a split of the data that the settings name.

    Args:
        checkpoint: "best", "last" or "step-N".

    Returns:
        {"checkpoint": ..., split: metrics}, the same on every rank.

    Raises:
        UserError, DataError: if checkpoint or data are not there or do not fit.
    """
    set_precision(config.train.precision)
    path = ranks.broadcast(_find(Checkpoints(run.checkpoints, ranks), run, checkpoint))
    state = read_state(path)
    same_shape(config, state["settings"], path, sections=("model", "embeddings"))
    source = open_source(config.data)
    if state["vocabulary"] != source.vocabulary_fingerprint():
        raise UserError(
            f"{path}: was trained with other ids than this data has ({source.vocabulary_fingerprint()})",
            "prepare the data with the vocabulary of the training data, or name that data with --data",
        )
    reader = open_reader(config, source, split, ranks, training=False)
    model = build_model(config, source.schema, ranks, batch_size=reader.local_batch_size)
    load(path, model.tensors(), ranks)
    metrics = evaluate(model, reader, ranks).to_dict()
    return {"run": str(run.path), "checkpoint": path.name, "split": split, split: with_optimum(metrics, source, split)}


def set_precision(precision: str) -> None:
    """How float32 products are computed in this process; see the setting of that name."""
    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")


def _find(checkpoints: Checkpoints, run: RunDirectory, wanted: str) -> Path:
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
