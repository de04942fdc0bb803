"""Lookup counts of the rows of all tables in training, from the id counts of a prepared store."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dlrmctl.data.source import Source
from dlrmctl.embeddings.partitions.basic import Full
from dlrmctl.embeddings.tables import FeatureTable

_CHUNK_IDS = 1 << 20


class RowCounts:
    """Lookup counts by table.

    Args:
        source: training data; prepared stores have counts.
        features: with partitions, which define the ids that share a row.
    """

    def __init__(self, source: Source, features: Sequence[FeatureTable]) -> None:
        self._counts = source.features.counts
        # The counts of a vocabulary that features share are those of all of them.
        self._features = {name: feature for feature in features for name in feature.table_names}

    def __call__(self, table: str) -> Tensor | None:
        """float32 [rows], the sums over the ids that share each row; None if the data has no counts.

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
        table: one of the feature's tables.
    """
    lookup = next(lookup for lookup in feature.lookups if table in lookup.tables)
    part = lookup.tables.index(table)
    if isinstance(lookup.partition, Full):
        return torch.from_numpy(counts.astype(np.float32))
    sums = torch.zeros(lookup.partition.table_rows[part], dtype=torch.float64)  # exact up to 2**53 lookups
    for start in range(0, len(counts), _CHUNK_IDS):
        values = torch.from_numpy(counts[start : start + _CHUNK_IDS].astype(np.float64))
        rows = lookup.partition(torch.arange(start, start + len(values)))[part]
        inside = rows >= 0  # an id of the head has no row in the tail, and vice versa
        sums.index_add_(0, rows[inside], values[inside])
    return sums.float()
