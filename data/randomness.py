"""Random words and permutations that depend only on their key.

NumPy guarantees the raw words of its bit generators between versions, but not the results of `Generator`. A position in
a checkpoint must mean the same rows after an upgrade, so only raw words are used here.
"""

from enum import IntEnum

import numpy as np


class Use(IntEnum):
    """The purposes of random words; different purposes of one seed never share a word."""

    BLOCK_ORDER = 1
    ROW_ORDER = 2
    EXAMPLES = 3
    ID_ORDER = 4
    MISSING_LEVELS = 5
    EFFECTS = 6


def words(count: int, seed: int, use: Use, first: int = 0, second: int = 0) -> np.ndarray:
    """Returns `count` random uint64 that depend on the seed, the use and two more numbers, all below 2**64.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (Philox 4x64-10, as NumPy has it).
    """
    # Lists would become float64 if a number needs all 64 bits.
    key = np.array([seed, 0], dtype=np.uint64)
    # The lowest of the four counter words counts the draws.
    counter = np.array([0, first, second, int(use)], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def permutation(count: int, seed: int, use: Use, first: int = 0, second: int = 0) -> np.ndarray:
    """Returns a permutation of 0 to count - 1, int64, that depends on the same arguments; `count` is below 2**32."""
    # Random high bits with the number itself below: no two keys are equal, and sorting gives a permutation.
    low = np.uint64((1 << max(count - 1, 1).bit_length()) - 1)
    keys = words(count, seed, use, first, second)
    keys &= ~low
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    keys &= low
    return keys.view(np.int64)


def mix(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every bit of the input affects every bit of the output.

    Source: the finalizer of MurmurHash3 (Austin Appleby, public domain).
    """
    mixed = values ^ values >> np.uint64(33)
    mixed *= np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    mixed ^= mixed >> np.uint64(33)
    return mixed
