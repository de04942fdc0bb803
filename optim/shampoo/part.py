"""The blocks of one shape in a shard, and the length of their directions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from optim.shampoo.factors import FAILED, FactorStack, all_finite
from optim.shampoo.memory import stack_view


class Part:
    """The blocks of one shape: which blocks of the shard, where they lie in its flat buffers, and their factors.

    Args:
        rows: the blocks, among those of the shard.
        elements: their part of every flat buffer.
        grad_N, grafted_N: the shard's scratch; `grafted_N` is empty without grafting. Seen as [K, *S] by
            `grad_KS`, `grafted_KS` and, after `set_out`, `out_KS`.
    """

    def __init__(self, rows: slice, elements: slice, stack: FactorStack, grad_N: Tensor, grafted_N: Tensor) -> None:
        self.rows, self.stack = rows, stack
        self._elements = elements
        self.grad_KS = self._blocks(grad_N)
        self.grafted_KS = self._blocks(grafted_N) if elements.stop <= grafted_N.numel() else self.grad_KS[:0]

    def set_out(self, out_N: Tensor) -> None:
        self.out_KS = self._blocks(out_N)

    def _blocks(self, flat_N: Tensor) -> Tensor:
        return stack_view(flat_N[self._elements], self.stack.num_blocks, self.stack.shape)


def graft(parts: Sequence[Part], root_status_K: Tensor) -> None:
    """Gives every direction the length of its block's grafted step; a block without one takes that step itself.

    Args:
        parts: all of a shard; `out_KS` is changed.
        root_status_K: of their blocks, in order, on the CPU.
    """
    own_K, wanted_K = _lengths([part.out_KS for part in parts]), _lengths([part.grafted_KS for part in parts])
    finite = math.isfinite(float((own_K + wanted_K).sum()))
    if not finite:  # squares overflow long before values do
        own_K = _lengths([part.out_KS.double() for part in parts])
        wanted_K = _lengths([part.grafted_KS.double() for part in parts])
    ratio_K = (wanted_K / (own_K + 1e-16)).to(parts[0].out_KS.dtype)
    ratios = ratio_K.split_with_sizes([part.stack.num_blocks for part in parts])
    for part, part_ratio_K in zip(parts, ratios, strict=True):
        part.out_KS.mul_(part_ratio_K.view(-1, *[1] * len(part.stack.shape)))
    lost_K = root_status_K == FAILED
    if not finite:
        lost_K = lost_K | (own_K + ratio_K).isfinite().logical_not().cpu()
    if lost_K.any():
        places = [(part, row) for part in parts for row in range(part.stack.num_blocks)]
        for k in lost_K.nonzero().flatten().tolist():
            part, row = places[k]
            part.out_KS[row] = part.grafted_KS[row]


def stop_lost(parts: Sequence[Part]) -> None:
    """Without grafting: a block whose direction overflowed does not move."""
    for part in parts:
        usable_K = all_finite(part.out_KS)
        if not usable_K.all():
            part.out_KS[~usable_K] = 0


def _lengths(stacks: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.linalg.vector_norm(tensor_KS.flatten(1), dim=1) for tensor_KS in stacks])
