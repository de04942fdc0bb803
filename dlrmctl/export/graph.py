"""A trained model in plain torch operations for torch.export, from dense features and ids to probabilities.

Dimensions: B examples, I dense features, F features with one id each, L ids of a list, N ids, D columns.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from dlrmctl.embeddings.combine import combined
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.embeddings.partitions.basic import Partition
from dlrmctl.embeddings.partitions.heads import Head, Tail
from dlrmctl.embeddings.parts import operand_keys
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.embeddings.wide import bucket_ids

PADDING = -1  # pads lists of ids


class Lookups(nn.Module):
    """The vectors of features: partitions, tables, and sums over lists.

    Args:
        features: features in the order of the vectors.
        tables: one for each table of the features, by name; float or quantized.

    Raises:
        KeyError: if a table is missing.
    """

    def __init__(self, features: Sequence[FeatureTable], tables: Mapping[str, Compressed]) -> None:
        super().__init__()
        self.features = tuple(features)
        names = dict.fromkeys(name for feature in features for name in feature.table_names)
        self._places = {name: place for place, name in enumerate(names)}
        self.tables = nn.ModuleList(tables[name] for name in names)  # names of features may have any characters

    def forward(self, ids: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns vectors [B, D] of the features, in their order.

        Args:
            ids: int64 by feature, [B] or, of a list, [B, L] padded with -1.
            weights: float32 [B, L] by feature, of the vectors of lists where they are not all 1.
        """
        return [
            vector
            for feature in self.features
            for vector in self._of(feature, ids[feature.name], weights.get(feature.name))
        ]

    def named_tables(self) -> Iterator[tuple[str, Compressed]]:
        """Returns every table with its name."""
        for key, table in zip(self._places, self.tables, strict=True):
            assert isinstance(table, Compressed)
            yield key, table

    def _of(self, feature: FeatureTable, ids: Tensor, weights: Tensor | None) -> list[Tensor]:
        return self._vectors(feature, ids) if feature.max_ids == 1 else self._summed(feature, ids, weights)

    def _summed(self, feature: FeatureTable, ids_BL: Tensor, weights_BL: Tensor | None) -> list[Tensor]:
        """Returns vectors [B, D]: the weighted sums over the ids of each list, 0 for an empty one."""
        there_BL = ids_BL != PADDING
        torch.ops.aten._assert_async.msg(
            ((ids_BL >= PADDING) & (ids_BL < feature.rows)).all(),
            f"{feature.name}: an id is below -1, or not below the feature's {feature.rows} rows",
        )
        # Padding may be any row, since its vector is multiplied by 0.
        vectors = self._vectors(feature, ids_BL.clamp(min=0).flatten())
        shape = (*ids_BL.shape, -1)
        if weights_BL is not None:  # of padding, they may be any number
            weights_BL = weights_BL.masked_fill(~there_BL, 0.0)
            return [(vector_ND.view(shape) * weights_BL.unsqueeze(-1)).sum(1) for vector_ND in vectors]
        return [(vector_ND.view(shape) * there_BL.unsqueeze(-1)).sum(1) for vector_ND in vectors]

    def _vectors(self, feature: FeatureTable, ids_N: Tensor) -> list[Tensor]:
        """Returns the vectors [N, D] of each id: one, or several for operation "features"."""
        *heads, last = feature.lookups
        rows = dict(zip(last.keys, self._rows(last.tables, last.partition, ids_N), strict=True))
        if feature.combination in (None, "features"):
            vectors = list(rows.values())
        else:
            vectors = [combined(feature.combination, [rows[key] for key in operand_keys(feature)])]
        for head in heads:  # an id has rows in the head's table, or in the tail's
            (row_ND,) = self._rows(head.tables, head.partition, ids_N)
            vectors = [row_ND + vector_ND for vector_ND in vectors]
        return vectors

    def _rows(self, names: Sequence[str], partition: Partition, ids_N: Tensor) -> list[Tensor]:
        """Returns the rows of each table; 0 for an id that has none."""
        found = []
        for name, row_N in zip(names, partition(ids_N), strict=True):
            table = self.tables[self._places[name]]
            if isinstance(partition, Head | Tail):
                found.append(table(row_N.clamp(min=0)) * (row_N >= 0).unsqueeze(-1))
            else:
                found.append(table(row_N))
        return found


class ServedModel(nn.Module):
    """The model as evaluation computes it, without TorchRec: partitions, tables, dense network, and the sigmoid.

    Args:
        features: features in the order of the data.
        tables: one for each table of the features, by name; float or quantized.
        network: maps dense features and the vectors of all features to logits.
        num_dense: I.
        logit_offset: added to the logit; corrects for negative sampling.
        averaged: names of the lists whose vectors are averaged.
        weighted: names of the lists whose values have weights.
        wide: the first-order part, if any.
        slope, bias: calibrate the logit before the offset is added.

    Raises:
        KeyError: if a table is missing.
    """

    rows_F: Tensor

    def __init__(
        self,
        features: Sequence[FeatureTable],
        tables: Mapping[str, Compressed],
        network: nn.Module,
        *,
        num_dense: int,
        logit_offset: float = 0.0,
        averaged: Sequence[str] = (),
        weighted: Sequence[str] = (),
        wide: "ServedWide | None" = None,
        slope: float = 1.0,
        bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.features, self.network = tuple(features), network.requires_grad_(False)
        self.num_dense, self.logit_offset = num_dense, logit_offset
        self.slope, self.bias = slope, bias
        self.averaged, self.weighted = tuple(averaged), tuple(weighted)
        self.one_hot = tuple(feature.name for feature in features if feature.max_ids == 1)
        self.lookups, self.wide = Lookups(features, tables), wide
        rows = [feature.rows for feature in features if feature.max_ids == 1]
        self.register_buffer("rows_F", torch.tensor(rows, dtype=torch.int64), persistent=False)

    def forward(
        self,
        dense: Tensor,
        ids: Tensor,
        lists: dict[str, Tensor] | None = None,
        weights: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Scores rows.

        Args:
            dense: float32 [B, I], transformed as the training data was.
            ids: int64 [B, F], 0 <= id < rows, of the features with one id each, in their order.
            lists: int64 [B, L] of every other feature by its name, shorter lists padded with -1.
            weights: float32 [B, L] of the values of every list that has weights, in the places of `lists`.

        Returns:
            float32 [B], probabilities.
        """
        torch.ops.aten._assert_async.msg(
            ((ids >= 0) & (ids < self.rows_F)).all(), "an id is below 0, or not below the rows of its feature"
        )
        single = ids.unbind(1) if self.one_hot else ()  # torch cannot load a node that has no outputs
        columns = dict(zip(self.one_hot, single, strict=True)) | (lists or {})
        factors = self._factors(lists or {}, weights or {})
        logits_B = self.network(dense, torch.stack(self.lookups(columns, factors), 1))
        if self.wide is not None:
            logits_B = logits_B + self.wide(dense, columns, factors)
        logits_B = self.slope * logits_B + (self.bias + self.logit_offset)
        return logits_B.sigmoid()

    def _factors(self, lists: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns what the vectors of lists are multiplied by, as `data.source.pooled_weights`."""
        factors = {name: weights[name] for name in self.weighted}
        for name in self.averaged:
            shares_B1 = 1 / (lists[name] != PADDING).sum(1, keepdim=True).clamp(min=1).float()
            factors[name] = factors[name] * shares_B1 if name in factors else shares_B1.expand_as(lists[name])
        return factors


class ServedWide(nn.Module):
    """The first-order part of the logits; see `embeddings.wide`.

    Args:
        features: the features with first-order weights.
        tables: their tables by name, each with one column.
        bucketed: names of the dense features among them, in the order of the data: all or none.
        edges_IE: lower edges of their buckets.
    """

    edges_IE: Tensor

    def __init__(
        self,
        features: Sequence[FeatureTable],
        tables: Mapping[str, Compressed],
        bucketed: Sequence[str],
        edges_IE: Tensor,
    ) -> None:
        super().__init__()
        self.lookups, self.bucketed = Lookups(features, tables), tuple(bucketed)
        self.register_buffer("edges_IE", edges_IE)

    def forward(self, dense: Tensor, columns: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> Tensor:
        """Returns float32 [B]; `columns` and `factors` are ids and weights by feature, as for `Lookups`."""
        if self.bucketed:
            buckets = bucket_ids(dense, self.edges_IE).unbind(0)
            columns = {**columns, **dict(zip(self.bucketed, buckets, strict=True))}
        return torch.cat(self.lookups(columns, factors), 1).sum(1)
