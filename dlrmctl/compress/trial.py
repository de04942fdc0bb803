"""Evaluates a model with replaced tables on N examples that are kept in memory."""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import nn

from dlrmctl.data.batch import Batch
from dlrmctl.data.reader import Reader
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.models import DLRM
from dlrmctl.scoring.paired import compare_scores, relative_rise

_KEPT_BYTES = 2 << 30  # limit on the data in memory, and so on the number of examples


class Trial:
    """A model's predictions on the examples of a reader, with and without replaced tables.

    Args:
        compose: returns the embedding module of tables by name.
        original: the trained tables.
        network: the dense network.
        wide: the first-order part, which is not replaced; None if the model has none.
        reader: not shuffled.
    """

    def __init__(
        self,
        compose: Callable[[Mapping[str, Compressed]], nn.Module],
        original: Mapping[str, Compressed],
        network: nn.Module,
        wide: nn.Module | None,
        reader: Reader,
    ) -> None:
        self._compose, self._original, self._network, self._wide = compose, original, network, wide
        self._offset = reader.source.features.logit_offset(reader.split)
        self._batches: list[Batch] = []
        used = 0
        with closing(reader.batches(epoch=0)) as batches:  # type: ignore[type-var]
            for batch in batches:
                self._batches.append(batch)
                used += batch.ids.nbytes + batch.dense_BI.nbytes
                if used > _KEPT_BYTES:
                    break
        labels = [batch.labels_B[: batch.num_valid] for batch in self._batches]
        self.labels_N: np.ndarray = torch.cat(labels).numpy() > 0.5
        weights = [batch.weights_B[: batch.num_valid] for batch in self._batches if batch.weights_B is not None]
        self.weights_N: np.ndarray | None = torch.cat(weights).numpy() if weights else None
        self.logits_N = self.logits({})

    @torch.no_grad()
    def logits(self, replaced: Mapping[str, Compressed], network: nn.Module | None = None) -> np.ndarray:
        """Logits with some tables and, if given, the dense network replaced; float32 [N]."""
        model = DLRM(self._compose({**self._original, **replaced}), network or self._network, self._wide)
        found = [model(batch.dense_BI, batch)[: batch.num_valid] for batch in self._batches]
        logits_N: np.ndarray = torch.cat(found).numpy() + np.float32(self._offset)
        return logits_N

    def ne_rise(self, replaced: Mapping[str, Compressed]) -> tuple[float, float]:
        """The relative increase of NE over the trained model, and its standard error; see `relative_rise`."""
        return relative_rise(compare_scores(self.logits_N, self.logits(replaced), self.labels_N, self.weights_N))

    def compare(self, logits_b_N: np.ndarray, logits_a_N: np.ndarray | None = None) -> dict[str, Any]:
        """Differences of the metrics of two models as plain values: B minus A, which defaults to the trained model."""
        a_N = self.logits_N if logits_a_N is None else logits_a_N
        found = compare_scores(a_N, logits_b_N, self.labels_N, self.weights_N)
        values: dict[str, Any] = {name: difference.to_dict() for name, difference in found.items()}
        values["examples"] = len(self.labels_N)
        values["ne_increase"], values["ne_increase_se"] = relative_rise(found)
        return values
