"""Primal averaging: trains between the iterate and its average, and evaluates the average.

Three points: z, where the base optimizer steps; x, the running average of z; y between them, where gradients are taken.

    y = mu_y x + (1 - mu_y) z        z' = z + u   (u: the base optimizer's step)        x' = mu_x x + (1 - mu_x) z'

    mu_x constant, mu_y about 0.7     generalized primal averaging; arXiv:2512.17131
    mu_y = 0                          an exponential moving average beside the base optimizer (EMA)
    mu_x from weights lr^2, mu_y 0.9  Schedule-Free; arXiv:2405.15682
    mu_y = 1, or mu_y = mu_x          heavy-ball momentum, or Nesterov's, at a learning rate divided by 1 - mu_x

The parameters hold y; x and z are kept beside them, and y follows from these two to the bit.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from dlrmctl.optim.closure import loss_of


@dataclass(frozen=True)
class GrowingHorizon:
    """Returns mu_x by step for an average over the last `share` of all steps so far, but at most `most` steps.

    The number of steps need not be known. `share = 1` without a limit is the mean of all iterates.
    """

    share: float = 0.1
    most: float = 1000.0

    def __call__(self, step: int) -> float:
        return 1 - 1 / min(max(self.share * step, 1.0), self.most)


class PrimalAveraging:
    """Wraps an optimizer; between `eval()` and `train()` the parameters hold the average x.

    Args:
        optimizer: the base optimizer; its parameters must be float32 or float64, since increments are small.
        train_interp_coeff: mu_y, in [0, 1].
        eval_interp_coeff: mu_x, in [0, 1), or a function that gives it for a step, counted from 1; 0 is the base
            optimizer alone. `1 - 1 / h` averages over about h steps.
        weight_lr_power: makes x the mean of all z so far, each weighted by its learning rate (of the first group) to
            this power, instead of `eval_interp_coeff`. None: no weights. Published code takes the largest rate so far,
            which is the same unless rates fall.
        weight_decay: shrinks z by `lr * weight_decay` before it is averaged, as Meta's GPA does; x then deviates from
            the recursion above by `mu_x (1 - mu_y) / mu_y lr weight_decay z` per step. The base optimizer's own decay
            follows the recursion; use one of them.
        use_float32_scalars: round the coefficients to float32, to repeat Meta's trajectories in float64.

    Raises:
        ValueError: if a coefficient is out of range or a parameter has another type.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        train_interp_coeff: float = 0.7,
        eval_interp_coeff: float | Callable[[int], float] = 0.9934,
        weight_lr_power: float | None = None,
        weight_decay: float = 0.0,
        use_float32_scalars: bool = False,
    ) -> None:
        if not 0 <= train_interp_coeff <= 1:
            raise ValueError(f"{train_interp_coeff=} must lie in [0, 1]")
        if not callable(eval_interp_coeff) and not 0 <= eval_interp_coeff < 1:
            raise ValueError(f"{eval_interp_coeff=} must lie in [0, 1)")
        if weight_decay < 0 or (weight_decay > 0 and train_interp_coeff == 0):
            raise ValueError(f"{weight_decay=} must be at least 0, and 0 where train_interp_coeff is 0")
        if use_float32_scalars and not callable(eval_interp_coeff):
            mu_x, mu_y = torch.tensor(eval_interp_coeff), torch.tensor(train_interp_coeff)
            # Meta's y takes steps of `1 - mu_x` and `1 - mu_x mu_y`; these two match them.
            eval_interp_coeff = 1 - float(1 - mu_x)
            train_interp_coeff = (1 - float(1 - mu_x * mu_y)) / eval_interp_coeff
        self.optimizer = optimizer
        self.train_interp_coeff = train_interp_coeff
        self.eval_interp_coeff = eval_interp_coeff
        self.weight_lr_power = weight_lr_power
        self.weight_decay = weight_decay
        self._scalar_dtype = torch.float32 if use_float32_scalars else torch.float64
        self._parameters: list[Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        for p in self._parameters:
            if p.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"a parameter of type {p.dtype} would lose the small increments; use float32")
        self._x = [p.detach().clone() for p in self._parameters]
        self._z = [p.detach().clone() for p in self._parameters]
        self._step = torch.zeros((), dtype=torch.int64)
        self._weight_sum = torch.zeros((), dtype=torch.float64)
        self.training = True

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes an averaged step of the base optimizer; returns the closure's loss.

        A parameter without a gradient does not change, nor does its average.

        Raises:
            RuntimeError: between `eval()` and `train()`, where gradients would belong to another point.
        """
        if not self.training:
            raise RuntimeError("step() after eval(): call train() first, then compute the gradients again")
        loss = loss_of(closure)
        moving = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        shifts = self._step_at_z(moving)
        self._step += 1
        mu_x, mu_y = self._next_mu_x(), self.train_interp_coeff
        for i in moving:
            x, z = self._x[i], self._z[i]
            x.lerp_(z, 1 - mu_x)
            if shifts:
                x.add_(shifts[i], alpha=mu_x * (1 - mu_y) / mu_y)
            torch.lerp(z, x, mu_y, out=self._parameters[i].data)
        return loss

    def _step_at_z(self, moving: list[int]) -> dict[int, Tensor]:
        """Moves z by the base optimizer, with the gradients of y; returns how much decay shifted z before."""
        shifts: dict[int, Tensor] = {}
        at = dict(enumerate(self._z))
        if self.weight_decay:
            lr_of = [group["lr"] for group in self.param_groups for _ in group["params"]]
            for i in moving:
                lr = torch.as_tensor(lr_of[i], dtype=self._scalar_dtype, device="cpu")
                at[i] = self._z[i] * float(1 - lr * self.weight_decay)
                shifts[i] = self._z[i] - at[i]
        y = [p.data for p in self._parameters]
        try:
            for p, z in zip(self._parameters, at.values(), strict=True):
                p.data = z  # the base moves z in place: nothing is copied
            self.optimizer.step()
        finally:
            for p, values in zip(self._parameters, y, strict=True):
                p.data = values
        for i in shifts:
            self._z[i].copy_(at[i])
        return shifts

    def _next_mu_x(self) -> float:
        if self.weight_lr_power is not None:
            weight = float(self.param_groups[0]["lr"]) ** self.weight_lr_power
            self._weight_sum += weight
            return 1 - weight / float(self._weight_sum) if self._weight_sum > 0 else 0.0
        return self.eval_interp_coeff(int(self._step)) if callable(self.eval_interp_coeff) else self.eval_interp_coeff

    @torch.no_grad()
    def eval(self) -> None:
        """Puts the average x into the parameters."""
        for p, x in zip(self._parameters, self._x, strict=True):
            p.copy_(x)
        self.training = False

    @torch.no_grad()
    def train(self) -> None:
        """Puts y, which x and z determine to the bit, into the parameters; call it also after a load."""
        for p, x, z in zip(self._parameters, self._x, self._z, strict=True):
            torch.lerp(z, x, self.train_interp_coeff, out=p.data)
        self.training = True

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager in which the parameters hold the average."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            if was_training:
                self.train()

    def averages(self, named: Mapping[str, Parameter]) -> dict[str, Tensor]:
        """Returns live x by parameter name, which a checkpoint stores as the model's weights."""
        return {name: x for name, x, _ in self._named(named)}

    def tensors(self, named: Mapping[str, Parameter]) -> dict[str, Tensor]:
        """Returns the other live state, "mlp.0.weight/z", equal on every rank.

        Together with `averages`, the base optimizer's state and a call of `train()`, it resumes a run to the bit.
        """
        state = {f"{name}/z": z for name, _, z in self._named(named)}
        return state | {"step": self._step, "weight_sum": self._weight_sum}

    def live_tensors(self) -> list[Tensor]:
        """Returns x, z and the counters of steps."""
        return [*self._x, *self._z, self._step, self._weight_sum]

    def _named(self, named: Mapping[str, Parameter]) -> Iterator[tuple[str, Tensor, Tensor]]:
        names = {id(p): name for name, p in named.items()}
        return ((names[id(p)], x, z) for p, x, z in zip(self._parameters, self._x, self._z, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Returns the base optimizer's state, x, z, and whether the parameters hold x."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "x": self._x,
            "z": self._z,
            "step": self._step,
            "weight_sum": self._weight_sum,
            "training": self.training,
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned; fills the parameters too.

        Raises:
            ValueError: if the saved tensors do not fit the parameters.
        """
        if any([t.shape for t in state_dict[name]] != [z.shape for z in self._z] for name in ("x", "z")):
            raise ValueError(
                f"the state dict has {len(state_dict['z'])} tensors whose shapes differ from the parameters'"
            )
        self.optimizer.load_state_dict(state_dict["optimizer"])
        saved = [*state_dict["x"], *state_dict["z"], state_dict["step"], state_dict["weight_sum"]]
        for live, value in zip(self.live_tensors(), saved, strict=True):
            live.copy_(value)
        self.train() if state_dict["training"] else self.eval()
