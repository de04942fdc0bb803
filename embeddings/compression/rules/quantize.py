"""Rows of numbers as 8, 4 or 2 bits each: the row-wise format of FBGEMM with half-precision scale and bias.

A row of D columns is `D * bits / 8` bytes of codes, the first column in the lowest bits, and then scale and bias as two
float16: 20 bytes for 8 bits at D = 16, 12 for 4 and 8 for 2 (a float32 row has 64). A value is `code * scale + bias`.
`torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf` writes this format and torchrec.quant serves from it; the
older `FloatToFused8BitRowwiseQuantized` has scale and bias in float32 and needs 24 bytes.

FBGEMM needs an even number of code bytes. Other rows are padded with copies of the first column, which are cut off
again.

Dimensions: N rows, D columns, P columns with padding.
"""

import torch
from torch import Tensor

INTEGER_BITS = (8, 4, 2)
SCALE_BIAS_BYTES = 4
# The shares of a row's range that a search cuts off at either end.
_SHRINK = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2)
# Values read at once: 1 MB of float32, to keep temporaries small.
CHUNK_VALUES = 2**18


def padded_dim(dim: int, bits: int) -> int:
    """Returns the columns stored for `dim` columns: the next number that fills an even number of bytes."""
    unit = 16 // bits
    return -(-dim // unit) * unit


def row_bytes(dim: int, bits: int) -> int:
    """Returns the bytes of one row of `dim` columns, with scale and bias; bits 32 and 16 are plain floats."""
    if bits in (32, 16):
        return dim * bits // 8
    if bits not in INTEGER_BITS:
        raise ValueError(f"{bits=} must be one of 32, 16, 8, 4, 2")
    return padded_dim(dim, bits) * bits // 8 + SCALE_BIAS_BYTES


def encode_rows(rows_ND: Tensor, bits: int, *, search: bool = False) -> Tensor:
    """Quantizes every row over its own range.

    Args:
        rows_ND: float32, finite, with absolute values within float16.
        bits: 8, 4 or 2.
        search: narrow the range of each row where that lowers its squared error.

    Returns:
        uint8 [N, row_bytes(D, bits)]; without search, bitwise equal to FBGEMM's.
    """
    missing = padded_dim(rows_ND.shape[1], bits) - rows_ND.shape[1]
    rows_NP = rows_ND if missing == 0 else torch.cat([rows_ND, rows_ND[:, :1].expand(-1, missing)], 1)
    low, high = torch.aminmax(rows_NP, dim=1, keepdim=True)
    if search:
        low, high = _search_range(rows_ND, low, high, bits)
    scale, bias = _scale_and_bias(low, high, bits)
    packed = _pack(_codes(rows_NP, scale, bias, bits).to(torch.uint8), bits)
    scale_bias = torch.cat([scale, bias], 1).half().view(torch.uint8)
    return torch.cat([packed, scale_bias], 1)


def decode_rows(packed: Tensor, bits: int, dim: int) -> Tensor:
    """Returns the float32 [N, D] values of rows that `encode_rows` wrote; D = `dim`."""
    # Few operations: an exported graph repeats them for every table.
    bytes_of_codes, scale_bias = packed.split([packed.shape[1] - SCALE_BIAS_BYTES, SCALE_BIAS_BYTES], 1)
    scale, bias = scale_bias.contiguous().view(torch.float16).float().split(1, 1)
    codes = _unpack(bytes_of_codes, bits)
    return (codes if codes.shape[1] == dim else codes[:, :dim]) * scale + bias


def _scale_and_bias(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Returns scale and bias rounded to float16, so that codes are chosen for the values that will be read."""
    bias = low.half().float()
    span = high - bias
    scale = torch.where(span == 0, torch.ones_like(span), span / (2**bits - 1)).half().float()
    return torch.where(torch.isinf(1 / scale), torch.ones_like(scale), scale), bias


def _codes(rows_NP: Tensor, scale: Tensor, bias: Tensor, bits: int) -> Tensor:
    return ((rows_NP - bias) * (1 / scale)).round_().clamp_(0, 2**bits - 1)


def _search_range(rows_ND: Tensor, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Returns the best of a small grid of ranges inside each row's range."""
    best_low, best_high, least = low, high, torch.full_like(low, torch.inf)
    width = high - low
    for cut_low in _SHRINK:
        for cut_high in _SHRINK:
            tried = (low + cut_low * width, high - cut_high * width)
            scale, bias = _scale_and_bias(*tried, bits)
            error = (_codes(rows_ND, scale, bias, bits).mul_(scale).add_(bias).sub_(rows_ND)).square_()
            error = error.sum(1, keepdim=True)
            better = error < least
            best_low, best_high = torch.where(better, tried[0], best_low), torch.where(better, tried[1], best_high)
            least = torch.where(better, error, least)
    return best_low, best_high


def _pack(codes_NP: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return codes_NP
    per_byte = 8 // bits
    parts = codes_NP.unflatten(1, (-1, per_byte))
    packed = parts[..., 0].clone()
    for place in range(1, per_byte):
        packed |= parts[..., place] << (place * bits)
    return packed


def _unpack(packed: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return packed
    mask = 2**bits - 1
    return torch.stack([(packed >> shift) & mask for shift in range(0, 8, bits)], 2).flatten(1)
