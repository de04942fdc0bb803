"""Packs rows of floats into `StoredRows`, and trained copies of tables back into the stored format."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.rules.quantize import CHUNK_VALUES, INTEGER_BITS, encode_rows, row_bytes
from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows

# Between these, float16 is exact enough: a range of 2**-4 in 255 steps is still a normal number.
_SMALLEST, _LARGEST = 2.0**-4, 2.0**12


def pack(values: Tensor, bits: int, *, search: bool = False) -> StoredRows:
    """Packs a whole matrix of floats, [N, D]."""
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
) -> StoredRows:
    """Packs consecutive pieces.

    Args:
        chunks: which rows, and their float32 values.
        shape: N and D.
        bits: 32, 16, 8, 4 or 2.
        largest: a bound of the absolute values, which determines the exponent.
        search: see `quantize.encode_rows`.
    """
    num_rows, dim = shape
    exponent = 0 if bits == 32 else fitting_exponent(largest)
    dtype = {32: torch.float32, 16: torch.float16}.get(bits, torch.uint8)
    packed = torch.empty(num_rows, row_bytes(dim, bits) // dtype.itemsize, dtype=dtype)
    for part, values in chunks:
        scaled = values * 2.0**exponent if exponent else values
        packed[part] = encode_rows(scaled, bits, search=search) if bits in INTEGER_BITS else scaled.to(dtype)
    return StoredRows(packed, dim, bits, exponent)


def fitting_exponent(largest: float) -> int:
    """Returns the power of two that scales values up to `largest` to near 1, or 0 if they need no scaling."""
    if largest == 0 or _SMALLEST <= largest <= _LARGEST:
        return 0
    return max(-64, min(64, -math.frexp(largest)[1]))


@torch.no_grad()
def stored_like(trained: Compressed, before: Compressed) -> Compressed:
    """Packs `trained`, a trained copy made by `before.trainable()`, in the format of `before`.

    Rows that training did not change keep their bits; the others are rounded again.

    Raises:
        ValueError: if a value is not finite, or out of the range of its format.
    """
    after = copy.deepcopy(before)
    for was, now, found in zip(before.modules(), after.modules(), trained.modules(), strict=True):
        if isinstance(was, StoredRows):
            assert isinstance(now, StoredRows)
            assert isinstance(found, StoredRows)
            now.values = _rounded(was, found.values)
        elif isinstance(was, Compressed):
            for name, buffer in now.named_buffers(recurse=False):
                buffer.copy_(getattr(found, name))
    return after


def _rounded(before: StoredRows, values: Tensor) -> Tensor:
    stored = before.values.clone()
    for ids in torch.arange(before.num_rows).split(max(1, CHUNK_VALUES // before.dim)):
        moved = ids[(before(ids) != values[ids]).any(1)]
        if moved.numel() == 0:
            continue
        scaled = values[moved].detach() * 2.0**before.exponent
        low, high = torch.aminmax(scaled)
        most = torch.finfo(torch.float32 if before.bits == 32 else torch.float16).max
        if not (float(low) >= -most and float(high) <= most):
            raise ValueError(
                f"trained rows from {float(low):.4g} to {float(high):.4g} cannot be stored at {before.bits} bits"
            )
        stored[moved] = encode_rows(scaled, before.bits) if before.bits in INTEGER_BITS else scaled.to(stored.dtype)
    return stored
