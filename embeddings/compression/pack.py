"""Float rows into stored `Rows` of a number of bits, piece by piece."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from embeddings.compression.quantize import INTEGER_BITS, encode_rows, row_bytes
from embeddings.compression.rules import Rows
from embeddings.compression.source import CHUNK_VALUES

# Between these the float16 of the formats is exact enough: a range of 2**-4 in 255 steps is still a normal number.
_SMALLEST, _LARGEST = 2.0**-4, 2.0**12


def pack(values: Tensor, bits: int, *, search: bool = False) -> Rows:
    """`Rows` of a whole matrix of floats, [N, D]."""
    step = max(1, CHUNK_VALUES // values.shape[1])
    parts = ((slice(i, i + step), values[i : i + step].float()) for i in range(0, len(values), step))
    low, high = torch.aminmax(values)
    return pack_chunks(parts, values.shape, bits, max(-float(low), float(high)), search=search)


def pack_chunks(
    chunks: Iterable[tuple[slice, Tensor]],
    shape: tuple[int, ...],
    bits: int,
    largest: float,
    *,
    search: bool = False,
) -> Rows:
    """`Rows` out of consecutive pieces.

    Args:
        chunks: which rows, and their float32 values.
        shape: N and D.
        bits: 32, 16, 8, 4 or 2.
        largest: a bound of the absolute values, for the choice of the exponent.
        search: see `quantize.encode_rows`.
    """
    num_rows, dim = shape
    exponent = 0 if bits == 32 else fitting_exponent(largest)
    dtype = {32: torch.float32, 16: torch.float16}.get(bits, torch.uint8)
    packed = torch.empty(num_rows, row_bytes(dim, bits) // dtype.itemsize, dtype=dtype)
    for part, values in chunks:
        scaled = values * 2.0**exponent if exponent else values
        packed[part] = encode_rows(scaled, bits, search=search) if bits in INTEGER_BITS else scaled.to(dtype)
    return Rows(packed, dim, bits, exponent)


def fitting_exponent(largest: float) -> int:
    """The power of two that brings values up to `largest` near 1, or 0 where they do well as they are."""
    if largest == 0 or _SMALLEST <= largest <= _LARGEST:
        return 0
    return max(-64, min(64, -math.frexp(largest)[1]))
