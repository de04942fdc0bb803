"""Models under torch.compile."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrmctl.optim.shampoo import DistributedShampoo


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_a_compiled_model_trains_like_the_plain_one() -> None:
    def final(compiled: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        model = torch.compile(model) if compiled else model
        optimizer = DistributedShampoo(model.named_parameters(), precondition_frequency=2, max_preconditioner_dim=4)
        for step in range(6):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    for plain, compiled in zip(final(False), final(True), strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)  # fused kernels round differently
