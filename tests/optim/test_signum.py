"""Signum against its equations in NumPy."""

import numpy as np
import pytest
import torch

from dlrmctl.optim.signum import Signum


def test_a_trajectory_follows_the_equations():
    generator = np.random.default_rng(0)
    w, m = generator.normal(size=(3, 4)), np.zeros((3, 4))
    p = torch.nn.Parameter(torch.from_numpy(w.copy()))
    optimizer = Signum([p], lr=0.01, beta=0.9, weight_decay=0.1)
    for _ in range(20):
        g = generator.normal(size=(3, 4))
        p.grad = torch.from_numpy(g)
        optimizer.step()
        m = 0.9 * m + 0.1 * g
        w = (1 - 0.01 * 0.1) * w - 0.01 * np.sign(m)
    np.testing.assert_allclose(p.detach().numpy(), w, rtol=0, atol=1e-14)  # 20 roundings of numbers near 1


def test_without_a_gradient_or_with_one_of_zero_nothing_moves():
    still, zero = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    zero.grad = torch.zeros(2)
    Signum([still, zero], lr=0.1).step()
    assert still.tolist() == zero.tolist() == [1, 1]


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"beta": 1.0}, {"weight_decay": -0.1}])
def test_numbers_out_of_range_are_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Signum([torch.nn.Parameter(torch.ones(1))], **settings)
