"""`dlrmctl evaluate`: a checkpoint on a split."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from data.errors import DataError
from data.reader import Reader
from data.source import Source
from dlrmctl.build import Model, build_model
from dlrmctl.checkpoint import Checkpoints, load, read_state
from dlrmctl.config import Config
from dlrmctl.console import number_text
from dlrmctl.datasets import open_source, optimum
from dlrmctl.errors import UserError
from dlrmctl.metrics import Metrics, StreamingMetrics
from dlrmctl.ranks import Ranks
from dlrmctl.rundir import RunDirectory, same_shape


def evaluate(model: Model, reader: Reader, ranks: Ranks) -> Metrics:
    """The metrics of the model on everything the reader gives, over all ranks; the same on each."""
    metrics = StreamingMetrics(ranks.device)
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
        UserError: if checkpoint or data are not there or do not fit.
    """
    set_precision(config.train.precision)
    path = ranks.broadcast(_find(Checkpoints(run.checkpoints, ranks), run, checkpoint))
    state = read_state(path)
    same_shape(config, state["settings"], path)
    source = open_source(config.data)
    reader = _reader(config, source, split, ranks)
    model = build_model(config, source.schema, ranks, batch_size=reader.local_batch_size)
    load(path, model.tensors(), ranks)
    metrics = evaluate(model, reader, ranks).to_dict()
    return {"run": str(run.path), "checkpoint": path.name, "split": split, split: with_optimum(metrics, source, split)}


def with_optimum(metrics: dict[str, Any], source: Source, split: str) -> dict[str, Any]:
    """The metrics beside what the best possible model scores, where that is known.

    `gap_closed` is 0 for a constant prediction and 1 for the best one.
    """
    bayes = optimum(source, split)
    if bayes is None or metrics["ne"] is None:
        return metrics
    return metrics | {
        "bayes_log_loss": bayes.log_loss,
        "bayes_ne": bayes.ne,
        "bayes_auc": bayes.auc,
        "gap_closed": (1 - metrics["ne"]) / (1 - bayes.ne),
    }


def table_of(splits: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for people: a metric per row, standard errors beside their values."""
    lines = [
        ("log loss", "log_loss", "log_loss_se"),
        ("NE", "ne", "ne_se"),
        ("AUC", "auc", "auc_se"),
        ("calibration", "calibration", None),
        ("accuracy", "accuracy", None),
        ("Bayes NE", "bayes_ne", None),
        ("gap closed", "gap_closed", None),
    ]
    rows = [["examples", *(f"{m['examples']:,}" for m in splits.values())]]
    for title, name, error in lines:
        if any(name in m for m in splits.values()):
            rows.append([title, *(_with_error(m.get(name), m.get(error) if error else None) for m in splits.values())])
    return ["", *splits], rows


def set_precision(precision: str) -> None:
    """How float32 products are computed in this process; see the setting of that name."""
    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")


def _with_error(value: float | None, error: float | None) -> str:
    return number_text(value) if value is None or error is None else f"{value:.4f} ±{error:.4f}"


def _reader(config: Config, source: Source, split: str, ranks: Ranks) -> Reader:
    try:
        return Reader(
            source,
            split,
            batch_size=config.train.batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            shuffle=False,
            drop_last=False,
        )
    except DataError as problem:
        raise UserError(problem.message, problem.hint) from None


def _find(checkpoints: Checkpoints, run: RunDirectory, wanted: str) -> Path:
    if wanted == "best":
        path = checkpoints.best()
    elif wanted == "last":
        path = checkpoints.newest()
    else:
        path = run.checkpoints / wanted
        if not path.is_dir():
            there = ", ".join(sorted(p.name for p in checkpoints.complete())) or "none"
            raise UserError(f"{run.path}: has no checkpoint {wanted!r}", f"there are: best, last, {there}")
    if path is None:
        raise UserError(f"{run.path}: has no {wanted} checkpoint yet")
    return path
