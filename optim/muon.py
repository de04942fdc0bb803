"""Muon: steps by the orthogonal factor of the momentum, for the matrices of hidden layers.

    m <- mu m + (1 - mu) g        u = mu m + (1 - mu) g   (Nesterov)        w <- (1 - lr decay) w - lr s polar(u)

For u = U S V^T the polar factor is U V^T: every direction that the momentum has moves equally far. It is steepest
descent in the spectral norm, whose dual, the sum of singular values, measures gradients and their noise.

With s = 0.2 sqrt(max(M, N)), a step changes the weights of an M x N matrix by 0.2 lr in the root mean square, about as
far as AdamW does, so that one learning rate serves both.

Biases, and the first and last layer of a network, are not for Muon: they take AdamW's steps.

Sources: Jordan et al., https://kellerjordan.github.io/posts/muon (the method, and which weights it is for);
Liu et al., arXiv:2502.16982 (weight decay, and the scale s).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlrmctl.optim.closure import loss_of

# Of the polynomial a x + b x^3 + c x^5, with a large slope at 0. Five times over, it takes singular values above 0.002
# of the Frobenius norm into [0.68, 1.21], not to 1, which Jordan et al. found to be no worse.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
_RMS = 0.2  # of AdamW's usual steps, in learning rates
_SMALLEST = 1e-12  # norm that is scaled to 1; a float32 norm below 1e-19 would be rounded to 0


def polar_factor(matrix_MN: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Returns about U V^T of a matrix U S V^T, by Newton-Schulz iterations: products of matrices alone.

    Singular values of the result lie in [0.68, 1.21] where those of the matrix are above 0.002 of its Frobenius norm;
    smaller ones stay smaller. A matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    x_MN = matrix_MN.T if matrix_MN.shape[0] > matrix_MN.shape[1] else matrix_MN  # the shorter side first
    x_MN = x_MN / x_MN.norm().clamp(min=_SMALLEST)
    for _ in range(iterations):
        gram_MM = x_MN @ x_MN.T
        x_MN = torch.addmm(x_MN, torch.addmm(gram_MM, gram_MM, gram_MM, beta=b, alpha=c), x_MN, beta=a)
    return x_MN.T if matrix_MN.shape[0] > matrix_MN.shape[1] else x_MN


def polar_products(shape: tuple[int, int]) -> int:
    """The multiplications of `polar_factor` for a matrix of this shape."""
    short, long = sorted(shape)
    return ITERATIONS * (2 * short * short * long + short**3)


def polar_scratch(shape: tuple[int, int]) -> int:
    """The numbers that a step with a matrix of this shape allocates."""
    short, long = sorted(shape)
    return 3 * short * long + 2 * short * short


class Muon(Optimizer):
    """Steps by Muon for matrices and by AdamW for all other parameters.

    Args:
        matrices: matrices of hidden layers.
        others: biases, and weights of the first and last layers.
        lr: learning rate of both.
        momentum: mu, in [0, 1).
        nesterov: whether the step looks ahead.
        weight_decay: decoupled; shrinks weights by `lr * weight_decay` before the step.
        betas, eps: of AdamW.

    Raises:
        ValueError: if a number is out of range, or one of `matrices` is none.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor] = (),
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        matrices, others = list(matrices), list(others)
        if not lr >= 0 or not weight_decay >= 0:
            raise ValueError(f"{lr=} and {weight_decay=} must be at least 0")
        if not 0 <= momentum < 1 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{momentum=} and {betas=} must lie in [0, 1)")
        if wrong := [tuple(p.shape) for p in matrices if p.dim() != 2]:
            raise ValueError(f"a parameter of the shape {wrong[0]} is not a matrix; pass it with `others`")
        groups = [{"params": matrices, "orthogonal": True}, {"params": others, "orthogonal": False}]
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
        }
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step; returns the closure's loss. A parameter without a gradient does not change."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                (self._step_matrix if group["orthogonal"] else self._step_adam)(p, group)
        return loss

    def _step_matrix(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state, mu = self.state[p], group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(p.grad, 1 - mu)
        direction = torch.lerp(p.grad, momentum, mu) if group["nesterov"] else momentum
        p.add_(polar_factor(direction), alpha=-group["lr"] * _RMS * math.sqrt(max(p.shape)))

    def _step_adam(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] = torch.zeros((), dtype=torch.float32)
        state["step"] += 1
        step = float(state["step"])
        state["exp_avg"].lerp_(p.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        root = (state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
        p.addcdiv_(state["exp_avg"], root, value=-group["lr"] / (1 - beta1**step))
