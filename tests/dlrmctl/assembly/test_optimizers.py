"""The dense optimizer by settings."""

import pytest
import torch
from torch import nn

from dlrmctl.assembly.optimizers import build_dense_optimizer
from dlrmctl.errors import UserError
from dlrmctl.optim.shampoo import DistributedShampoo
from dlrmctl.settings.config import resolve


def _after(steps: int, **flags: str) -> tuple[list[torch.Tensor], list[int]]:
    """Returns the weights after some steps with the same gradients, and per block whether it has roots, as 1 or 0."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 12), nn.Linear(12, 6))
    optimizer = build_dense_optimizer(resolve({}, {"shampoo_block": "8", **flags}).optim, network, group=None)
    assert isinstance(optimizer, DistributedShampoo)
    for _ in range(steps):
        for p in network.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    state = optimizer.blocks_state_dict(dict(network.named_parameters()))
    statuses = [int(value) for name, value in state.items() if name.endswith("root_status")]
    return [p.detach() for p in network.parameters()], statuses


def test_roots_by_newtons_iteration_are_refreshed_together_with_the_results_of_eigh():
    often = {"shampoo_frequency": "1", "shampoo_statistics": "1"}
    (eigh, _), (newton, _) = (_after(5, shampoo_roots=roots, **often) for roots in ("eigh", "newton"))
    for a, b in zip(eigh, newton, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # the iteration ends at a residual of 1e-6
    rarely = {"shampoo_frequency": "4", "shampoo_schedule": "constant"}
    done = {
        roots: [sum(_after(n, shampoo_roots=roots, **rarely)[1]) for n in (1, 3, 4)] for roots in ("eigh", "newton")
    }
    blocks = done["eigh"][-1]
    assert done["newton"] == [0, 0, blocks]
    assert 0 < done["eigh"][0] < done["eigh"][1] < blocks


def test_a_budget_for_roots_of_one_step_is_refused():
    with pytest.raises(UserError, match=r"optim.shampoo_overhead = 5 .* optim.shampoo_roots = newton"):
        resolve({}, {"shampoo_overhead": "5", "shampoo_roots": "newton"})
