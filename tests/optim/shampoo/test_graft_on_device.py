"""Grafting that reads nothing from the device gives what grafting on CPU gives."""

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from dlrmctl.optim.shampoo import DistributedShampoo, shard
from dlrmctl.optim.shampoo.factors import FAILED
from dlrmctl.optim.shampoo.grafting import graft_on_device

SHAPES = ((6, 5), (7,), (3, 9))


def _weights(scale: float, failed: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameters = [Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = DistributedShampoo(parameters, lr=0.1, max_preconditioner_dim=4, precondition_frequency=2)
    for step in range(5):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator) * scale
        if failed and step == 3:
            (own,) = optimizer._division.shards.values()
            own._root_status[::2] = FAILED
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e18, 1e-20])  # squares overflow, or underflow
def test_grafting_on_the_device_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch, scale: float, failed: bool):
    expected = _weights(scale, failed)
    monkeypatch.setattr(shard, "graft", graft_on_device)
    for found, wanted in zip(_weights(scale, failed), expected, strict=True):
        # Lengths that are rounded to float32 and not: 2**-24 in each of five steps of 0.1 at most, about their size.
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
