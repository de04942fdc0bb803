"""The dense optimizer's state as tensors by name, for checkpoints that any number of ranks can read."""

import torch
from torch import Tensor, nn

from dlrmctl.ranks import Ranks
from optim.shampoo import DistributedShampoo


def dense_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The state by parameter name: live tensors, so that loading into them changes the optimizer.

    State that torch's optimizers would make on their first step is made here, or a load would pass it over.
    """
    named = dict(network.named_parameters())
    if isinstance(optimizer, DistributedShampoo):
        return optimizer.blocks_state_dict(named)
    if any(p not in optimizer.state for p in named.values()):
        _materialize(optimizer)
    return {
        f"{name}.{key}": value
        for name, parameter in named.items()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def failed_roots(optimizer: torch.optim.Optimizer, ranks: Ranks) -> list[str]:
    """One line per rank whose Shampoo blocks had roots that could not be computed. Every rank must call it."""
    report = optimizer.failed_roots_report() if isinstance(optimizer, DistributedShampoo) else ""
    return [text for text in ranks.gather(report) if text]


@torch.no_grad()
def _materialize(optimizer: torch.optim.Optimizer) -> None:
    """Makes a torch optimizer allocate its state, without moving a weight."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [(p.detach().clone(), p.grad) for p in parameters]
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, (value, grad) in zip(parameters, before, strict=True):
        p.copy_(value)
        p.grad = grad
        for state in optimizer.state[p].values():
            if isinstance(state, Tensor):
                state.zero_()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
