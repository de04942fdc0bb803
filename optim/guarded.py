"""Steps of an optimizer that change nothing where a flag on the device is set, which the host need not know.

A host that reads a flag before each step makes a GPU wait for it. Here the step is taken in any case; where the flag is
set, every tensor then gets its old value back: weights, moments, factor matrices, averages. Zero gradients alone are
not enough, since momentum, decay and averages move without gradients.
"""

from collections import deque
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlrmctl.optim.averaging import PrimalAveraging
from dlrmctl.optim.shampoo import DistributedShampoo


class GuardedSteps:
    """Takes the steps of an optimizer, or of one that is wrapped in averaging.

    Counters on the host, of steps and of roots, advance in skipped steps too; `undo` takes them back.

    Args:
        most_undone: the number of last steps that can be undone.

    Attributes:
        taken: number of steps.
    """

    def __init__(self, optimizer: Optimizer | PrimalAveraging, *, most_undone: int) -> None:
        self.optimizer = optimizer
        self.taken = 0
        self._before: dict[Hashable, Tensor] = {}  # values before the last step
        self._counters: deque[list[tuple[Tensor, Tensor]]] = deque(maxlen=most_undone)

    @torch.no_grad()
    def step(self, skipped: Tensor) -> None:
        """Takes a step; where `skipped`, a bool without dimensions on the device, is true, nothing changes.

        Gradients become 0 there, so that the optimizer need not cope with NaN.
        """
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.masked_fill_(skipped, 0.0)
        counters, state = _divided(live_tensors(self.optimizer))
        old_counters = {key: counter.clone() for key, counter in counters.items()}
        self._keep(state)
        self.optimizer.step()
        self.taken += 1
        counters, state = _divided(live_tensors(self.optimizer))
        # What the step made anew, from a gradient of 0, was 0 before.
        self._counters.append([(c, old_counters.get(key, torch.zeros_like(c))) for key, c in counters.items()])
        for key, tensor in state.items():
            old = self._before.get(key)
            torch.where(skipped, torch.zeros_like(tensor) if old is None else old, tensor, out=tensor)

    def _keep(self, state: dict[Hashable, Tensor]) -> None:
        if self._before.keys() != state.keys():
            self._before = {key: tensor.clone() for key, tensor in state.items()}
        elif state:
            torch._foreach_copy_(list(self._before.values()), list(state.values()))

    @torch.no_grad()
    def undo(self, steps: int) -> None:
        """Takes the counters back to before the last `steps` steps, all of which were skipped."""
        self.taken -= steps
        for counter, old in self._counters[-steps] if steps else ():
            counter.copy_(old)
        self._counters.clear()


def live_tensors(optimizer: Optimizer | PrimalAveraging) -> dict[Hashable, Tensor]:
    """Returns all tensors that a step may change, by keys that remain the same."""
    found: dict[Hashable, Tensor] = {}
    base = optimizer
    if isinstance(optimizer, PrimalAveraging):
        base = optimizer.optimizer
        found |= {("averaging", place): tensor for place, tensor in enumerate(optimizer.live_tensors())}
    assert isinstance(base, Optimizer)
    for place, group in enumerate(base.param_groups):
        found |= {("weight", id(p)): p.detach() for p in group["params"]}
        found |= {(name, place): value for name, value in group.items() if isinstance(value, Tensor)}
    if isinstance(base, DistributedShampoo):  # whole buffers, where its state dict has views of every block
        return found | {("shampoo", place): tensor for place, tensor in enumerate(base.live_tensors())}
    for p, of_parameter in base.state.items():
        entries: dict[str, Any] = of_parameter
        found |= {(name, id(p)): value for name, value in entries.items() if isinstance(value, Tensor)}
    return found


def _divided(tensors: dict[Hashable, Tensor]) -> tuple[dict[Hashable, Tensor], dict[Hashable, Tensor]]:
    """Returns the counters on the host, and the rest."""
    counters = {
        key: tensor
        for key, tensor in tensors.items()
        if tensor.device.type == "cpu" and (tensor.dim() == 0 or not tensor.is_floating_point())
    }
    return counters, {key: tensor for key, tensor in tensors.items() if key not in counters}
