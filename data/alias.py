"""Drawing from a discrete distribution with one 32-bit word and no arithmetic but integers."""

from dataclasses import dataclass

import numpy as np


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
        """The distribution proportional to `weights`, floats >= 0 with a positive sum, between 2 and 2**24 of them."""
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
        # A full slot gives its own number either way, so a cut that needs a 33rd bit may lose it.
        return cls(32 - bits, np.minimum(cuts, (1 << 32) - 1).astype(np.uint32), np.array(others, dtype=np.int32))

    def draw(self, words: np.ndarray) -> np.ndarray:
        """One number per word, int32.

        Args:
            words: uint32, any shape, uniform.
        """
        slots = (words >> np.uint32(self.shift)).astype(np.int32)
        rests = words & np.uint32((1 << self.shift) - 1)
        return np.where(rests < self.cuts[slots], slots, self.others[slots])
