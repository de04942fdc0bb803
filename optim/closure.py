"""The loss of a closure, as optimizers take it."""

from collections.abc import Callable
from typing import Any

import torch


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """Computes loss and gradients anew, inside a step that records none; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
