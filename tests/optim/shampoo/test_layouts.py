"""Strides of parameters and gradients, and parameters of no size."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from dlrmctl.optim.shampoo import DistributedShampoo
from tests.optim.shampoo.test_unbreakable import CONFIGS, label


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_layout_of_parameters_and_gradients_does_not_matter(config: Any) -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 3, 2, 5)
    plain, last = Parameter(start.clone()), Parameter(start.clone().to(memory_format=torch.channels_last))
    sliced = Parameter(torch.empty(4, 6, 2, 5)[:, ::2].copy_(start))
    assert not last.is_contiguous()
    params = [plain, last, sliced, Parameter(torch.empty(0, 3)), Parameter(torch.empty(3, 0, 2))]
    optimizer = DistributedShampoo(
        params, preconditioner_config=config, precondition_frequency=2, max_preconditioner_dim=3, merge_small_dims=True
    )
    for _ in range(4):
        grad = torch.randn(4, 3, 2, 5)
        plain.grad, last.grad, sliced.grad = grad.clone(), grad.clone(), grad.clone()
        for p in params[3:]:
            p.grad = torch.empty_like(p)
        optimizer.step()
    # Strides decide which dimensions merge; without merging the layout does not matter to the bit.
    unmerged = [Parameter(start.clone()), Parameter(start.clone().to(memory_format=torch.channels_last))]
    optimizer = DistributedShampoo(unmerged, preconditioner_config=config, precondition_frequency=2)
    for _ in range(4):
        grad = torch.randn(4, 3, 2, 5)
        unmerged[0].grad, unmerged[1].grad = grad, grad.to(memory_format=torch.channels_last)
        optimizer.step()
    assert torch.equal(*unmerged)
    assert all(p.isfinite().all() for p in params)
