"""Turns the ids of features into the rows of tables, for a whole batch at once.

Dimensions: B examples, F features, K tables (= keys of the rows).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from dlrmctl.embeddings.partitions.heads import Head, Tail
from dlrmctl.embeddings.partitions.stages import Stage, joint_stage, per_value, single_stage
from dlrmctl.embeddings.tables import Lookup

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_NO_BOUND = 2**63 - 1


class SparseBatch(Protocol):
    """The sparse half of a batch, as a loader yields it; see `SparseIds` for the attributes. Its length is B.

    It may also have `id_weights` and `ids_per_feature`, the `weights` and `counts` of `SparseIds`.
    """

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def ids(self) -> Tensor: ...

    @property
    def lengths_FB(self) -> Tensor | None: ...

    def __len__(self) -> int: ...


class Feature(Protocol):
    """What is declared of a sparse feature: its ids are below `rows`, at most `max_ids` in an example."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def max_ids(self) -> int: ...


@dataclass(frozen=True)
class SparseIds:
    """The ids, or rows of tables, of a batch: key by key, and for each key in the order of the examples.

    Attributes:
        keys: one per feature, or per table.
        values: integers, for all keys.
        lengths_KB: integers, values per key and example; None means exactly one each. The batch says so itself: looking
            at the numbers would make a GPU wait, and a loader may refill the same memory.
        batch_size: B.
        weights: float32, of each value; None if all are 1.
        counts: the number of values of each key, where it is known: a GPU is waited for to count them.
    """

    keys: Sequence[str]
    values: Tensor
    lengths_KB: Tensor | None
    batch_size: int
    weights: Tensor | None = None
    counts: Sequence[int] | None = None

    @classmethod
    def of(cls, sparse: "SparseIds | SparseBatch | KeyedJaggedTensor") -> "SparseIds":
        """Converts ids to this form; reads the lengths of a KeyedJaggedTensor to see whether it is one-hot."""
        if isinstance(sparse, SparseIds):
            return sparse
        if hasattr(sparse, "lengths_FB"):
            weights, counts = getattr(sparse, "id_weights", None), getattr(sparse, "ids_per_feature", None)
            return cls(sparse.keys, sparse.ids, sparse.lengths_FB, len(sparse), weights, counts)
        kjt: Any = sparse
        keys, values, lengths = kjt.keys(), kjt.values(), kjt.lengths()
        one_hot = values.numel() == lengths.numel() and bool((lengths == 1).all())
        return cls(keys, values, None if one_hot else lengths.view(len(keys), -1), kjt.stride(), kjt.weights_or_none())

    def kjt(self, *, weighted: bool = False) -> "KeyedJaggedTensor":
        """Converts to TorchRec's KeyedJaggedTensor, which shares memory with `values`; imports TorchRec when called.

        Args:
            weighted: whether it has weights.
        """
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        keys, per_key = list(self.keys), self.values_per_key()
        if self.lengths_KB is None:
            lengths, offsets = one_each(len(keys) * self.batch_size, self.values.device)
        else:
            lengths, offsets = self.lengths_KB.reshape(-1), None
        return KeyedJaggedTensor(
            keys,
            self.values,
            weights=self.weights_or_ones() if weighted else None,
            lengths=lengths,
            offsets=offsets,
            stride=self.batch_size,
            length_per_key=per_key,
        )

    def weights_or_ones(self) -> Tensor:
        """float32: the weights of all values."""
        if self.weights is not None:
            return self.weights
        return torch.ones(len(self.values), device=self.values.device)

    def values_per_key(self) -> list[int]:
        """The number of values of each key."""
        if self.lengths_KB is None:
            return [self.batch_size] * len(self.keys)
        return self._counted if self.counts is None else list(self.counts)

    @cached_property
    def _counted(self) -> list[int]:
        assert self.lengths_KB is not None
        counts: list[int] = self.lengths_KB.sum(dim=1).tolist()
        return counts

    def lengths_of(self, key: int) -> Tensor:
        """int [B]: values per example of one key."""
        if self.lengths_KB is None:
            return one_each(self.batch_size, self.values.device)[0]
        return self.lengths_KB[key]


@lru_cache(maxsize=16)
def one_each(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """int32 lengths (all 1) and offsets 0..count, made once for all one-hot batches of one size."""
    return (
        torch.ones(count, dtype=torch.int32, device=device),
        torch.arange(count + 1, dtype=torch.int32, device=device),
    )


class RowIds(nn.Module):
    """Maps the ids of features to rows of tables: one key per feature and table, in the order of `keys`.

    `tables` has the table of each key; the keys of a table that features share are adjacent. Lookups in one table come
    first, in their order. Lookups in several tables follow, grouped by kind: all their first tables, all their second
    ones, and so on. So the vectors of the former need not be moved afterwards, and each kind of arithmetic works on
    long slices. The module has no parameters and moves with the model.

    Args:
        lookups: the lookups of the features.
    """

    def __init__(self, lookups: Sequence[Lookup]) -> None:
        super().__init__()
        self.keys: list[str] = []
        self.tables: list[str] = []
        self.sources: list[str] = []
        stages: list[Stage | None] = []
        single, joint = _grouped(lookups)
        for group in single:
            stages.append(single_stage(len(self.keys), [lookup.partition for lookup in group]))
            self._add(group, 1)
        for group in joint:
            stages.append(joint_stage(len(self.keys), [lookup.partition for lookup in group]))
            self._add(group, len(group[0].keys))
        self.stages = nn.ModuleList(stage for stage in stages if stage is not None)
        self.may_miss = any(isinstance(lookup.partition, Head | Tail) for lookup in lookups)
        self._order: tuple[tuple[str, ...], list[int], Tensor] | None = None  # of the last batch: keys, positions

    def _add(self, group: list[Lookup], parts: int) -> None:
        self.keys += [lookup.keys[part] for part in range(parts) for lookup in group]
        self.tables += [lookup.tables[part] for part in range(parts) for lookup in group]
        self.sources += [lookup.feature for _ in range(parts) for lookup in group]

    def forward(self, sparse: SparseIds) -> SparseIds:
        """Returns the rows of a batch's ids in every table.

        Args:
            sparse: ids in [0, rows) for at least the features of this module, in any order.

        Raises:
            ValueError: if a feature is missing.
        """
        names, batch_size = tuple(sparse.keys), sparse.batch_size
        if len(self.stages) == 0 and list(names) == self.keys:
            return sparse
        indices, index_K = self._take(names, sparse.values.device)
        counts: list[int] | None = None
        if sparse.lengths_KB is None:
            rows_KB = sparse.values.view(len(names), batch_size).index_select(0, index_K)
            self._compute_rows(rows_KB, [1] * len(indices))
            rows, lengths_KB = rows_KB.view(-1), None
            weights = sparse.weights
            if weights is not None:
                weights = weights.view(len(names), batch_size).index_select(0, index_K).view(-1)
        else:
            per_key = sparse.values_per_key()
            pieces = sparse.values.split(per_key)
            rows = torch.cat([pieces[index] for index in indices])
            counts = [per_key[index] for index in indices]
            self._compute_rows(rows, counts)
            lengths_KB = sparse.lengths_KB.index_select(0, index_K)
            weights = sparse.weights
            if weights is not None:
                of_key = weights.split(per_key)
                weights = torch.cat([of_key[index] for index in indices])
        if self.may_miss:
            weights = None if weights is None else weights[rows >= 0]
            (rows, lengths_KB), counts = without_missing(rows, lengths_KB, len(self.keys)), None
        return SparseIds(self.keys, rows, lengths_KB, batch_size, weights, counts)

    def _compute_rows(self, ids: Tensor, sizes: list[int]) -> None:
        """Turns ids, laid out by table, into rows, in place; `sizes` holds each table's share of dimension 0."""
        for stage in self.stages:
            stage(ids, sizes)

    def _take(self, names: tuple[str, ...], device: torch.device) -> tuple[list[int], Tensor]:
        """Returns the position in the incoming batch of the key of each table."""
        if self._order is None or self._order[0] != names or self._order[2].device != device:
            missing = [name for name in self.sources if name not in names]
            if missing:
                raise ValueError(f"the batch has no feature {missing[0]!r}, only {', '.join(names)}")
            indices = [names.index(name) for name in self.sources]
            self._order = (names, indices, torch.tensor(indices, dtype=torch.int32, device=device))
        return self._order[1], self._order[2]


class IdCheck:
    """Checks for ids that have no row, and bags with more ids than their feature was declared to have.

    The kernels accept both: they train row 0 instead of a missing one, and how bags are summed depends on `max_ids`.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = {f.name: f for f in features}
        self._limits: tuple[tuple[str, ...], Tensor, Tensor] | None = None  # of the last batch: keys, rows, max_ids

    def __call__(self, sparse: SparseIds | SparseBatch) -> None:
        """Checks the ids of a batch.

        Raises:
            ValueError: if an id is below 0 or not below its feature's rows, or a bag has more than `max_ids`. Only on
                CPU: on a GPU, waiting for the answer takes longer than the lookup; check the batch before it is copied.
        """
        sparse = SparseIds.of(sparse)
        names, values = tuple(sparse.keys), sparse.values
        if values.device.type != "cpu" or values.numel() == 0:
            return
        if self._limits is None or self._limits[0] != names:
            known = [self._features.get(name) for name in names]
            rows = torch.tensor([_NO_BOUND if f is None else f.rows for f in known])
            self._limits = (names, rows, torch.tensor([_NO_BOUND if f is None else f.max_ids for f in known]))
        _, rows, max_ids = self._limits
        if sparse.lengths_KB is None:
            low, high = torch.aminmax(values.view(len(names), -1), dim=1)
            wrong = bool((low < 0).any()) or bool((high >= rows).any())
        else:
            limit = per_value(rows, sparse.values_per_key())
            wrong = bool(((values < 0) | (values >= limit)).any())
            wrong = wrong or bool((sparse.lengths_KB.amax(dim=1) > max_ids).any())
        if wrong:
            self._explain(sparse)

    def _explain(self, sparse: SparseIds) -> None:
        for key, (name, ids) in enumerate(zip(sparse.keys, sparse.values.split(sparse.values_per_key()), strict=True)):
            feature = self._features.get(name)
            if feature is None:
                continue
            wrong = ids[(ids < 0) | (ids >= feature.rows)]
            if wrong.numel():
                raise ValueError(
                    f"feature {name}: id {int(wrong[0])} must be at least 0 and below {feature.rows:,}, the feature's "
                    f"rows; {wrong.numel():,} such ids in this batch. Were the examples prepared with another "
                    "vocabulary?"
                )
            largest = int(sparse.lengths_of(key).max())
            if largest > feature.max_ids:
                raise ValueError(
                    f"feature {name}: an example has {largest} ids, more than max_ids={feature.max_ids}, "
                    "which decided how the feature is looked up; declare the largest number"
                )


def _grouped(lookups: Sequence[Lookup]) -> tuple[list[list[Lookup]], list[list[Lookup]]]:
    """Groups lookups in one table by runs of the same kind, heads last, and lookups in several by what they compute."""
    first = {table: place for place, lookup in reversed(list(enumerate(lookups))) for table in lookup.tables}
    lookups = sorted(lookups, key=lambda lookup: first[lookup.tables[0]])
    single = [lookup for lookup in lookups if len(lookup.keys) == 1]
    single.sort(key=lambda lookup: isinstance(lookup.partition, Head))
    joint: dict[Hashable, list[Lookup]] = {}
    for lookup in lookups:
        if len(lookup.keys) > 1:
            partition = lookup.partition
            kind = (Tail, type(partition.inner)) if isinstance(partition, Tail) else type(partition)
            joint.setdefault((kind, len(lookup.keys)), []).append(lookup)
    runs = groupby(single, key=lambda lookup: type(lookup.partition))
    return [list(group) for _, group in runs], list(joint.values())


def without_missing(rows: Tensor, lengths_KB: Tensor | None, keys: int) -> tuple[Tensor, Tensor]:
    """Omits rows of -1.

    Args:
        rows: the rows of all bags, key by key, in their order.
        lengths_KB: the lengths of the bags; None for one row each.
        keys: K.

    Returns:
        The remaining rows, and the bags' lengths without the omitted ones.
    """
    kept = rows >= 0
    if lengths_KB is None:
        return rows[kept], kept.view(keys, -1).to(torch.int32)
    before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
    counts = torch.diff(before[lengths_KB.reshape(-1).cumsum(0)], prepend=before[:1])
    return rows[kept], counts.to(lengths_KB.dtype).view(lengths_KB.shape)
