"""Partitions into k tables: the digits of an id in a mixed radix, and its remainders by coprime moduli."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dlrmctl.embeddings.partitions.basic import at_least, ceil_div


@dataclass(frozen=True)
class _Moduli:
    """Complementary tables of as many rows as each modulus.

    Args:
        rows: number of ids.
        moduli: rows of each table, at least 1 each, with a product of at least `rows`.
    """

    rows: int
    moduli: tuple[int, ...]
    complementary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least("rows", self.rows, 1)
        for modulus in self.moduli:
            at_least("modulus", modulus, 1)
        if math.prod(self.moduli) < self.rows:
            raise ValueError(
                f"moduli {self.moduli} have a product of {math.prod(self.moduli)}, too few for rows={self.rows}"
            )

    @property
    def table_rows(self) -> tuple[int, ...]:
        return self.moduli


@dataclass(frozen=True)
class MixedRadix(_Moduli):
    """The digits of an id: P1 = id mod m1, Pj = (id // (m1 ... m(j-1))) mod mj. Two ids differ in at least one digit.

    With two moduli this is the quotient-remainder partition.

    Source: Shi et al., arXiv:1909.02107, "generalized quotient-remainder".
    """

    @classmethod
    def of(cls, rows: int, ways: int, collisions: int) -> "MixedRadix":
        """Makes `ways` tables, the first with a row per `collisions` ids, the others as small as that allows.

        From `rows ** (1 - 1 / ways)` collisions on, all tables have about `rows ** (1 / ways)` rows, the smallest
        possible.
        """
        at_least("ways", ways, 2)
        first = _first_modulus(rows, ways, collisions)
        return cls(rows, (first, *_factors_of_at_least(ceil_div(rows, first), ways - 1)))

    def grown(self, rows: int) -> "MixedRadix":
        """Returns the partition of at least as many rows with the same digits; only the highest takes more values."""
        *low, high = self.moduli
        return MixedRadix(rows, (*low, max(high, ceil_div(rows, math.prod(low)))))

    def __call__(self, ids: Tensor) -> tuple[Tensor, ...]:
        digits = []
        for modulus in self.moduli[:-1]:
            digits.append(ids % modulus)
            ids = ids // modulus
        return (*digits, ids)


@dataclass(frozen=True)
class ChineseRemainder(_Moduli):
    """Pj = id mod mj for pairwise coprime moduli: by the Chinese remainder theorem no two ids agree in all of them.

    Unlike digits, every table spreads neighbouring ids over all of its rows.

    Args:
        moduli: as above, and pairwise coprime.

    Source: Shi et al., arXiv:1909.02107, "Chinese remainder partition".
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.lcm(*self.moduli) != math.prod(self.moduli):
            raise ValueError(f"moduli {self.moduli} must be pairwise coprime")

    @classmethod
    def of(cls, rows: int, ways: int, collisions: int) -> "ChineseRemainder":
        """Makes `ways` tables, sized as those of `MixedRadix.of` or a little larger."""
        at_least("ways", ways, 2)
        first = _first_modulus(rows, ways, collisions)
        small: list[int] = []
        for target in _factors_of_at_least(ceil_div(rows, first), ways - 1):
            small.append(_coprime_from(target, small))
        return cls(rows, (_coprime_from(ceil_div(rows, math.prod(small)), small), *small))

    def __call__(self, ids: Tensor) -> tuple[Tensor, ...]:
        return tuple(ids % modulus for modulus in self.moduli)


def ceil_root(number: int, degree: int) -> int:
    """Returns the smallest integer whose power `degree` is at least `number` >= 1."""
    root = max(1, round(number ** (1 / degree)))  # a guess; powers of integers decide
    while root > 1 and (root - 1) ** degree >= number:
        root -= 1
    while root**degree < number:
        root += 1
    return root


def _first_modulus(rows: int, ways: int, collisions: int) -> int:
    at_least("rows", rows, 1)
    at_least("collisions", collisions, 1)
    return max(ceil_div(rows, collisions), ceil_root(rows, ways))


def _factors_of_at_least(product: int, count: int) -> list[int]:
    """Returns `count` numbers of about the same size whose product is at least `product`, and hardly more."""
    factors = []
    for left in range(count, 0, -1):
        factors.append(ceil_root(product, left))
        product = ceil_div(product, factors[-1])
    return factors


def _coprime_from(start: int, others: list[int]) -> int:
    """Returns the smallest number from `start` on that is coprime to all the others."""
    while any(math.gcd(start, other) != 1 for other in others):
        start += 1
    return start
