"""Converts the digits of Criteo's fields to numbers, many fields at once.

N rows, K fields of each, I of them dense and F sparse features; R rows of a block; X any shape.

The eight bytes that end where a field ends are one 64-bit word. The bytes before the field become "0", and then a table
gives the number of each pair of digits, or marks it as invalid.
"""

import re
import string
from dataclasses import dataclass

import numpy as np

from dlrmctl.data.formats.lines import MAX_LINE_BYTES
from dlrmctl.data.formats.transforms import LOG

MAX_DIGITS = 8  # of a categorical, and of a word
_BLOCK_BYTES = 1 << 19  # more than a line; the block and its intermediates stay in a core's cache
_MARGIN = b" " * MAX_DIGITS  # around a block: the words of its first and last field extend beyond it
_TAB, _NEWLINE = ord("\t"), ord("\n")
_INTEGER = re.compile(rb"-?[0-9]+")
_NOT_DIGITS = 0x8000
_ANY_NOT_DIGITS = np.uint64(0x8000800080008000)
_ZEROS = np.uint64(0x3030303030303030)
# By the length of a field: its bytes of a word. The first byte of a word is its lowest one.
_FIELD_BYTES = np.array([(1 << 64) - (1 << 8 * (8 - length)) for length in range(9)], dtype=np.uint64)
# float16 of the integers from -2 on; then of larger integers, and of a missing one.
_ABOVE = 1 << 16
_MISSING = _ABOVE + 1


def transform_dense(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The logarithm (`transforms.LOG`) of the integers that are present and NaN for the others, float16."""
    return np.where(present, LOG.apply(values), np.nan).astype(np.float16)


def _pair_table(digits: str, base: int) -> np.ndarray:
    """Returns the number of two digits, by their 16-bit word, uint16."""
    table = np.full(1 << 16, _NOT_DIGITS, dtype=np.uint16)
    for first in digits:
        for second in digits:
            table[ord(first) | ord(second) << 8] = int(first + second, base)
    return table


_HEXADECIMAL = _pair_table(string.hexdigits, 16)
_DECIMAL = _pair_table(string.digits, 10)
_DENSE = transform_dense(np.arange(-2, _ABOVE), np.arange(-2, _ABOVE) < _ABOVE - 1)


@dataclass(frozen=True)
class Fields:
    """The values of the fields of N rows.

    Attributes:
        labels_N: uint8; zeros if there are no labels.
        dense_IN: float16, transformed; NaN where missing.
        values_FN: uint32; 0 where missing.
        present_FN: bool, False where missing.
        wrong_N: bool, True where a field is invalid; the row's numbers are undefined then.
    """

    labels_N: np.ndarray
    dense_IN: np.ndarray
    values_FN: np.ndarray
    present_FN: np.ndarray
    wrong_N: np.ndarray

    def right(self) -> "Fields":
        """Returns the rows that are not wrong."""
        right_N = ~self.wrong_N
        dense_IN, values_FN, present_FN = (x[:, right_N] for x in (self.dense_IN, self.values_FN, self.present_FN))
        return Fields(self.labels_N[right_N], dense_IN, values_FN, present_FN, self.wrong_N[right_N])


def read_fields(content: bytes, num_fields: int, num_dense: int, *, labelled: bool) -> Fields | None:
    """Parses lines of fields separated by tabs; returns None if a line has another number of fields or is too long.

    Args:
        content: lines, each ended by a newline.
        num_fields: K, the fields of every line.
        num_dense: the number of decimal integers; they follow the label, if there is one.
        labelled: whether the first field is a label; the last fields are hexadecimal.
    """
    num_rows, first_dense = content.count(b"\n"), int(labelled)
    first_sparse = first_dense + num_dense
    num_sparse = num_fields - first_sparse
    fields = Fields(
        np.zeros(num_rows, dtype=np.uint8),
        np.empty((num_dense, num_rows), dtype=np.float16),
        np.empty((num_sparse, num_rows), dtype=np.uint32),
        np.empty((num_sparse, num_rows), dtype=bool),
        np.zeros(num_rows, dtype=bool),
    )
    start = row = 0
    while start < len(content):
        stop = content.rfind(b"\n", start, start + _BLOCK_BYTES) + 1
        text = np.frombuffer(_MARGIN + content[start:stop] + _MARGIN, dtype=np.uint8)
        ends_RK = _field_ends(text, num_fields)
        if ends_RK is None:
            return None
        rows = slice(row, row + len(ends_RK))
        # With the place before the first field, where a previous line would end.
        ends = np.empty((num_fields + 1, len(ends_RK)), dtype=np.int64)
        ends[0, 0], ends[0, 1:], ends[1:] = len(_MARGIN) - 1, ends_RK[:-1, -1], ends_RK.T
        lengths = ends[1:] - ends[:-1]
        lengths -= 1
        ends, wrong_R = ends[1:], fields.wrong_N[rows]
        if labelled:
            digits = text[ends[0] - 1] ^ ord("0")
            fields.labels_N[rows] = digits
            wrong_R |= (digits > 1) | (lengths[0] != 1)
        words = np.frombuffer(text, dtype="<u8", count=len(text) // 8)
        dense, sparse = slice(first_dense, first_sparse), slice(first_sparse, None)
        fields.dense_IN[:, rows] = _read_dense(text, words, ends[dense], lengths[dense], wrong_R)
        fields.values_FN[:, rows] = _read_sparse(words, ends[sparse], lengths[sparse], wrong_R)
        np.not_equal(lengths[sparse], 0, out=fields.present_FN[:, rows])
        start, row = stop, rows.stop
    return fields


def _field_ends(text: np.ndarray, num_fields: int) -> np.ndarray | None:
    """Returns the ends of the fields, int64 [R, K], or None if a line is irregular or there is none."""
    ends = np.flatnonzero((text == _TAB) | (text == _NEWLINE))
    if len(ends) % num_fields or len(ends) == 0:
        return None
    ends_RK = ends.reshape(-1, num_fields)
    found = text[ends_RK]
    regular = (found[:, :-1] == _TAB).all() and (found[:, -1] == _NEWLINE).all()
    regular &= (np.diff(ends_RK[:, -1], prepend=len(_MARGIN) - 1) <= MAX_LINE_BYTES + 1).all()
    return ends_RK if regular else None


def read_integer(field: bytes) -> int | None:
    """Returns a decimal integer of 64 bits, or None if the field is not one."""
    if not _INTEGER.fullmatch(field):
        return None
    digits = field.lstrip(b"-").lstrip(b"0")
    value = int(digits or b"0") if len(digits) < 20 else 1 << 64
    value = -value if field.startswith(b"-") else value
    return value if -(1 << 63) <= value < 1 << 63 else None


def _read_dense(
    text: np.ndarray, words: np.ndarray, ends: np.ndarray, lengths: np.ndarray, wrong_R: np.ndarray
) -> np.ndarray:
    """Returns float16 [I, R]; marks the rows with a field that is not an integer."""
    word = _field_words(words, ends, lengths)
    values, not_digits = _read_words(word, _DECIMAL, 10)
    places = values.view(np.int64)
    places += 2
    np.minimum(places, _ABOVE, out=places)
    np.copyto(places, _MISSING, where=lengths == 0)
    dense = _DENSE.take(places, mode="clip")
    # Short ones with a sign are common and need no loop.
    doubtful = np.nonzero(not_digits | (lengths > MAX_DIGITS) | (places == _ABOVE))
    if len(doubtful[0]):
        signed, length = word[doubtful], lengths[doubtful]
        shift = (8 * (MAX_DIGITS - np.clip(length, 1, MAX_DIGITS))).astype(np.uint64)
        minus = ((signed >> shift) & np.uint64(0xFF)) == ord("-")
        signed ^= np.where(minus, np.uint64(ord("-") ^ ord("0")), np.uint64(0)) << shift
        magnitude, not_digits = _read_words(signed, _DECIMAL, 10)
        number = magnitude.astype(np.int64) * np.where(minus, -1, 1)
        loop = not_digits | (length > MAX_DIGITS) | (minus & (length == 1))
        for i in np.flatnonzero(loop).tolist():
            feature, row = doubtful[0][i], doubtful[1][i]
            end = int(ends[feature, row])
            integer = read_integer(text[end - int(length[i]) : end].tobytes())
            wrong_R[row] |= integer is None
            number[i] = integer or 0
        dense[doubtful] = transform_dense(number, np.ones(len(number), dtype=bool))
    return dense


def _read_sparse(words: np.ndarray, ends: np.ndarray, lengths: np.ndarray, wrong_R: np.ndarray) -> np.ndarray:
    """Returns values [F, R] below 2**32; marks the rows with a field that is not hexadecimal."""
    values, not_digits = _read_words(_field_words(words, ends, lengths), _HEXADECIMAL, 16)
    not_digits |= lengths > MAX_DIGITS
    wrong_R |= not_digits.any(axis=0)
    return values


def _field_words(words: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the last eight characters of each field, padded with "0" in front, uint64 [X]."""
    # They are in two words of the text; reading both is faster than reading an unaligned word.
    place = ends >> 3
    word, before = words.take(place, mode="clip"), words.take(place - 1, mode="clip")
    np.bitwise_and(ends, 7, out=place)
    place <<= 3
    shift = place.view(np.uint64)
    before >>= shift
    np.subtract(np.uint64(64), shift, out=shift)
    word <<= shift  # by 64: zero
    word |= before
    mask = _FIELD_BYTES.take(lengths, mode="clip")
    word &= mask
    np.invert(mask, out=mask)
    mask &= _ZEROS
    word |= mask
    return word


def _read_words(word: np.ndarray, table: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of words of eight digits, uint64 [X], and which words are not digits, bool [X]."""
    pairs = table.take(word.view(np.uint16)).view(np.uint64)  # four numbers below base**2
    not_digits = (pairs & _ANY_NOT_DIGITS) != 0
    pairs *= np.uint64(base**2 << 16 | 1)  # to each number the one before it, times base**2
    pairs >>= np.uint64(16)
    pairs &= np.uint64(0x0000FFFF0000FFFF)
    pairs *= np.uint64(base**4 << 32 | 1)
    pairs >>= np.uint64(32)
    return pairs, not_digits
