"""What replaced tables do to the predictions of a model, on rows that are looked up once and kept.

N examples, B of a batch, F features, D columns.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from data.reader import Reader
from dlrmctl.paired import Difference, compare_scores
from embeddings.compression.module import pooled
from embeddings.compression.rules import Compressed

KEPT_BYTES = 2 << 30  # of looked-up vectors


@dataclass(frozen=True)
class _Kept:
    dense_BI: Tensor
    vectors_BFD: Tensor
    ids_F: list[Tensor]
    lengths_F: list[Tensor]
    valid: int


class Trial:
    """A model's predictions on the first examples of a reader, with and without replaced tables.

    Args:
        embeddings: the trained tables: KJT -> [B, F, D].
        network: the dense half.
        reader: not shuffled.
        kept_bytes: how much may be kept; decides the number of examples.
    """

    def __init__(self, embeddings: nn.Module, network: nn.Module, reader: Reader, kept_bytes: int = KEPT_BYTES) -> None:
        self.network = network
        self.features = reader.source.schema.keys
        self._batches: list[_Kept] = []
        labels, logits, used = [], [], 0
        with torch.no_grad(), closing(reader.batches(epoch=0)) as batches:  # type: ignore[type-var]
            for batch in batches:
                kjt = batch.kjt()
                vectors_BFD = embeddings(kjt)
                bags = kjt.to_dict()
                self._batches.append(
                    _Kept(
                        batch.dense_BI,
                        vectors_BFD,
                        [bags[name].values() for name in self.features],
                        [bags[name].lengths() for name in self.features],
                        batch.num_valid,
                    )
                )
                labels.append(batch.labels_B[: batch.num_valid])
                logits.append(network(batch.dense_BI, vectors_BFD)[: batch.num_valid])
                used += vectors_BFD.nbytes + batch.ids.nbytes + batch.dense_BI.nbytes
                if used > kept_bytes:
                    break
        self.labels_N: np.ndarray = torch.cat(labels).numpy() > 0.5
        self.logits_N: np.ndarray = torch.cat(logits).numpy()

    @torch.no_grad()
    def logits(self, replaced: Mapping[str, Compressed]) -> np.ndarray:
        """Logits with some features' tables replaced, float32 [N]."""
        columns = {self.features.index(name): table for name, table in replaced.items()}
        found = []
        for batch in self._batches:
            vectors_BFD = batch.vectors_BFD.clone()
            for column, table in columns.items():
                vectors_BFD[:, column] = pooled(table(batch.ids_F[column].long()), batch.lengths_F[column])
            found.append(self.network(batch.dense_BI, vectors_BFD)[: batch.valid])
        return torch.cat(found).numpy()

    def differences(self, replaced: Mapping[str, Compressed]) -> dict[str, Difference]:
        """What the replacement changes: see `paired.compare_scores`; A is the trained model."""
        return compare_scores(self.logits_N, self.logits(replaced), self.labels_N)

    def ne_rise(self, replaced: Mapping[str, Compressed]) -> tuple[float, float]:
        """The relative rise of NE and its standard error."""
        ne = self.differences(replaced)["ne"]
        return ne.difference / ne.a, ne.se / ne.a
