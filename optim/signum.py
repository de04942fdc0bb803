"""Signum: steps by the sign of the momentum.

    m <- beta m + (1 - beta) g        w <- (1 - lr decay) w - lr sign(m)

Every weight moves by the learning rate, whatever the size of its gradient: steepest descent in the largest change of a
weight (l-infinity), whose dual norm, l1, measures gradients and their noise.

Source: Bernstein et al., arXiv:1802.04434.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlrmctl.optim.closure import loss_of


class Signum(Optimizer):
    """Steps by the sign of an average of gradients.

    Args:
        params: parameters, or groups of them.
        lr: the change of every weight in a step.
        beta: decay of the average, in [0, 1); 0 steps by the sign of the gradient (signSGD).
        weight_decay: decoupled; shrinks weights by `lr * weight_decay` before the step.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        *,
        beta: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        if not lr >= 0 or not weight_decay >= 0:
            raise ValueError(f"{lr=} and {weight_decay=} must be at least 0")
        if not 0 <= beta < 1:
            raise ValueError(f"{beta=} must lie in [0, 1)")
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step; returns the closure's loss. A parameter without a gradient does not change."""
        loss = loss_of(closure)
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for p in weights:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in weights]
            torch._foreach_lerp_(momenta, [p.grad for p in weights], 1 - group["beta"])
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, torch._foreach_sign(momenta), alpha=-group["lr"])
        return loss
