"""Draws ids from 32-bit words, with equal results on all machines.

`Alias` draws from any small distribution with one word and integer arithmetic. Large tables follow a power law in
scrambled order, in a few kilobytes per table of any size: `PowerLaw` makes ranks of words by a quantile function of
4,096 straight pieces, `Scramble` makes ids of ranks by a bijection. The pieces are computed by multiplications and
divisions only, whose rounding IEEE 754 defines; the rest is integers.
"""

from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from dlrmctl.data.randomness import Use, words

EXPONENT = 1.05
_INVERSE = -20  # 1 / (1 - EXPONENT): quantiles are whole powers
MISSING_RANK = -1
_PIECE_BITS, _REST_BITS = 12, 20  # of a word
_FIXED_BITS = 16  # of a quantile, after the point
MAX_IDS = 1 << 26  # the widest piece has as many ids as a word's rest can tell apart


@dataclass(frozen=True)
class Alias:
    """A distribution over the numbers 0 to n - 1, exact to 2**-32.

    Attributes:
        shift: bits of a word below those that choose a slot.
        cuts: uint32 per slot: words with a smaller rest stay with the slot's own number.
        others: int32 per slot: the number that the remaining words give.

    Source: Walker, "An efficient method for generating discrete random variables" (1977).
    """

    shift: int
    cuts: np.ndarray
    others: np.ndarray

    @classmethod
    def of(cls, weights: np.ndarray) -> "Alias":
        """Returns the distribution proportional to `weights`, 2 to 2**24 floats >= 0 with a positive sum."""
        bits = (len(weights) - 1).bit_length()
        whole = np.zeros(1 << bits, dtype=np.int64)
        whole[: len(weights)] = np.round(weights / weights.sum() * 2.0**32)
        whole[np.argmax(whole)] += (1 << 32) - int(whole.sum())
        room = 1 << (32 - bits)
        left = whole.tolist()
        cuts, others = [room] * len(left), list(range(len(left)))
        small = [slot for slot, weight in enumerate(left) if weight < room]
        large = [slot for slot, weight in enumerate(left) if weight >= room]
        while small:
            low, high = small.pop(), large[-1]
            cuts[low], others[low] = left[low], high
            left[high] -= room - left[low]
            if left[high] < room:
                small.append(large.pop())
        # A full slot returns its own number in both cases, so a cut may lose its 33rd bit.
        return cls(32 - bits, np.minimum(cuts, (1 << 32) - 1).astype(np.uint32), np.array(others, dtype=np.int32))

    def draw(self, words: np.ndarray) -> np.ndarray:
        """Returns one number per word, int32.

        Args:
            words: uint32, any shape, uniform.
        """
        slots = (words >> np.uint32(self.shift)).astype(np.int32)
        rests = words & np.uint32((1 << self.shift) - 1)
        return np.where(rests < self.cuts[slots], slots, self.others[slots])


@dataclass(frozen=True)
class PowerLaw:
    """Ranks from 0 on: rank i has a share of the integral of x**-1.05 from i + 1 to i + 2.

    Attributes:
        starts: int64 per piece, its first quantile in units of 2**-16; 0 where the value is missing.
        widths: int64 per piece, the distance to the next one.
    """

    starts: np.ndarray
    widths: np.ndarray

    @classmethod
    def of(cls, num_ids: int, missing: float) -> "PowerLaw":
        """Returns a power law over `num_ids` ranks, at most `MAX_IDS`, after a share `missing` of missing values."""
        missing_pieces = int(missing * (1 << _PIECE_BITS))
        pieces = (1 << _PIECE_BITS) - missing_pieces
        # The probability above x falls as x**-0.05, so x is the -20th power of a uniform number.
        last = float((Decimal(num_ids) + 1) ** (1 / Decimal(_INVERSE)))  # pow rounds differently between machines
        even = 1.0 - (1.0 - last) * (np.arange(pieces + 1) / pieces)
        fourth = (even * even) * (even * even)
        eighth = fourth * fourth
        quantiles = np.floor(2.0**_FIXED_BITS / (eighth * eighth * fourth)).astype(np.int64)
        quantiles[-1] = num_ids + 1 << _FIXED_BITS
        gap = np.zeros(missing_pieces, dtype=np.int64)
        return cls(np.concatenate((gap, quantiles[:-1])), np.concatenate((gap, np.diff(quantiles))))

    def draw(self, words: np.ndarray) -> np.ndarray:
        """Returns one rank per word, int64; `MISSING_RANK` where the value is missing.

        Args:
            words: uint32, any shape, uniform.
        """
        pieces = words >> np.uint32(_REST_BITS)
        quantiles = self.widths[pieces]
        quantiles *= words & np.uint32((1 << _REST_BITS) - 1)
        quantiles >>= _REST_BITS
        quantiles += self.starts[pieces]
        quantiles >>= _FIXED_BITS
        quantiles -= 1
        return quantiles


class Scramble:
    """A bijection of the numbers 0 to n - 1 that looks random.

    Args:
        count: n, at most 2**32.
        seed, column: the key of the bijection.

    Source: cycle walking, Black and Rogaway, "Ciphers with arbitrary finite domains" (2002): a bijection of the next
    power of two, repeated until the number is below n.
    """

    def __init__(self, count: int, seed: int, column: int) -> None:
        bits = max(count - 1, 1).bit_length()
        self._count = count
        self._mask = np.uint32((1 << bits) - 1)
        self._shift = np.uint32((bits + 1) // 2)
        keys = words(4, seed, Use.ID_ORDER, column).astype(np.uint32)
        self._first, self._factors = keys[0], [key | np.uint32(1) for key in keys[1:]]

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Maps each number, uint32, one dimension."""
        mixed = self._mix(numbers.astype(np.uint32))
        outside = np.flatnonzero(mixed >= self._count)
        while len(outside):
            again = self._mix(mixed[outside])
            mixed[outside] = again
            outside = outside[again >= self._count]
        return mixed

    def _mix(self, numbers: np.ndarray) -> np.ndarray:
        # Adding, multiplying by an odd number and xor with a right shift are all invertible in this many bits.
        mixed = numbers + self._first
        for factor in self._factors:
            mixed &= self._mask
            mixed ^= mixed >> self._shift
            mixed *= factor
        mixed &= self._mask
        mixed ^= mixed >> self._shift
        return mixed
