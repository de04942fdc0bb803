"""The blocks of one shape in a shard, and the length of their directions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from optim.shampoo.factors import FAILED, FactorStack, all_finite
from optim.shampoo.memory import stack_view


@dataclass(frozen=True)
class Part:
    """The blocks of one shape: which blocks of the shard, where they lie in its flat buffers, and their factors."""

    rows: slice
    elements: slice
    stack: FactorStack

    def blocks(self, flat_N: Tensor) -> Tensor:
        return stack_view(flat_N[self.elements], self.stack.num_blocks, self.stack.shape)

    def graft(self, out_N: Tensor, grafted_N: Tensor) -> None:
        """Gives every block of `out_N` the length of its grafted step; a block without direction becomes that step."""
        out_KS, grafted_KS = self.blocks(out_N), self.blocks(grafted_N)
        own_K, wanted_K = _lengths(out_KS), _lengths(grafted_KS)
        if not (own_K + wanted_K).isfinite().all():  # squares overflow long before values do
            own_K, wanted_K = _lengths(out_KS.double()), _lengths(grafted_KS.double())
        ratio_K = (wanted_K / (own_K + 1e-16)).to(out_KS.dtype)
        out_KS.mul_(ratio_K.view(-1, *[1] * len(self.stack.shape)))
        lost_K = (own_K + ratio_K).isfinite().logical_not().cpu() | (self.stack.root_status == FAILED)
        for row in lost_K.nonzero().flatten().tolist():
            out_KS[row] = grafted_KS[row]

    def stop_lost(self, out_N: Tensor) -> None:
        """Without grafting: a block whose direction overflowed does not move."""
        out_KS = self.blocks(out_N)
        for row in all_finite(out_KS).logical_not().nonzero().flatten().tolist():
            out_KS[row] = 0


def _lengths(tensor_KS: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor_KS.flatten(1), dim=1)
