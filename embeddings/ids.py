"""From the ids of features to the rows of tables, for a whole batch at once.

Dimensions: B examples, F features, K tables (= keys of the rows).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embeddings.partitions import Full, Hash, QuotientRemainder
from embeddings.tables import FeatureTable


class RowIds(nn.Module):
    """A KJT of feature ids in, a KJT of table rows out: one key per table, in the order of `keys`.

    Tables stand in the order full, hashed, quotient, remainder, so that each kind of arithmetic is one operation on one
    slice of the values. There are no parameters; the module goes wherever the model goes.
    """

    moduli: Tensor
    divisors: Tensor

    def __init__(self, features: Sequence[FeatureTable]) -> None:
        super().__init__()
        partitions = [(f, f.partition) for f in features]
        full = [f.name for f, p in partitions if isinstance(p, Full)]
        hashed = [(f.name, p.buckets) for f, p in partitions if isinstance(p, Hash)]
        split = [(f.name, p.divisor) for f, p in partitions if isinstance(p, QuotientRemainder)]
        self.sources = [
            *full,
            *(name for name, _ in hashed),
            *(name for name, _ in split),
            *(name for name, _ in split),
        ]
        self.keys = [
            *full,
            *(name for name, _ in hashed),
            *(f"{name}@q" for name, _ in split),
            *(f"{name}@r" for name, _ in split),
        ]
        self.num_full, self.num_hashed, self.num_split = len(full), len(hashed), len(split)
        self.register_buffer("moduli", torch.tensor([n for _, n in hashed]), persistent=False)
        self.register_buffer("divisors", torch.tensor([n for _, n in split]), persistent=False)
        divisors = {n for _, n in split}
        self.common_divisor = divisors.pop() if len(divisors) == 1 else None
        self._order: tuple[list[str], list[int], Tensor] | None = None  # keys of the last KJT, what to take of it
        self._ones: Tensor | None = None  # lengths that were found to be all 1
        self._one_hot: tuple[Tensor, Tensor] | None = None  # lengths and offsets of the last one-hot result

    def forward(self, kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """
        Args:
            kjt: ids in [0, rows) for at least the features of this module, in any order.

        Raises:
            ValueError: if a feature is missing.
        """
        names = kjt.keys()
        if self.num_hashed + self.num_split == 0 and names == self.keys:
            return kjt
        indices, index_K = self._take(names, kjt.values().device)
        batch_size = kjt.stride()
        if self._is_one_hot(kjt):
            rows_KB = kjt.values().view(len(names), batch_size).index_select(0, index_K)
            self._compute_rows(rows_KB.view(-1), [batch_size] * len(indices))
            lengths, offsets = self._one_hot_lengths(kjt, len(indices) * batch_size)
            return KeyedJaggedTensor(
                self.keys,
                rows_KB.view(-1),
                lengths=lengths,
                offsets=offsets,
                stride=batch_size,
                length_per_key=[batch_size] * len(indices),
            )
        taken = kjt.permute(indices, index_K)
        self._compute_rows(taken.values(), taken.length_per_key())
        return KeyedJaggedTensor(
            self.keys,
            taken.values(),
            lengths=taken.lengths(),
            stride=batch_size,
            length_per_key=taken.length_per_key(),
        )

    def _compute_rows(self, values: Tensor, length_per_key: list[int]) -> None:
        """Turns ids, laid out by table, into rows, in place."""
        lengths = [length_per_key[start : start + num] for start, num in self._slices()]
        _, hashed, quotients, remainders = values.split([sum(ln) for ln in lengths])
        if self.num_hashed:
            hashed.remainder_(_per_value(self.moduli, lengths[1], values))
        if self.num_split:
            divisor = self.common_divisor or _per_value(self.divisors, lengths[2], values)
            quotients.floor_divide_(divisor)
            remainders.remainder_(divisor)

    def _slices(self) -> list[tuple[int, int]]:
        """First key and number of keys of the full, hashed, quotient and remainder tables."""
        a, b, c = self.num_full, self.num_hashed, self.num_split
        return [(0, a), (a, b), (a + b, c), (a + b + c, c)]

    def _take(self, names: list[str], device: torch.device) -> tuple[list[int], Tensor]:
        """Which keys of the incoming KJT to take, once per table."""
        if self._order is None or self._order[0] != names or self._order[2].device != device:
            missing = [name for name in self.sources if name not in names]
            if missing:
                raise ValueError(f"the batch has no feature {missing[0]!r}, only {', '.join(names)}")
            indices = [names.index(name) for name in self.sources]
            self._order = (list(names), indices, torch.tensor(indices, dtype=torch.int32, device=device))
        return self._order[1], self._order[2]

    def _is_one_hot(self, kjt: KeyedJaggedTensor) -> bool:
        """Whether every example has exactly one id of every feature. Looks at the same lengths tensor only once."""
        lengths = kjt.lengths()
        if lengths is self._ones:
            return True
        if kjt.values().numel() != lengths.numel() or not bool((lengths == 1).all()):
            return False
        self._ones = lengths
        return True

    def _one_hot_lengths(self, kjt: KeyedJaggedTensor, total: int) -> tuple[Tensor, Tensor]:
        """Lengths (all 1) and offsets for `total` bags, kept between batches."""
        lengths = kjt.lengths()
        if (
            self._one_hot is None
            or self._one_hot[0].numel() != total
            or self._one_hot[0].dtype != lengths.dtype
            or self._one_hot[0].device != lengths.device
        ):
            offsets = torch.arange(total + 1, dtype=lengths.dtype, device=lengths.device)
            self._one_hot = (torch.ones(total, dtype=lengths.dtype, device=lengths.device), offsets)
        return self._one_hot


def _per_value(numbers_K: Tensor, lengths: list[int], like: Tensor) -> Tensor:
    """One number per value, given one per key and the values each key has."""
    repeats = torch.tensor(lengths, device=numbers_K.device)
    return numbers_K.repeat_interleave(repeats, output_size=sum(lengths)).to(like.device, like.dtype)
