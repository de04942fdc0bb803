"""Packed texts of values with their hashes, which a preparation keeps to name rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_TEXT_BYTES = 256  # of a text that is kept; of a longer one the beginning and the end are
LENGTH_TYPE = np.dtype("<u2")
_TAIL_BYTES = 80
_GAP = "…".encode()


@dataclass(frozen=True)
class HashedTexts:
    """K texts, of which some may be equal.

    Attributes:
        words_K: uint64, the hash of each.
        lengths_K: uint16, bytes of each, at least 1.
        content: UTF-8, one after another.
    """

    words_K: np.ndarray
    lengths_K: np.ndarray
    content: bytes

    def __len__(self) -> int:
        return len(self.words_K)

    def pick(self, chosen: np.ndarray) -> "HashedTexts":
        """Returns some of the texts, by their numbers."""
        ends_K = np.cumsum(self.lengths_K, dtype=np.int64)
        return HashedTexts(self.words_K[chosen], self.lengths_K[chosen], texts_at(self.content, ends_K, chosen))

    @classmethod
    def pack(cls, words_K: np.ndarray, texts_K: Sequence[bytes]) -> "HashedTexts":
        """Packs texts in UTF-8, long ones shortened."""
        lengths_K = np.fromiter(map(len, texts_K), np.int64, len(texts_K))
        if lengths_K.max(initial=0) > MOST_TEXT_BYTES:
            texts_K = [text if len(text) <= MOST_TEXT_BYTES else _shortened(text) for text in texts_K]
            lengths_K = np.fromiter(map(len, texts_K), np.int64, len(texts_K))
        return cls(words_K, lengths_K.astype(LENGTH_TYPE), b"".join(texts_K))


def _shortened(text: bytes) -> bytes:
    """As many whole characters of the beginning and the end as fit, around an ellipsis."""
    head, tail = MOST_TEXT_BYTES - len(_GAP) - _TAIL_BYTES, len(text) - _TAIL_BYTES
    while text[head] & 0xC0 == 0x80:  # not the first byte of a character
        head -= 1
    while text[tail] & 0xC0 == 0x80:
        tail += 1
    return b"%b%b%b" % (text[:head], _GAP, text[tail:])


def texts_at(content: bytes, ends_K: np.ndarray, chosen: np.ndarray) -> bytes:
    """Returns some of consecutive texts, in the order of `chosen`.

    Args:
        content: all texts.
        ends_K: int64, the end of each text.
        chosen: numbers of texts.
    """
    ends = ends_K[chosen]
    starts = np.where(chosen > 0, ends_K[chosen - 1], 0)
    return b"".join([content[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])
