"""A compressed table after training, stored as it was before: the same rule, codes and bits."""

import copy

import torch
from torch import Tensor

from embeddings.compression.quantize import INTEGER_BITS, encode_rows
from embeddings.compression.rules import Compressed, Rows
from embeddings.compression.source import CHUNK_VALUES


@torch.no_grad()
def stored_like(trained: Compressed, before: Compressed, *, search: bool = False) -> Compressed:
    """The numbers of `trained`, a trained copy made by `before.trainable()`, in the format and bytes of `before`.

    Rows that no step moved keep their bits; the others are rounded again.

    Args:
        search: see `quantize.encode_rows`.

    Raises:
        ValueError: if a value is not finite, or beyond what its format holds.
    """
    after = copy.deepcopy(before)
    for was, now, found in zip(before.modules(), after.modules(), trained.modules(), strict=True):
        if isinstance(was, Rows):
            assert isinstance(now, Rows)
            assert isinstance(found, Rows)
            now.values = _rounded(was, found.values, search)
        elif isinstance(was, Compressed):
            for name, parameter in found.named_parameters(recurse=False):
                getattr(now, name).copy_(parameter)
    return after


def _rounded(before: Rows, values: Tensor, search: bool) -> Tensor:
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
        stored[moved] = (
            encode_rows(scaled, before.bits, search=search) if before.bits in INTEGER_BITS else scaled.to(stored.dtype)
        )
    return stored
