"""Grafting: each block takes Shampoo's direction with the step length of a diagonal (elementwise) method.

The diagonal method's second moment is `V <- beta2 V + (1 - beta2) G^2` (AdaGrad: the plain sum), its step
`H / (sqrt(V / (1 - beta2^t)) + epsilon)` with H the filtered gradient; epsilon is added after the root, as in
torch.optim.
Source: Agarwal et al., arXiv:2002.11803; Anil et al., arXiv:2002.09018.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dlrmctl.optim.shampoo.configs import AdaGradGrafting, AdamGrafting, Grafting, RMSpropGrafting, SGDGrafting
from dlrmctl.optim.shampoo.factors import FAILED, FactorStack, all_finite
from dlrmctl.optim.shampoo.memory import stack_view


def filter_gradient(grad: Tensor, average: Tensor, *, beta1: float, beta3: float, correction: float) -> None:
    """Replaces G by H, in place: the average `m <- beta1 m + (1 - beta1) G` with bias correction.

    With another `beta3` it is `beta3 m + (1 - beta3) G` of the old average, similar to Nesterov's momentum.
    """
    if beta3 == beta1:
        average.lerp_(grad, 1 - beta1)
        torch.div(average, correction, out=grad)
    else:
        filtered = average.lerp(grad, 1 - beta3)
        average.lerp_(grad, 1 - beta1)
        torch.div(filtered, correction, out=grad)


def has_second_moment(config: Grafting | None) -> bool:
    """Whether the method keeps a second moment of the gradient."""
    return config is not None and not isinstance(config, SGDGrafting)


def update_second_moment(second_moment: Tensor, grad: Tensor, config: Grafting) -> None:
    """Adds the squared gradient to `V`, in place, for any shape."""
    if isinstance(config, AdaGradGrafting):
        second_moment.addcmul_(grad, grad)
    elif isinstance(config, RMSpropGrafting | AdamGrafting):
        weight = 1.0 if config.drop_weighting_factor_on_gsquare else 1 - config.beta2
        second_moment.mul_(config.beta2).addcmul_(grad, grad, value=weight)


def grafted_step(
    filtered_grad: Tensor, second_moment: Tensor, config: Grafting, *, correction: float, out: Tensor
) -> Tensor:
    """Writes the diagonal method's direction for `filtered_grad` to `out`, which must not be another argument.

    `correction` is Adam's `1 - beta2^t`; the others do not use it.
    """
    if isinstance(config, SGDGrafting):
        return out.copy_(filtered_grad)
    torch.sqrt(second_moment, out=out)
    if isinstance(config, AdamGrafting) and not config.drop_weighting_factor_on_gsquare:
        out.div_(correction**0.5)
    return torch.div(filtered_grad, out.add_(config.epsilon), out=out)


class BlockGroup:
    """The blocks of one shape: their numbers in the shard, their place in its flat buffers, and their factors.

    Args:
        rows: numbers of the blocks in the shard.
        elements: their slice of every flat buffer.
        grad_N, grafted_N: the shard's scratch; `grafted_N` is empty without grafting. Viewed as [K, *S] by
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


def graft(parts: Sequence[BlockGroup], root_status_K: Tensor) -> None:
    """Scales every direction to the length of its block's grafted step; a block without direction takes that step.

    Args:
        parts: all parts of a shard; `out_KS` is changed.
        root_status_K: status of their blocks, in order, on the CPU.
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
    if not finite or FAILED in root_status_K.tolist():
        places = [(part, row) for part in parts for row in range(part.stack.num_blocks)]
        for k in lost_K.nonzero().flatten().tolist():
            part, row = places[k]
            part.out_KS[row] = part.grafted_KS[row]


def graft_on_device(parts: Sequence[BlockGroup], root_status_K: Tensor) -> None:
    """Does what `graft` does without reading a number from the device; lengths are float64 in any case."""
    own_K = _lengths([part.out_KS.double() for part in parts])
    wanted_K = _lengths([part.grafted_KS.double() for part in parts])
    ratio_K = (wanted_K / (own_K + 1e-16)).to(parts[0].out_KS.dtype)
    lost_K = (own_K + ratio_K).isfinite().logical_not()
    if FAILED in root_status_K.tolist():  # on the CPU
        lost_K |= (root_status_K == FAILED).to(lost_K.device)
    numbers = [part.stack.num_blocks for part in parts]
    for part, part_ratio_K, part_lost_K in zip(parts, ratio_K.split(numbers), lost_K.split(numbers), strict=True):
        shape = (-1, *[1] * len(part.stack.shape))
        part.out_KS.mul_(part_ratio_K.view(shape))
        torch.where(part_lost_K.view(shape), part.grafted_KS, part.out_KS, out=part.out_KS)


def stop_lost(parts: Sequence[BlockGroup]) -> None:
    """Zeroes the direction of a block if it overflowed and there is no grafted step."""
    for part in parts:
        lost_K = all_finite(part.out_KS).logical_not()
        part.out_KS.masked_fill_(lost_K.view(-1, *[1] * len(part.stack.shape)), 0)


def _lengths(stacks: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.linalg.vector_norm(tensor_KS.flatten(1), dim=1) for tensor_KS in stacks])
