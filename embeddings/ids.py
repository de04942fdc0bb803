"""From the ids of features to the rows of tables, for a whole batch at once.

Dimensions: B examples, F features, K tables (= keys of the rows).
"""

from collections import deque
from collections.abc import Hashable, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrmctl.embeddings.partitions.heads import Head, Tail
from dlrmctl.embeddings.partitions.stages import Stage, joint_stage, per_value, single_stage
from dlrmctl.embeddings.tables import FeatureTable, Lookup

_NO_BOUND = 2**63 - 1


class OneHotTest:
    """Tells batches with exactly one id everywhere from the others; looks at the same lengths tensor only once."""

    def __init__(self) -> None:
        # A step tests the batch's lengths and those made from it; an evaluation between steps has its own.
        self._ones: deque[Tensor] = deque(maxlen=4)

    def __call__(self, kjt: KeyedJaggedTensor) -> bool:
        lengths = kjt.lengths()
        if any(lengths is ones for ones in self._ones):
            return True
        if kjt.values().numel() != lengths.numel() or not bool((lengths == 1).all()):
            return False
        self._ones.append(lengths)
        return True


class RowIds(nn.Module):
    """A KJT of feature ids in, a KJT of table rows out: one key per table, in the order of `keys`.

    Lookups in one table come first, in their order, then those in several, alike ones together: all their first
    tables, all their second ones, and so on. So the vectors of the first need not be moved afterwards, and each kind
    of arithmetic works on long slices. There are no parameters; the module goes wherever the model goes.

    Args:
        lookups: of the features.
        is_one_hot: shared by whatever looks at the same batches.
    """

    def __init__(self, lookups: Sequence[Lookup], is_one_hot: OneHotTest) -> None:
        super().__init__()
        self._is_one_hot = is_one_hot
        self.keys: list[str] = []
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
        self._order: tuple[list[str], list[int], Tensor] | None = None  # keys of the last KJT, what to take of it
        self._ones: tuple[Tensor, Tensor] | None = None  # lengths and offsets of the last one-hot result

    def _add(self, group: list[Lookup], parts: int) -> None:
        self.keys += [lookup.keys[part] for part in range(parts) for lookup in group]
        self.sources += [lookup.feature for _ in range(parts) for lookup in group]

    def forward(self, kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """
        Args:
            kjt: ids in [0, rows) for at least the features of this module, in any order.

        Raises:
            ValueError: if a feature is missing.
        """
        names, batch_size = kjt.keys(), kjt.stride()
        if len(self.stages) == 0 and names == self.keys:
            return kjt
        indices, index_K = self._take(names, kjt.values().device)
        if self._is_one_hot(kjt):
            rows_KB = kjt.values().view(len(names), batch_size).index_select(0, index_K)
            self._compute_rows(rows_KB, [1] * len(indices))
            rows, length_per_key = rows_KB.view(-1), [batch_size] * len(indices)
            lengths, offsets = self._one_each(kjt.lengths(), rows.numel())
        else:
            taken = kjt.permute(indices, index_K)
            rows, length_per_key = taken.values(), taken.length_per_key()
            self._compute_rows(rows, length_per_key)
            lengths, offsets = taken.lengths(), None
        if self.may_miss:
            rows, lengths, length_per_key = without_missing(rows, lengths, len(self.keys))
            offsets = None
        return KeyedJaggedTensor(
            self.keys, rows, lengths=lengths, offsets=offsets, stride=batch_size, length_per_key=length_per_key
        )

    def _compute_rows(self, ids: Tensor, sizes: list[int]) -> None:
        """Turns ids, laid out by table, into rows, in place; `sizes` says how much of dimension 0 each table has."""
        for stage in self.stages:
            stage(ids, sizes)

    def _take(self, names: list[str], device: torch.device) -> tuple[list[int], Tensor]:
        """Which keys of the incoming KJT to take, one for each table."""
        if self._order is None or self._order[0] != names or self._order[2].device != device:
            missing = [name for name in self.sources if name not in names]
            if missing:
                raise ValueError(f"the batch has no feature {missing[0]!r}, only {', '.join(names)}")
            indices = [names.index(name) for name in self.sources]
            self._order = (list(names), indices, torch.tensor(indices, dtype=torch.int32, device=device))
        return self._order[1], self._order[2]

    def _one_each(self, like: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Lengths (all 1) and offsets of `total` bags, kept between batches."""
        kept = self._ones
        if kept is None or (kept[0].numel(), kept[0].dtype, kept[0].device) != (total, like.dtype, like.device):
            kept = self._ones = (like.new_ones(total), torch.arange(total + 1, dtype=like.dtype, device=like.device))
        return kept


class IdCheck:
    """Finds what lookups would silently get wrong: ids that have no row (the kernels train row 0 instead), and bags of
    more ids than their feature was declared to have (a product of sums is not the sum of products)."""

    def __init__(self, features: Sequence[FeatureTable], is_one_hot: OneHotTest) -> None:
        self._features = {f.name: f for f in features}
        self._is_one_hot = is_one_hot
        self._limits: tuple[list[str], Tensor, Tensor] | None = None  # keys of the last KJT, their rows and max_ids

    def __call__(self, kjt: KeyedJaggedTensor) -> None:
        """
        Raises:
            ValueError: if an id is below 0 or not below its feature's rows, or a bag has more than `max_ids`. Only on
                CPU: waiting for the answer costs a GPU more than the lookup.
        """
        names, values = kjt.keys(), kjt.values()
        if values.device.type != "cpu" or values.numel() == 0:
            return
        if self._limits is None or self._limits[0] != names:
            known = [self._features.get(name) for name in names]
            rows = torch.tensor([_NO_BOUND if f is None else f.rows for f in known])
            self._limits = (list(names), rows, torch.tensor([_NO_BOUND if f is None else f.max_ids for f in known]))
        _, rows, max_ids = self._limits
        if self._is_one_hot(kjt):
            low, high = torch.aminmax(values.view(len(names), -1), dim=1)
            wrong = bool((low < 0).any()) or bool((high >= rows).any())
        else:
            limit = per_value(rows, kjt.length_per_key())
            wrong = bool(((values < 0) | (values >= limit)).any())
            wrong = wrong or bool((kjt.lengths().view(len(names), -1).amax(dim=1) > max_ids).any())
        if wrong:
            self._explain(kjt)

    def _explain(self, kjt: KeyedJaggedTensor) -> None:
        lengths = kjt.lengths().view(len(kjt.keys()), -1)
        for name, ids, sizes in zip(kjt.keys(), kjt.values().split(kjt.length_per_key()), lengths, strict=True):
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
            if int(sizes.max()) > feature.max_ids:
                raise ValueError(
                    f"feature {name}: an example has {int(sizes.max())} ids, more than max_ids={feature.max_ids}, "
                    "which decided how the feature is looked up; declare the largest number"
                )


def _grouped(lookups: Sequence[Lookup]) -> tuple[list[list[Lookup]], list[list[Lookup]]]:
    """Lookups in one table by unbroken rows of the same kind, heads last; those in several by what they compute."""
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


def without_missing(rows: Tensor, lengths: Tensor, keys: int) -> tuple[Tensor, Tensor, list[int]]:
    """Leaves out the rows of -1.

    Args:
        rows: of all bags, in their order.
        lengths: of the bags, the same number for each of the `keys`.

    Returns:
        The other rows, the bags' lengths without those left out, and how many rows each key has.
    """
    kept = rows >= 0
    before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
    ends = torch.tensor([0], device=rows.device) if lengths.numel() == 0 else lengths.cumsum(0)
    counts = torch.diff(before[ends], prepend=before[:1])
    per_key: list[int] = counts.view(keys, -1).sum(dim=1).tolist()
    return rows[kept], counts.to(lengths.dtype), per_key
