"""Scores of a model on a split."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlrmctl.console.progress import BarDisplay
from dlrmctl.data.batch import Batch
from dlrmctl.data.reader import Reader
from dlrmctl.data.schema import Schema
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks
from dlrmctl.scoring.metrics import Metrics, StreamingMetrics
from dlrmctl.settings.synonyms import nearest

Inference = Callable[..., Tensor]  # (dense_BI, batch) -> logits_B
Tell = Callable[[int, int], None]  # called with the number of scored batches and of all batches


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Scores:
    """Scores of N examples, in order.

    Attributes:
        logits_N: float32.
        labels_N: bool.
        ids_N: int64, of one sparse feature, if requested.
        weights_N: float32, if the data has weights.
        groups_N: int64, if the data has groups.
    """

    logits_N: np.ndarray
    labels_N: np.ndarray
    ids_N: np.ndarray | None = None
    weights_N: np.ndarray | None = None
    groups_N: np.ndarray | None = None

    def metrics(self, chosen_N: np.ndarray | None = None) -> Metrics:
        """The metrics of these examples, or of the chosen ones (bool)."""
        weighted, grouped = self.weights_N is not None, self.groups_N is not None
        metrics = StreamingMetrics(torch.device("cpu"), weighted=weighted, grouped=grouped)
        chosen = slice(None) if chosen_N is None else chosen_N
        metrics.update(
            torch.from_numpy(self.logits_N[chosen]),
            torch.from_numpy(self.labels_N[chosen]).float(),
            None if self.weights_N is None else torch.from_numpy(self.weights_N[chosen]),
            None if self.groups_N is None else torch.from_numpy(self.groups_N[chosen]),
        )
        return metrics.compute()


def evaluate(inference: Inference, reader: Reader, ranks: Ranks, *, tell: Tell = _silent) -> Metrics:
    """The metrics of a model on all batches of a reader, over all ranks; the same on each."""
    metrics = StreamingMetrics.of(reader.source.schema, ranks.device, ranks.world_size)
    for batch, logits_B in scored_batches(inference, reader, ranks, tell=tell):
        metrics.add(batch, logits_B)
    return metrics.compute(ranks.group)


@contextmanager
def scoring_display(what: str, ranks: Ranks) -> Iterator[Tell]:
    """Shows the progress of scoring on rank 0; yields the function to call with it."""
    with BarDisplay(shown=ranks.is_main) as display:
        display.begin(f"scoring {what}")

        def tell(done: int, total: int) -> None:
            display.advance_to(done, total)

        yield tell


def scored_batches(
    inference: Inference, reader: Reader, ranks: Ranks, *, tell: Tell = _silent
) -> Iterator[tuple[Batch, Tensor]]:
    """Yields every batch of this rank, on its device, with its logits [B]."""
    offset = reader.source.features.logit_offset(reader.split)
    with closing(reader.batches(epoch=0)) as batches:  # type: ignore[type-var]
        for number, batch in enumerate(batches, 1):
            on_device = batch.to(ranks.device, non_blocking=True)
            with torch.no_grad():
                logits_B = inference(on_device.dense_BI, on_device) + offset
            yield on_device, logits_B
            tell(number, reader.num_batches)


def collect_scores(
    inference: Inference,
    reader: Reader,
    ranks: Ranks,
    *,
    feature: str | None = None,
    metrics: StreamingMetrics | None = None,
    tell: Tell = _silent,
) -> Scores | None:
    """Scores all batches of a reader, over all ranks; returns the scores on rank 0, and None on the others.

    Args:
        inference: a model.
        reader: of `open_reader`, not for training: each rank has consecutive examples.
        feature: a sparse feature with one id per example, whose ids are returned.
        metrics: updated with every batch.
        tell: called with the progress.

    Raises:
        UserError: if the data has no such feature, or it has lists of ids.
    """
    schema = reader.source.schema
    column = sliced_column(feature, schema) if feature is not None else None
    kinds: dict[str, type] = {"logits_N": np.float32, "labels_N": bool}
    kinds |= {"ids_N": np.int64} if column is not None else {}
    kinds |= {"weights_N": np.float32} if schema.weight is not None else {}
    kinds |= {"groups_N": np.int64} if schema.group is not None else {}
    parts: list[list[np.ndarray]] = [[] for _ in kinds]
    for batch, logits_B in scored_batches(inference, reader, ranks, tell=tell):
        if metrics is not None:
            metrics.add(batch, logits_B)
        columns = [logits_B.float(), batch.labels_B > 0.5]
        columns += [_ids_of(batch, column)] if column is not None else []
        columns += [extra for extra in (batch.weights_B, batch.groups_B) if extra is not None]
        for part, values in zip(parts, columns, strict=True):
            part.append(values[: batch.num_valid].cpu().numpy().copy())  # without the memory of the rest of the batch
    mine: list[np.ndarray] = [
        np.concatenate(part, dtype=kind) for part, kind in zip(parts, kinds.values(), strict=True)
    ]
    lengths = ranks.gather(len(mine[0]))
    whole = [ranks.join_arrays(array, lengths) for array in mine]
    there = {name: array for name, array in zip(kinds, whole, strict=True) if array is not None}
    return Scores(**there) if ranks.is_main else None


def sliced_column(feature: str, schema: Schema) -> int:
    """The number of a sparse feature with one id per example.

    Raises:
        UserError: if the data has no such feature, or it has lists of ids.
    """
    keys = schema.keys
    if feature in schema.dense:
        raise UserError(f"{feature} is a dense feature; slices need a sparse one", f"such as {keys[0]}")
    if feature not in keys:
        close = nearest(feature, keys)
        raise UserError(
            f"the data has no sparse feature {feature!r}",
            f"did you mean {close!r}?" if close else f"the features are {', '.join(keys)}",
        )
    if schema.sparse[keys.index(feature)].max_ids > 1:
        raise UserError(
            f"{feature} has lists of ids: an example would be in several slices", "choose a one-hot feature"
        )
    return keys.index(feature)


def _ids_of(batch: Batch, column: int) -> Tensor:
    """The ids of a one-hot feature."""
    size = len(batch)
    if batch.lengths_FB is None:
        return batch.ids.view(-1, size)[column]
    start = int(batch.lengths_FB[:column].sum())
    return batch.ids[start : start + size]
