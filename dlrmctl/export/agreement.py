"""Compares the scores of an exported model with those of its checkpoint.

Both score a sample: rows of the validation split in the form that a served model takes.
Dimensions: N rows, I dense features, F features with one id each, L ids of the longest list.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrmctl.data.batch import Batch
from dlrmctl.data.reader import Reader
from dlrmctl.data.schema import Schema
from dlrmctl.errors import UserError
from dlrmctl.export.graph import PADDING
from dlrmctl.scoring.paired import compare_scores, relative_rise
from dlrmctl.scoring.scores import Inference

# A thousand roundings of float32 in one direction, on a logit; the sigmoid's slope is at most 1/4.
ROUNDING = 1000 * 2**-24 / 4
_LEAST = 2.0**-26  # of a probability, so that its logit is finite


@dataclass(frozen=True)
class Inputs:
    """The arguments of a call of `graph.ServedModel`."""

    dense: Tensor
    ids: Tensor
    lists: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def arguments(self) -> tuple[Any, ...]:
        """Returns the tensors in the order of the call; a model without lists or weights is called without them."""
        return (self.dense, self.ids, *(given for given in (self.lists, self.weights) if given))

    def largest_weights(self) -> np.ndarray:
        """Returns the largest sum of the absolute weights of a list in each row, float32 [N]; 0 without weights."""
        sums = [weights_NL.abs().sum(1) for weights_NL in self.weights.values()]
        return (torch.stack(sums).amax(0) if sums else torch.zeros(len(self.dense))).numpy()

    def cut(self, start: int, stop: int) -> "Inputs":
        """Returns rows [start, stop)."""
        part = slice(start, stop)
        lists, weights = ({name: each[part] for name, each in given.items()} for given in (self.lists, self.weights))
        return Inputs(self.dense[part], self.ids[part], lists, weights)


@dataclass(frozen=True)
class Sample:
    """N rows with the checkpoint's logits, float32, and their labels, bool; `whole` if they are all of a split."""

    inputs: Inputs
    logits_N: np.ndarray
    labels_N: np.ndarray
    whole: bool
    weights_N: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels_N)


def agreement(sample: Sample, probabilities_N: np.ndarray) -> dict[str, Any]:
    """Compares probabilities with the checkpoint's, on the same rows.

    Returns:
        "rows"; "largest_difference" of two probabilities; "ne_checkpoint" and "ne_export", None if all labels are
        equal; "ne_rise", relative, with its standard error "ne_rise_se": see `relative_rise`. If all checked rows have
        one label, the rise is known only if the whole split has it.
    """
    own_N = torch.from_numpy(sample.logits_N).sigmoid().numpy()
    logits_N = torch.from_numpy(probabilities_N).double().logit(eps=_LEAST).numpy()
    compared = compare_scores(sample.logits_N, logits_N, sample.labels_N, sample.weights_N)
    ne = compared.get("ne")
    rise, rise_se = relative_rise(compared) if ne or sample.whole else (None, None)
    return {
        "rows": len(sample),
        "largest_difference": float(np.abs(probabilities_N - own_N).max()),
        "ne_checkpoint": ne.a if ne else None,
        "ne_export": ne.b if ne else None,
        "ne_rise": rise,
        "ne_rise_se": rise_se,
    }


def refuse_disagreement(found: Mapping[str, Any], checkpoint: str, precision: str, max_ne_rise: float) -> None:
    """Checks that an exported model agrees with its checkpoint.

    Args:
        found: by `agreement`.
        max_ne_rise: the largest relative increase of NE by "int8"; other precisions may differ only by rounding.

    Raises:
        UserError: if the scores differ by more, or all checked rows have one label and other rows the other.
    """
    difference, rise = found["largest_difference"], found["ne_rise"]
    if precision != "int8" and not difference <= ROUNDING:  # also refuses NaN
        raise UserError(
            f"the exported model differs from {checkpoint} by {difference:.2g} in a probability; rounding explains "
            f"{ROUNDING:.2g}"
        )
    if precision == "int8" and rise is None:
        raise UserError(
            f"the cost of int8 for {checkpoint} is unknown: NE needs both labels among the checked rows",
            f"--check-rows above {found['rows']:,}",
        )
    if precision == "int8" and not rise <= max_ne_rise:
        raise UserError(
            f"int8 raises the NE of {checkpoint} by {100 * rise:.3g} %, more than {100 * max_ne_rise:g} %",
            "--precision fp32, or a larger --max-ne-increase",
        )


@torch.no_grad()
def score_sample(inference: Inference, reader: Reader, rows: int) -> Sample:
    """Returns the first rows of a reader, scored by a model.

    Args:
        reader: a reader of one rank, not shuffled.
        rows: the most rows.
    """
    schema, offset = reader.source.schema, reader.source.features.logit_offset(reader.split)
    inputs: list[Inputs] = []
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    weights: list[Tensor] = []
    left = min(rows, reader.num_examples)
    with closing(reader.batches(epoch=0)) as batches:  # type: ignore[type-var]
        for batch in batches:
            taken = min(batch.num_valid, left)
            logits.append((inference(batch.dense_BI, batch) + offset)[:taken].float())
            labels.append(batch.labels_B[:taken])
            weights += [] if batch.weights_B is None else [batch.weights_B[:taken]]
            inputs.append(inputs_of(batch, schema).cut(0, taken))
            left -= taken
            if not left:
                break
    labels_N = torch.cat(labels).numpy() > 0.5
    weights_N = torch.cat(weights).numpy() if weights else None
    whole = len(labels_N) == reader.num_examples
    return Sample(joined(inputs), torch.cat(logits).numpy(), labels_N, whole, weights_N)


def inputs_of(batch: Batch, schema: Schema) -> Inputs:
    """Converts a batch to the form of the served model."""
    size = len(batch)
    if batch.lengths_FB is None:
        return Inputs(batch.dense_BI, batch.ids.view(-1, size).T.contiguous())
    pieces = batch.ids.split(batch.lengths_FB.sum(1).tolist())
    ones = [ids for ids, feature in zip(pieces, schema.sparse, strict=True) if feature.max_ids == 1]
    lists = {
        feature.name: _padded(ids, lengths_B, PADDING)
        for feature, ids, lengths_B in zip(schema.sparse, pieces, batch.lengths_FB, strict=True)
        if feature.max_ids > 1
    }
    return Inputs(
        batch.dense_BI,
        torch.stack(ones, 1) if ones else batch.ids.new_empty(size, 0),
        lists,
        _given_weights(batch, schema, [len(ids) for ids in pieces]),
    )


def _given_weights(batch: Batch, schema: Schema, counts: list[int]) -> dict[str, Tensor]:
    """Returns the weights of lists as the served model takes them: not divided where lists are averaged."""
    if batch.id_weights is None:
        return {}
    assert batch.lengths_FB is not None
    found = {}
    for feature, weights, lengths_B in zip(
        schema.sparse, batch.id_weights.split(counts), batch.lengths_FB, strict=True
    ):
        if feature.weights is not None:
            if feature.pooling == "mean":  # to one rounding of what was given
                weights = weights * lengths_B.repeat_interleave(lengths_B)
            found[feature.name] = _padded(weights, lengths_B, 0.0)
    return found


def _padded(values: Tensor, lengths_B: Tensor, padding: float) -> Tensor:
    """Returns [B, L]: the padded list of each example."""
    there_BL = torch.arange(max(int(lengths_B.max()), 1)) < lengths_B[:, None]
    return torch.full(there_BL.shape, padding, dtype=values.dtype).masked_scatter_(there_BL, values)


def joined(parts: list[Inputs]) -> Inputs:
    """Returns the rows of several inputs, one after another."""
    return Inputs(
        torch.cat([part.dense for part in parts]),
        torch.cat([part.ids for part in parts]),
        _joined_lists([part.lists for part in parts], PADDING),
        _joined_lists([part.weights for part in parts], 0.0),
    )


def _joined_lists(parts: Sequence[Mapping[str, Tensor]], padding: float) -> dict[str, Tensor]:
    joined = {}
    for name in parts[0]:
        longest = max(part[name].shape[1] for part in parts)
        joined[name] = torch.cat(
            [torch.nn.functional.pad(part[name], (0, longest - part[name].shape[1]), value=padding) for part in parts]
        )
    return joined
