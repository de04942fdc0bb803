"""Primal averaging equals its three-point definition around any optimizer, and meets the methods it generalizes."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, AdamW

from dlrmctl.optim.averaging import PrimalAveraging
from dlrmctl.optim.shampoo import DistributedShampoo, NonFiniteGradientError

HESSIAN = torch.diag(torch.tensor([1.0, 0.3, 0.05], dtype=torch.float64))
START = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def _run(mu_x: float, mu_y: float, num_steps: int = 25, lr: float = 0.1) -> list[Tensor]:
    """y after every step of averaged SGD on a quadratic."""
    weight = Parameter(START.clone())
    optimizer = PrimalAveraging(SGD([weight], lr=lr), train_interp_coeff=mu_y, eval_interp_coeff=mu_x)
    points = []
    for _ in range(num_steps):
        weight.grad = HESSIAN @ weight.detach()
        optimizer.step()
        points.append(weight.detach().clone())
    return points


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_the_three_sequences_of_its_definition(decay: float) -> None:
    mu_x, mu_y = 0.9, 0.7
    weight, z = Parameter(START.clone()), Parameter(START.clone())
    optimizer = PrimalAveraging(
        AdamW([weight], lr=0.05, weight_decay=decay), train_interp_coeff=mu_y, eval_interp_coeff=mu_x
    )
    base = AdamW([z], lr=0.05, weight_decay=decay)
    x = START.clone()
    for _ in range(30):
        y = mu_y * x + (1 - mu_y) * z.detach()
        torch.testing.assert_close(weight.detach(), y, rtol=1e-12, atol=1e-13)  # rounding over 30 steps
        z.grad, weight.grad = HESSIAN @ y, HESSIAN @ weight.detach()
        base.step()
        optimizer.step()
        x = mu_x * x + (1 - mu_x) * z.detach()
        with optimizer.averaged():
            torch.testing.assert_close(weight.detach(), x, rtol=1e-12, atol=1e-13)


def test_without_averaging_it_is_the_base_optimizer() -> None:
    weight = Parameter(START.clone())
    base = SGD([weight], lr=0.1)
    for point in _run(mu_x=0.0, mu_y=0.7):
        weight.grad = HESSIAN @ weight.detach()
        base.step()
        torch.testing.assert_close(point, weight.detach(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_meets_momentum_at_the_coefficients_that_say_so(nesterov: bool) -> None:
    """mu_y = 1 is heavy ball, mu_y = mu_x is Nesterov, with the learning rate divided by 1 - mu."""
    mu = 0.8
    weight = Parameter(START.clone())
    momentum = SGD([weight], lr=0.1 * (1 - mu), momentum=mu, nesterov=nesterov)
    for point in _run(mu_x=mu, mu_y=mu if nesterov else 1.0):
        weight.grad = HESSIAN @ weight.detach()
        momentum.step()
        torch.testing.assert_close(point, weight.detach(), rtol=1e-12, atol=1e-13)


def test_train_after_eval_is_exact_and_steps_between_are_refused() -> None:
    model = nn.Linear(3, 2)
    optimizer = PrimalAveraging(DistributedShampoo(model.parameters(), precondition_frequency=1))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.eval()
    optimizer.eval()
    assert not torch.equal(model.weight, before[0])
    with pytest.raises(RuntimeError, match=r"call train\(\) first"):
        optimizer.step()
    optimizer.train()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_state_dict_continues_to_the_bit(evaluating: bool) -> None:
    model = nn.Linear(3, 2)
    other = copy.deepcopy(model)
    optimizers = [PrimalAveraging(DistributedShampoo(m.parameters(), precondition_frequency=2)) for m in (model, other)]

    def train(m: nn.Linear, optimizer: PrimalAveraging, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            m(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()

    train(model, optimizers[0], range(4))
    if evaluating:
        optimizers[0].eval()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizers[0].state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["model"])
    optimizers[1].load_state_dict(saved["optimizer"])
    for m, optimizer in zip((model, other), optimizers, strict=True):
        assert optimizer.training is not evaluating
        optimizer.train()
        train(m, optimizer, range(4, 8))
    assert torch.equal(model.weight, other.weight)
    assert set(optimizers[0].tensors(dict(model.named_parameters()))) == {"weight/z", "bias/z"}


def test_a_refused_gradient_leaves_the_weights_where_they_were() -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = PrimalAveraging(DistributedShampoo([weight]))
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = torch.full((2, 2), torch.nan)
    with pytest.raises(NonFiniteGradientError):
        optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_interp_coeff": 0.0}, "train_interp_coeff=0.0"),
        ({"eval_interp_coeff": 1.0}, "eval_interp_coeff=1.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
    ],
)
def test_refuses_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrimalAveraging(SGD([Parameter(torch.zeros(2))], lr=0.1), **settings)
    with pytest.raises(ValueError, match="bfloat16 would lose"):
        PrimalAveraging(SGD([Parameter(torch.zeros(2, dtype=torch.bfloat16))], lr=0.1))
