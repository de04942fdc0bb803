"""Counts how often each row of every table was looked up in training, from what a prepared store keeps by id."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dlrmctl.data.source import Source
from dlrmctl.embeddings.partitions.basic import Full
from dlrmctl.embeddings.tables import FeatureTable

_CHUNK_IDS = 1 << 20


class RowCounts:
    """Counts by table.

    Args:
        source: what the model was trained on; a prepared store keeps counts.
        features: whose partitions say which ids share a row.
    """

    def __init__(self, source: Source, features: Sequence[FeatureTable]) -> None:
        self._counts = source.features.counts
        self._features = {key: feature for feature in features for lookup in feature.lookups for key in lookup.keys}

    def __call__(self, table: str) -> Tensor | None:
        """float32 [rows], the sums over the ids that share each row; None where the data keeps none.

        Raises:
            DataError: if the file of the counts is missing or changed.
        """
        feature = self._features.get(table)
        if feature is None:
            return None
        counts = self._counts(feature.name)
        return None if counts is None else counts_of_rows(counts, feature, table)


def counts_of_rows(counts: np.ndarray, feature: FeatureTable, table: str) -> Tensor:
    """The sums over the ids that share each row of one of a feature's tables, float32 [rows].

    Args:
        counts: unsigned [rows of the feature], by id.
        table: one of the keys of the feature's lookups.
    """
    lookup = next(lookup for lookup in feature.lookups if table in lookup.keys)
    part = lookup.keys.index(table)
    if isinstance(lookup.partition, Full):
        return torch.from_numpy(counts.astype(np.float32))
    sums = torch.zeros(lookup.partition.table_rows[part], dtype=torch.float64)  # exact up to 2**53 look-ups
    for start in range(0, len(counts), _CHUNK_IDS):
        values = torch.from_numpy(counts[start : start + _CHUNK_IDS].astype(np.float64))
        rows = lookup.partition(torch.arange(start, start + len(values)))[part]
        inside = rows >= 0  # an id of a head looks nothing up in the tail, and the other way round
        sums.index_add_(0, rows[inside], values[inside])
    return sums.float()
