"""The examples of a split as the sparse rows of a linear model.

N rows, I dense features, F sparse features, C columns of dense features.
"""

from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from torch import Tensor

from dlrmctl.data.batch import Batch
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.reader import Reader
from dlrmctl.data.schema import RARE_ROW, RESERVED_ROWS, Schema
from dlrmctl.data.source import Source
from dlrmctl.embeddings.first_order import FirstOrder
from dlrmctl.embeddings.sharding.memory import available_bytes
from dlrmctl.models import DLRM
from dlrmctl.models.logistic import BucketLogits, LogisticNetwork
from dlrmctl.optim.convex.rows import LabelledRows, RowsInMemory, SparseRows
from dlrmctl.ranks.group import Ranks

BATCH_ROWS = 1 << 14
_ENTRY_BYTES = 12  # int32 id and float64 value
_ROW_BYTES = 24  # offset, label and weight
_MOST_MEMORY = 0.25  # of what is available, for the examples of a split

Tell = Callable[[int, int], None]  # called with the number of batches that were read, and of all batches


class RowMaker:
    """Turns batches into rows of a linear model: first the columns of dense features, then the rows of all tables.

    Args:
        model: of the baseline.
    """

    def __init__(self, model: DLRM) -> None:
        assert isinstance(model.embeddings, FirstOrder)
        assert isinstance(model.dense, LogisticNetwork)
        self.sparse, self.network, self.dense = model.embeddings, model.dense, model.dense.dense
        self.num_dense = len(self.dense.weight_C)
        self.num_features = self.num_dense + len(self.sparse.weight_R)

    def name_of(self, feature: int, features: FeatureSpace) -> str:
        """Returns what a feature of the rows stands for, such as "item = 'a7'"."""
        if feature < self.num_dense:
            if not isinstance(self.dense, BucketLogits):
                return f"dense input {feature}"
            firsts = self.dense.buckets.first_I
            column = int(torch.searchsorted(firsts, feature, right=True)) - 1
            bucket = feature - int(firsts[column])
            name = features.schema.dense[column]
            return f"bucket {bucket} of {name}" if bucket else f"a missing {name}"
        row = feature - self.num_dense
        names = iter(described.name for described in self.sparse.features)
        name = next(names)
        for size in self.sparse.sizes:
            if row < size:
                break
            row, name = row - size, next(names)
        if row < RESERVED_ROWS:
            return f"{'a rare' if row == RARE_ROW else 'a missing'} {name}"
        value = features.values_of(name, [row])[0] if features.sorted_by_frequency(name) else None
        return f"row {row} of {name}" if value is None else f"{name} = {value!r}"

    @torch.no_grad()
    def __call__(self, batch: Batch) -> LabelledRows:
        """Returns the rows of a batch that count."""
        values_NC: Tensor | None = None
        if isinstance(self.dense, BucketLogits):
            dense_NC = self.dense.buckets(batch.dense_BI)
        else:
            values_NC = self.dense.inputs(batch.dense_BI).double()
            dense_NC = torch.arange(self.num_dense).expand(len(batch), -1)
        rows = self.sparse.rows(batch)
        size, ids_K = len(batch), (rows.values + self.num_dense).int()
        lengths_KN = rows.lengths_KB
        if lengths_KN is None:
            ids_NF = torch.cat([dense_NC.int(), ids_K.view(-1, size).T], 1)
            offsets = torch.arange(size + 1) * ids_NF.shape[1]
            ids, values = ids_NF.reshape(-1), None
            if values_NC is not None:
                ones_NF = values_NC.new_ones(size, ids_NF.shape[1] - self.num_dense)
                values = torch.cat([values_NC, ones_NF], 1).reshape(-1)
        else:
            ids, offsets, values = _by_row(dense_NC, values_NC, ids_K, rows.weights, lengths_KN.long())
        examples = SparseRows(ids, offsets, self.num_features, values)
        kept = examples.narrow(0, batch.num_valid) if batch.num_valid < size else examples
        weights_B = None if batch.weights_B is None else batch.weights_B[: batch.num_valid].double()
        return LabelledRows(kept, batch.labels_B[: batch.num_valid].double(), weights_B)

    @torch.no_grad()
    def store(self, point: Tensor) -> None:
        """Writes a solution, the weights of all columns and the intercept, to the model."""
        assert isinstance(self.dense.weight_C, Tensor)
        dense, sparse, intercept = point.split([self.num_dense, self.num_features - self.num_dense, 1])
        self.dense.weight_C.copy_(dense)
        self.sparse.weight_R.copy_(sparse)
        self.network.intercept.copy_(intercept[0])


def _by_row(
    dense_NC: Tensor, values_NC: Tensor | None, ids_K: Tensor, weights_K: Tensor | None, lengths_FN: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns ids, offsets and values row by row, from the ids of lists feature by feature."""
    num_dense = dense_NC.shape[1]
    counts_N = lengths_FN.sum(0) + num_dense
    offsets = torch.cat([counts_N.new_zeros(1), counts_N.cumsum(0)])
    starts_FN = offsets[:-1] + num_dense + lengths_FN.cumsum(0) - lengths_FN  # of each list in its row
    flat = lengths_FN.reshape(-1)
    within = torch.arange(len(ids_K)) - (flat.cumsum(0) - flat).repeat_interleave(flat)
    ids = ids_K.new_empty(int(offsets[-1]))
    dense_places = (offsets[:-1, None] + torch.arange(num_dense)).reshape(-1)
    ids[dense_places] = dense_NC.reshape(-1).int()
    places_K = starts_FN.reshape(-1).repeat_interleave(flat) + within
    ids[places_K] = ids_K
    if values_NC is None and weights_K is None:
        return ids, offsets, None
    values = torch.ones(len(ids), dtype=torch.float64)
    if values_NC is not None:
        values[dense_places] = values_NC.reshape(-1)
    if weights_K is not None:
        values[places_K] = weights_K.double()
    return ids, offsets, values


class SplitExamples:
    """This rank's examples of a split, in a seeded order; read again at every pass if they do not fit in memory.

    Args:
        make_rows: turns batches into rows.
        source: the data.
        split: its name.
        tell: called while the examples are read for the first time.
        most_bytes: memory for the examples; default: a quarter of what is available.
    """

    def __init__(
        self,
        make_rows: RowMaker,
        source: Source,
        split: str,
        ranks: Ranks,
        *,
        seed: int,
        tell: Tell,
        most_bytes: int | None = None,
    ) -> None:
        self._make_rows = make_rows
        self.num_features = make_rows.num_features
        share = -(-source.num_examples(split) // ranks.world_size)
        self._batch_rows = min(BATCH_ROWS, max(1, share))  # so that every rank has some
        self._reader = Reader(
            source,
            split,
            batch_size=self._batch_rows * ranks.world_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=seed,
            drop_last=False,
        )
        self.num_rows = self._reader.num_own_examples()
        if most_bytes is None:
            available = available_bytes(torch.device("cpu"), ranks.local_world_size)
            most_bytes = int(_MOST_MEMORY * available) if available else 1 << 62
        self.in_memory = self._largest_bytes(source.schema) <= most_bytes
        self._kept: RowsInMemory | None = None
        if self.in_memory:
            self._kept = self._loaded(tell).shuffled(seed)

    def _largest_bytes(self, schema: Schema) -> int:
        entries = len(schema.dense) * 2 + sum(feature.max_ids for feature in schema.sparse)
        return 2 * self.num_rows * (entries * _ENTRY_BYTES + _ROW_BYTES)  # they are copied once, in random order

    def _loaded(self, tell: Tell) -> RowsInMemory:
        parts: list[LabelledRows] = []
        for number, part in enumerate(self._batches(0), 1):
            parts.append(part)
            tell(number, self._reader.num_batches)
        return RowsInMemory(joined(parts, self.num_features), self._batch_rows)

    def _batches(self, start: int) -> Iterator[LabelledRows]:
        with closing(self._reader.batches(0, start)) as batches:  # type: ignore[type-var]
            for batch in batches:
                yield self._make_rows(batch)

    def read(self, start: int, stop: int) -> Iterator[LabelledRows]:
        """Yields the examples [start, stop), in batches."""
        if self._kept is not None:
            yield from self._kept.read(start, stop)
            return
        at = start // self._batch_rows * self._batch_rows
        for part in self._batches(start // self._batch_rows):
            first, last = max(start - at, 0), min(stop - at, part.rows.num_rows)
            if first == 0 and last == part.rows.num_rows:
                yield part
            elif first < last:
                weights = None if part.weights is None else part.weights[first:last]
                yield LabelledRows(part.rows.narrow(first, last), part.labels[first:last], weights)
            at += self._batch_rows
            if at >= stop:
                return


def joined(parts: list[LabelledRows], num_features: int) -> LabelledRows:
    """Returns sparse rows as one batch."""
    rows = [part.rows for part in parts if isinstance(part.rows, SparseRows)]
    lengths = torch.cat([each.offsets.diff() for each in rows])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    values = [each.values for each in rows if each.values is not None]
    joined = SparseRows(
        torch.cat([each.ids for each in rows]), offsets, num_features, torch.cat(values) if values else None
    )
    weights = [part.weights for part in parts if part.weights is not None]
    return LabelledRows(joined, torch.cat([part.labels for part in parts]), torch.cat(weights) if weights else None)
