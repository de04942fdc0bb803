"""Grafting: the step length comes from a diagonal method, the direction from Shampoo.

A configuration says which diagonal method; its second moment `V` and its step are the two small functions below.
Equations: `V <- beta2 V + (1 - beta2) G^2` (AdaGrad: the plain sum), step `H / (sqrt(V / (1 - beta2^t)) + epsilon)`.
Epsilon is added after the root, as in torch.optim.
Source: Agarwal et al., arXiv:2002.11803; Anil et al., arXiv:2002.09018.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SGDGrafting:
    """The step length of SGD: the norm of the (filtered) gradient itself."""


@dataclass(frozen=True)
class AdaGradGrafting:
    epsilon: float = 1e-10

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)


@dataclass(frozen=True)
class RMSpropGrafting:
    """`beta2` is torch.optim.RMSprop's `alpha`; no bias correction."""

    beta2: float = 0.99
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        _check_beta2(self.beta2)


@dataclass(frozen=True)
class AdamGrafting:
    """Adam's second moment, with bias correction; the first moment is Shampoo's filtered gradient."""

    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        _check_beta2(self.beta2)


Grafting = SGDGrafting | AdaGradGrafting | RMSpropGrafting | AdamGrafting
_KINDS: dict[str, type] = {
    "sgd": SGDGrafting,
    "adagrad": AdaGradGrafting,
    "rmsprop": RMSpropGrafting,
    "adam": AdamGrafting,
}


def has_second_moment(config: Grafting | None) -> bool:
    return config is not None and not isinstance(config, SGDGrafting)


def update_second_moment(second_moment: Tensor, grad: Tensor, config: Grafting) -> None:
    """Adds the gradient to `V`, in place; any shape, elementwise."""
    if isinstance(config, AdaGradGrafting):
        second_moment.addcmul_(grad, grad)
    elif isinstance(config, RMSpropGrafting | AdamGrafting):
        second_moment.mul_(config.beta2).addcmul_(grad, grad, value=1 - config.beta2)


def grafted_step(
    filtered_grad: Tensor, second_moment: Tensor | None, config: Grafting, *, correction: float, out: Tensor
) -> Tensor:
    """The diagonal method's direction for `filtered_grad`, written to `out` (which may not be an argument).

    `correction` is Adam's `1 - beta2^t`; the others do not use it.
    """
    if isinstance(config, SGDGrafting):
        return out.copy_(filtered_grad)
    assert second_moment is not None
    torch.sqrt(second_moment, out=out)
    if isinstance(config, AdamGrafting):
        out.div_(correction**0.5)
    return torch.div(filtered_grad, out.add_(config.epsilon), out=out)


def config_to_dict(config: Grafting | None) -> dict[str, Any] | None:
    """Plain data for a state dict, which must load with `weights_only=True`."""
    if config is None:
        return None
    kind = next(name for name, cls in _KINDS.items() if isinstance(config, cls))
    return {"kind": kind, **asdict(config)}


def config_from_dict(data: dict[str, Any] | None) -> Grafting | None:
    """The inverse of `config_to_dict`.

    Raises:
        ValueError: if the kind is unknown.
    """
    if data is None:
        return None
    fields = dict(data)
    kind = fields.pop("kind")
    if kind not in _KINDS:
        raise ValueError(f"grafting kind {kind!r} is not one of {', '.join(_KINDS)}")
    config: Grafting = _KINDS[kind](**fields)
    return config


def _check_epsilon(epsilon: float) -> None:
    if not epsilon >= 0:
        raise ValueError(f"grafting epsilon={epsilon} must be at least 0")


def _check_beta2(beta2: float) -> None:
    if not 0 < beta2 < 1:
        raise ValueError(f"grafting beta2={beta2} must lie in (0, 1); for a plain sum use AdaGradGrafting")
