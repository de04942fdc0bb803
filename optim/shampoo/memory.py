"""Flat buffers and stacks in which every block starts on an aligned address.

A matrix product may round differently if its operands are aligned differently. With every block aligned, its result
does not depend on the neighbouring blocks, and any number of ranks takes the same step to the bit.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dlrmctl.optim.shampoo.blocks import ParameterBlock, Shape

_ALIGNMENT = 16  # elements: a cache line of 64 bytes in float32, two in float64


def padded(numel: int) -> int:
    return -(-numel // _ALIGNMENT) * _ALIGNMENT


def aligned_zeros(num_blocks: int, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocates zeros of shape [K, *S], with every block aligned."""
    numel = padded(math.prod(shape))
    return stack_view(torch.zeros(num_blocks * numel, dtype=dtype, device=device), num_blocks, shape)


def stack_view(flat_N: Tensor, num_blocks: int, shape: Shape) -> Tensor:
    """Returns a flat buffer of K padded blocks as [K, *S]."""
    return flat_N.view(num_blocks, -1)[:, : math.prod(shape)].view(num_blocks, *shape)


class Layout:
    """The places of consecutive blocks in a flat buffer of `numel` elements."""

    def __init__(self, blocks: Sequence[ParameterBlock]) -> None:
        self.blocks = list(blocks)
        self.starts: list[int] = []
        self.numel = 0
        for block in blocks:
            self.starts.append(self.numel)
            self.numel += padded(block.numel)

    def elements(self, first: int, last: int) -> slice:
        """Returns the slice of the buffer with the blocks `first` to `last`, including padding."""
        return slice(self.starts[first], self.starts[last] + padded(self.blocks[last].numel))

    def views(self, flat_N: Tensor) -> list[Tensor]:
        """Returns one view per block, in its shape."""
        return [
            flat_N[start : start + block.numel].view(block.shape)
            for start, block in zip(self.starts, self.blocks, strict=True)
        ]
