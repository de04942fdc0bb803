"""Compares what a bundle makes of raw rows with what `dlrmctl predict` makes of them.

Dimensions: N rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.files import io_errors
from dlrmctl.data.formats.arrays import NpyInput
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.raw import Input
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.new_rows import cut_batches, read_new_rows
from dlrmctl.errors import UserError
from dlrmctl.export.agreement import ROUNDING, Inputs, inputs_of, joined
from dlrmctl.scoring.scores import Inference

LOGIT_ROUNDING = 1e-6  # of a logit up to 1, and relative to a larger one
_COMPILED_ROUNDING = 1e-5  # a compiler adds in another order


@dataclass(frozen=True)
class RawRows:
    """N raw rows by column, their inputs of the model, and the checkpoint's logits, float32."""

    rows: list[dict[str, Any]]
    inputs: Inputs
    logits_N: np.ndarray


@torch.no_grad()
def score_raw(
    inference: Inference, features: FeatureSpace, frame: pl.DataFrame, place: Path, batch_size: int
) -> RawRows:
    """Returns raw rows as `dlrmctl predict` scores them.

    Args:
        features: of the run.
        frame: the rows by column, with the label.
        place: a directory for files.
        batch_size: rows that are scored together.
    """
    input = raw_input(features, frame, place)
    pieces = list(read_new_rows(input, features.encoders(), features.schema))
    lines_N = np.concatenate([piece.lines_N for piece in pieces])
    inputs, logits = [], []
    for batch in cut_batches((piece.block for piece in pieces), features.schema.keys, batch_size):
        logits.append((inference(batch.dense_BI, batch) + features.logit_offset())[: batch.num_valid].float())
        inputs.append(inputs_of(batch, features.schema).cut(0, batch.num_valid))
    rows = frame[lines_N - 1].drop(input.label).to_dicts()
    return RawRows(rows, joined(inputs), torch.cat(logits).numpy())


def raw_input(features: FeatureSpace, frame: pl.DataFrame, place: Path) -> Input:
    """Writes raw rows to files in the format of the training data, and opens them."""
    with io_errors(place, "write"):
        if features.input == "criteo":
            path = place / "rows.txt"
            frame.write_csv(path, include_header=False, separator="\t", quote_style="never", null_value="")
            return CriteoInput([path])
        if features.input == "npy":
            return _array_input(features, frame, place)
        path = place / "rows.arrow"
        frame.write_ipc(path)
        assert features.table_schema is not None
        # The sample has what examples are made of, not the identities of rows.
        return TableInput(replace(features.table_schema, id=()), [path])


def _array_input(features: FeatureSpace, frame: pl.DataFrame, place: Path) -> Input:
    schema, prefix = features.schema, str(place / "rows")
    np.save(f"{prefix}_labels.npy", frame[schema.label].to_numpy())
    np.save(f"{prefix}_dense.npy", np.ascontiguousarray(frame.select(schema.dense).to_numpy(), np.float32))
    ids = [
        np.stack(frame[name].to_list()) if max_ids > 1 else frame[name].to_numpy()[:, None]
        for name, max_ids in ((feature.name, feature.max_ids) for feature in schema.sparse)
    ]
    as_rows = any(column.scheme == "rows" for column in features.columns)
    if schema.one_hot:
        np.save(f"{prefix}_sparse.npy", np.ascontiguousarray(np.concatenate(ids, 1)))
        return NpyInput([f"{prefix}_sparse.npy"], as_rows=as_rows)
    hot: dict[str, Any] = {str(f): ids_NK for f, ids_NK in enumerate(ids)}
    np.savez(f"{prefix}_sparse_multi_hot.npz", **hot)
    return NpyInput([f"{prefix}_sparse_multi_hot.npz"], as_rows=as_rows)


def raw_agreement(rows: RawRows, logits_N: np.ndarray, served_N: np.ndarray) -> dict[str, Any]:
    """Compares logits of raw rows.

    Args:
        rows: with the checkpoint's logits.
        logits_N: of the bundle.
        served_N: probabilities that the exported model gives the same rows, read as `predict` reads them.

    Returns:
        "raw_rows"; "raw_largest_difference", of two logits of bundle and checkpoint, relative to those above 1 and to
        weights of a list whose sum is above 1, since the terms of its vector are that many times larger;
        "raw_largest_misreading", of two probabilities of bundle and exported model, which only rounding explains.
    """
    own_N = rows.logits_N.astype(np.float64)
    apart_N = np.abs(logits_N - own_N) / np.maximum(np.maximum(np.abs(own_N), 1), rows.inputs.largest_weights())
    read_N = np.abs(torch.from_numpy(logits_N).sigmoid().numpy() - served_N)
    return {
        "raw_rows": len(logits_N),
        "raw_largest_difference": float(apart_N.max()),
        "raw_largest_misreading": float(read_N.max()),
    }


def refuse_raw_disagreement(
    found: Mapping[str, Any], checkpoint: str, precision: str, *, compiled: bool = False
) -> None:
    """Checks that a bundle reads raw rows as `predict` does.

    Raises:
        UserError: if the scores differ by more than rounding; those of int8 tables may differ from the checkpoint's.
    """
    if not found["raw_largest_misreading"] <= ROUNDING:  # also refuses NaN
        raise UserError(
            f"the bundle reads raw rows otherwise than dlrmctl predict: a probability differs by "
            f"{found['raw_largest_misreading']:.2g}"
        )
    rounding = _COMPILED_ROUNDING if compiled else LOGIT_ROUNDING
    if precision != "int8" and not found["raw_largest_difference"] <= rounding:
        raise UserError(
            f"raw rows get other logits from the bundle than from {checkpoint}: they differ by "
            f"{found['raw_largest_difference']:.2g}, rounding explains {rounding:.2g}"
        )
