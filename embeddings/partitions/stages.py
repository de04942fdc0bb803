"""The arithmetic of partitions for many features at once, in place.

Ids are laid out by key: dimension 0 of a tensor has one piece per key, of the given sizes; a batch with one id each has
the shape [K, B] and pieces of one row. A stage turns the ids of its keys, which are adjacent, into rows. A partition
defines what each stage computes; this file holds the layout and the order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlrmctl.embeddings.partitions.basic import DoubleHash, Hash, Partition, QuotientRemainder, mix
from dlrmctl.embeddings.partitions.heads import Head, HeadHash, Range, Tail, num_added
from dlrmctl.embeddings.partitions.radix import ChineseRemainder, MixedRadix


class Stage(nn.Module):
    """The arithmetic of the keys [first, last). It has no parameters; its numbers move with the module.

    Args:
        first: the first key.
        numbers: name -> one integer per key, or per feature.
    """

    def __init__(self, first: int, last: int, **numbers: Sequence[int]) -> None:
        super().__init__()
        self.first, self.last = first, last
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def forward(self, ids: Tensor, sizes: list[int]) -> None:
        """Turns ids into rows, in place.

        Args:
            ids: the ids of all keys of the batch.
            sizes: the sizes of all keys' pieces.
        """
        start = sum(sizes[: self.first])
        mine = sizes[self.first : self.last]
        self.compute(ids[start : start + sum(mine)], mine)

    def compute(self, ids: Tensor, sizes: list[int]) -> None:
        """As `forward`, for the ids and sizes of this stage's keys alone."""
        raise NotImplementedError


class Modulo(Stage):
    """The stage of `Hash` and `ChineseRemainder`: ids % modulus."""

    moduli: Tensor

    def compute(self, ids: Tensor, sizes: list[int]) -> None:
        ids.remainder_(repeated(self.moduli, sizes, like=ids))


class Added(nn.Module):
    """Finds the ids that were added with rows of their own; see `heads`.

    Args:
        added: the ranges of each key.
        first_rows: the row of the first of them, for each key.
    """

    def __init__(self, added: Sequence[Sequence[Range]], first_rows: Sequence[int]) -> None:
        super().__init__()
        self.first_rows = list(first_rows)
        # A range before all ids stands for none, so that every id is in or after one.
        ranges = [[(-1, 0), *of_key] for of_key in added]
        self._num_ranges = [len(of_key) for of_key in ranges]
        flat = [pair for of_key in ranges for pair in of_key]
        before = [num_added(of_key[:place]) for of_key in ranges for place in range(len(of_key))]
        for name, numbers in (("first", [f for f, _ in flat]), ("count", [c for _, c in flat]), ("before", before)):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.int64), persistent=False)

    first: Tensor
    count: Tensor
    before: Tensor

    def forward(self, ids: Tensor, sizes: list[int]) -> Tensor:
        """Returns the rows of the added ids, -1 for others; shaped like `ids`."""
        found = []
        ranges = zip(*(part.split(self._num_ranges) for part in (self.first, self.count, self.before)), strict=True)
        for piece, (first, count, before), row in zip(ids.long().split(sizes), ranges, self.first_rows, strict=True):
            place = torch.bucketize(piece, first, right=True) - 1
            within = piece - first[place]
            found.append(torch.where(within < count[place], within + before[place] + row, -1))
        return torch.cat(found).to(ids.dtype)


def _added(added: Sequence[Sequence[Range]], first_rows: Sequence[int]) -> Added | None:
    return Added(added, first_rows) if any(added) else None


class HeadModulo(Stage):
    """The stage of `HeadHash`: ids of the head stay, the others are hashed."""

    heads: Tensor
    moduli: Tensor

    def __init__(self, first: int, last: int, added: Added | None, **numbers: Sequence[int]) -> None:
        super().__init__(first, last, **numbers)
        self.added = added

    def compute(self, ids: Tensor, sizes: list[int]) -> None:
        own = None if self.added is None else self.added(ids, sizes)
        heads = repeated(self.heads, sizes, like=ids)
        shared = (ids - heads).remainder_(repeated(self.moduli, sizes, like=ids)).add_(heads)
        torch.where(ids < heads, ids, shared, out=ids)
        if own is not None:
            torch.where(own < 0, ids, own, out=ids)


class HeadAlone(Stage):
    """The stage of `Head`: -1 for the ids after it."""

    heads: Tensor

    def __init__(self, first: int, last: int, added: Added | None, **numbers: Sequence[int]) -> None:
        super().__init__(first, last, **numbers)
        self.added = added

    def compute(self, ids: Tensor, sizes: list[int]) -> None:
        heads = repeated(self.heads, sizes, like=ids)
        if self.added is None:
            ids.masked_fill_(ids >= heads, -1)
        else:
            torch.where(ids < heads, ids, self.added(ids, sizes), out=ids)


class Digits(Stage):
    """Digits in a mixed radix, lowest first: `MixedRadix`, and `QuotientRemainder` of remainder and quotient.

    The pieces of one digit of all features are adjacent.

    Args:
        moduli: the moduli of all digits but the last, digit by digit, one per feature.
        lowest_last: whether the lowest digit's pieces come last.
    """

    moduli: Tensor

    def __init__(self, first: int, features: int, moduli: Sequence[int], *, lowest_last: bool = False) -> None:
        self.features, self.digits = features, len(moduli) // features + 1
        super().__init__(first, first + features * self.digits, moduli=moduli)
        self.lowest_last = lowest_last
        # Dividing by a scalar is faster than by a tensor.
        self.common = moduli[0] if self.digits == 2 and len(set(moduli)) == 1 else None

    def compute(self, ids: Tensor, sizes: list[int]) -> None:
        blocks = ids.split([sum(sizes[: self.features])] * self.digits)
        if self.lowest_last:
            blocks = blocks[::-1]
        # The remainder by a product and a difference: a second division would take twice as long.
        if self.common is not None:
            low, high = blocks
            high.floor_divide_(self.common)
            low.sub_(high, alpha=self.common)
            return
        for digit, modulus in enumerate(self.moduli.view(self.digits - 1, self.features)):
            low, high = blocks[digit], blocks[digit + 1]
            if digit:
                high.copy_(low)
            divisors = repeated(modulus, sizes[: self.features], like=ids)
            high.floor_divide_(divisors)
            low.addcmul_(high, divisors, value=-1)


class Hashes(Stage):
    """The stage of `DoubleHash`."""

    seeds: Tensor
    moduli: Tensor

    def compute(self, ids: Tensor, sizes: list[int]) -> None:
        mixed = mix(ids, repeated(self.seeds, sizes, like=ids).long())
        ids.copy_(mixed.remainder_(repeated(self.moduli, sizes, like=mixed)))


class TailAlone(Stage):
    """The stage of `Tail`: another stage applied to the ids after the head, counted from 0; -1 for the others."""

    heads: Tensor

    def __init__(self, inner: Stage, tails: Sequence[Tail]) -> None:
        tails = [*tails] * ((inner.last - inner.first) // len(tails))
        super().__init__(inner.first, inner.last, heads=[tail.head for tail in tails])
        self.inner = inner
        self.added = _added([tail.added for tail in tails], [0] * len(tails))

    def compute(self, ids: Tensor, sizes: list[int]) -> None:
        added = None if self.added is None else self.added(ids, sizes) >= 0
        ids.sub_(repeated(self.heads, sizes, like=ids))
        in_head = ids < 0 if added is None else (ids < 0) | added
        self.inner.compute(ids, sizes)
        ids.masked_fill_(in_head, -1)


def single_stage(first: int, partitions: Sequence[Partition]) -> Stage | None:
    """Returns the stage for neighbouring features of one kind with one table each; None if ids already are rows."""
    last = first + len(partitions)
    hashes = [p for p in partitions if isinstance(p, Hash)]
    head_hashes = [p for p in partitions if isinstance(p, HeadHash)]
    heads = [p for p in partitions if isinstance(p, Head)]
    if hashes:
        return Modulo(first, last, moduli=[p.buckets for p in hashes])
    if head_hashes:
        added = _added([p.added for p in head_hashes], [p.head + p.buckets for p in head_hashes])
        moduli = [p.buckets for p in head_hashes]
        return HeadModulo(first, last, added, heads=[p.head for p in head_hashes], moduli=moduli)
    added = _added([p.added for p in heads], [p.head for p in heads])
    return HeadAlone(first, last, added, heads=[p.head for p in heads]) if heads else None


def joint_stage(first: int, partitions: Sequence[Partition]) -> Stage:
    """Returns the stage for features of one kind with several tables each: all first ones, then all second ones, ..."""
    count, example = len(partitions), partitions[0]
    if isinstance(example, Tail):
        tails = [p for p in partitions if isinstance(p, Tail)]
        return TailAlone(joint_stage(first, [p.inner for p in tails]), tails)
    if isinstance(example, QuotientRemainder):
        divisors = [p.divisor for p in partitions if isinstance(p, QuotientRemainder)]
        return Digits(first, count, divisors, lowest_last=True)
    rows = [number for numbers in zip(*(p.table_rows for p in partitions), strict=True) for number in numbers]
    if isinstance(example, MixedRadix):
        return Digits(first, count, rows[:-count])
    if isinstance(example, ChineseRemainder):
        return Modulo(first, first + len(rows), moduli=rows)
    assert isinstance(example, DoubleHash)
    return Hashes(first, first + len(rows), seeds=[0] * count + [1] * count, moduli=rows)


def per_value(numbers_K: Tensor, lengths: list[int]) -> Tensor:
    """Returns one number per value, given one per key and the number of values of each key."""
    # From pinned memory, as a GPU would be waited for otherwise.
    on_gpu = numbers_K.is_cuda
    repeats = torch.tensor(lengths, pin_memory=on_gpu).to(numbers_K.device, non_blocking=on_gpu)
    return numbers_K.repeat_interleave(repeats, output_size=sum(lengths))


def repeated(numbers_K: Tensor, sizes: list[int], *, like: Tensor) -> Tensor:
    """Returns one number for each piece of dimension 0 of `like`, of its dtype, shaped to broadcast against it."""
    if like.dim() == 2:  # one row per key
        return numbers_K.to(like.dtype)[:, None]
    return per_value(numbers_K, sizes).to(like.dtype)
