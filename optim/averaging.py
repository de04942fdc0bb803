"""Generalized primal averaging: train between the iterate and its average, evaluate and ship the average.

Three points: z, where the base optimizer steps; x, the running average of z; y between them, where gradients are taken.

    y = mu_y x + (1 - mu_y) z        z' = z + u   (u: the base optimizer's step)        x' = mu_x x + (1 - mu_x) z'

Only y (the parameters themselves) and z are kept. Eliminating x: `y' = y + (1 - mu_x)(z - y) + (1 - mu_x mu_y) u`.
With a constant learning rate it ends where a decayed one does, at any time. Source: arXiv:2512.17131.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


class PrimalAveraging:
    """Wraps any optimizer; between `eval()` and `train()` the parameters hold the average x.

    Args:
        optimizer: the base; its parameters must be float32 or float64, since increments are small.
        train_interp_coeff: mu_y, in (0, 1].
        eval_interp_coeff: mu_x, in [0, 1); 0 is the base optimizer itself. `0.9 ** (1 / h)` averages over about 10 h
            steps.
        weight_decay: shrinks z by `lr * weight_decay` before it is averaged, as Meta's GPA does. The base optimizer's
            own decay is the exact recursion instead; use one of them.
        use_float32_scalars: round the coefficients to float32, to repeat Meta's trajectories in float64.

    Raises:
        ValueError: for a coefficient out of range or a parameter of another type.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        train_interp_coeff: float = 0.7,
        eval_interp_coeff: float = 0.9934,
        weight_decay: float = 0.0,
        use_float32_scalars: bool = False,
    ) -> None:
        if not 0 < train_interp_coeff <= 1:
            raise ValueError(f"{train_interp_coeff=} must lie in (0, 1]")
        if not 0 <= eval_interp_coeff < 1:
            raise ValueError(f"{eval_interp_coeff=} must lie in [0, 1)")
        if weight_decay < 0:
            raise ValueError(f"{weight_decay=} must be at least 0")
        self.optimizer = optimizer
        self.train_interp_coeff = train_interp_coeff
        self.eval_interp_coeff = eval_interp_coeff
        self.weight_decay = weight_decay
        self._scalar_dtype = torch.float32 if use_float32_scalars else torch.float64
        for p in self._parameters():
            if p.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"a parameter of type {p.dtype} would lose the small increments; keep it in float32")
        self._z = [p.detach().clone() for p in self._parameters()]
        self._y: list[Tensor] | None = None  # kept while the parameters hold x

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def training(self) -> bool:
        return self._y is None

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base optimizer, averaged; returns the closure's loss.

        Raises:
            RuntimeError: between `eval()` and `train()`: the gradients would belong to another point.
        """
        if not self.training:
            raise RuntimeError("step() after eval(): call train() first, then compute the gradients anew")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [
            (p.detach(), z, 1 - self._scalar(group["lr"]) * self.weight_decay)
            for group, p, z in self._entries()
            if p.grad is not None
        ]
        if not moving:
            self.optimizer.step()
            return loss
        weights, iterates, shrinks = (list(column) for column in zip(*moving, strict=True))
        y = [weight.clone() for weight in weights]
        z = torch._foreach_mul(iterates, [float(shrink) for shrink in shrinks])
        torch._foreach_copy_(weights, z)
        try:
            self.optimizer.step()  # from z, with the gradients of y
        except BaseException:
            torch._foreach_copy_(weights, y)
            raise
        torch._foreach_copy_(iterates, weights)
        moves = torch._foreach_sub(weights, z)
        mu_x, mu_y = self._scalar(self.eval_interp_coeff), self._scalar(self.train_interp_coeff)
        torch._foreach_copy_(weights, y)
        torch._foreach_lerp_(weights, z, float(1 - mu_x))
        torch._foreach_add_(weights, moves, alpha=float(1 - mu_x * mu_y))
        return loss

    @torch.no_grad()
    def eval(self) -> None:
        """Puts the average x into the parameters."""
        if self.training:
            parameters = self._parameters()
            self._y = [p.detach().clone() for p in parameters]
            for p, y, z in zip(parameters, self._y, self._z, strict=True):
                p.copy_(torch.lerp(z, y, 1 / self.train_interp_coeff))

    @torch.no_grad()
    def train(self) -> None:
        """Puts y back, to the bit."""
        if self._y is not None:
            for p, y in zip(self._parameters(), self._y, strict=True):
                p.copy_(y)
            self._y = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters hold the average inside the block."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            if was_training:
                self.train()

    def state_dict(self) -> dict[str, Any]:
        """Plain data: the base optimizer's state, z, and y while the parameters hold x."""
        return {"optimizer": self.optimizer.state_dict(), "z": self._z, "y": self._y}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The inverse; the parameters themselves are loaded with the model.

        Raises:
            ValueError: if the saved tensors do not fit the parameters.
        """
        if [z.shape for z in state_dict["z"]] != [z.shape for z in self._z]:
            raise ValueError(f"the state dict holds {len(state_dict['z'])} tensors of other shapes than the parameters")
        self.optimizer.load_state_dict(state_dict["optimizer"])
        for live, saved in zip(self._z, state_dict["z"], strict=True):
            live.copy_(saved)
        saved_y = state_dict["y"]
        self._y = None if saved_y is None else [y.to(z).clone() for y, z in zip(saved_y, self._z, strict=True)]

    def tensors(self, named: Mapping[str, Parameter]) -> dict[str, Tensor]:
        """Live z by parameter name, "mlp.0.weight/z", equal on every rank; save it in training mode."""
        names = {id(p): name for name, p in named.items()}
        return {f"{names[id(p)]}/z": z for p, z in zip(self._parameters(), self._z, strict=True)}

    def _scalar(self, value: float | Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=self._scalar_dtype, device="cpu")

    def _entries(self) -> Iterator[tuple[dict[str, Any], Parameter, Tensor]]:
        pairs = [(group, p) for group in self.optimizer.param_groups for p in group["params"]]
        return ((group, p, z) for (group, p), z in zip(pairs, self._z, strict=True))

    def _parameters(self) -> list[Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
