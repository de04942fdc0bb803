"""From the ids of features to the rows of tables, for a whole batch at once.

Dimensions: B examples, F features, K tables (= keys of the rows).
"""

from collections import deque
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embeddings.partitions import Hash, QuotientRemainder
from embeddings.tables import FeatureTable

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

    Features with one table come first, in their order, then all quotients, then all remainders: so the vectors of the
    first need not be moved afterwards, and each kind of arithmetic works on long slices. There are no parameters; the
    module goes wherever the model goes.
    """

    moduli: Tensor
    divisors: Tensor

    def __init__(self, features: Sequence[FeatureTable], is_one_hot: OneHotTest) -> None:
        super().__init__()
        self._is_one_hot = is_one_hot
        split = {f.name: f.partition.divisor for f in features if isinstance(f.partition, QuotientRemainder)}
        single = {f.name: f.partition for f in features if f.name not in split}
        self.sources = [*single, *split, *split]
        self.keys = [*single, *(f"{name}@q" for name in split), *(f"{name}@r" for name in split)]
        self.num_single, self.num_split = len(single), len(split)
        self.hashed_runs = _runs([isinstance(partition, Hash) for partition in single.values()])
        self.register_buffer("moduli", torch.tensor([p.table_rows[0] for p in single.values()]), persistent=False)
        self.register_buffer("divisors", torch.tensor(list(split.values())), persistent=False)
        self.common_divisor = next(iter(split.values())) if len(set(split.values())) == 1 else None
        self._order: tuple[list[str], list[int], Tensor] | None = None  # keys of the last KJT, what to take of it
        self._ones: tuple[Tensor, Tensor] | None = None  # lengths and offsets of the last one-hot result

    def forward(self, kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """
        Args:
            kjt: ids in [0, rows) for at least the features of this module, in any order.

        Raises:
            ValueError: if a feature is missing.
        """
        names, batch_size = kjt.keys(), kjt.stride()
        if not self.hashed_runs and self.num_split == 0 and names == self.keys:
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
        return KeyedJaggedTensor(
            self.keys, rows, lengths=lengths, offsets=offsets, stride=batch_size, length_per_key=length_per_key
        )

    def _compute_rows(self, ids: Tensor, sizes: list[int]) -> None:
        """Turns ids, laid out by table, into rows, in place; `sizes` says how much of dimension 0 each table has."""
        starts = [0, *accumulate(sizes)]
        for first, last in self.hashed_runs:
            hashed = ids[starts[first] : starts[last]]
            hashed.remainder_(_repeated(self.moduli[first:last], sizes[first:last], like=ids))
        if self.num_split == 0:
            return
        first, middle = self.num_single, self.num_single + self.num_split
        quotients, remainders = ids[starts[first] : starts[middle]], ids[starts[middle] :]
        if self.common_divisor is not None:
            quotients.floor_divide_(self.common_divisor)
            remainders.sub_(quotients, alpha=self.common_divisor)  # a second division would cost twice as much
        else:
            divisors = _repeated(self.divisors, sizes[first:middle], like=ids)
            quotients.floor_divide_(divisors)
            remainders.addcmul_(quotients, divisors, value=-1)

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
            limit = _per_value(rows, kjt.length_per_key())
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


def _runs(flags: list[bool]) -> list[tuple[int, int]]:
    """First and one past the last index of every unbroken row of True."""
    edges = [i for i, (a, b) in enumerate(pairwise([False, *flags, False])) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _per_value(numbers_K: Tensor, lengths: list[int]) -> Tensor:
    """One number per value, given one per key and the values each key has."""
    repeats = torch.tensor(lengths, device=numbers_K.device)
    return numbers_K.repeat_interleave(repeats, output_size=sum(lengths))


def _repeated(numbers_K: Tensor, sizes: list[int], *, like: Tensor) -> Tensor:
    """One number for each part of dimension 0 of `like`, of its dtype, so that the two can be combined."""
    if like.dim() == 2:  # one row per key
        return numbers_K.to(like.dtype)[:, None]
    return _per_value(numbers_K, sizes).to(like.dtype)
