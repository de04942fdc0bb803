"""Primal averaging equals its three-point definition around any optimizer, and the methods it generalizes."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, AdamW

from dlrmctl.optim.averaging import GrowingHorizon, PrimalAveraging
from dlrmctl.optim.shampoo import DistributedShampoo, NonFiniteGradientError

HESSIAN = torch.diag(torch.tensor([1.0, 0.3, 0.05], dtype=torch.float64))
START = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def _run(mu_x: float | GrowingHorizon, mu_y: float, num_steps: int = 25, lr: float = 0.1) -> list[Tensor]:
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


def test_the_mean_of_all_iterates_is_a_horizon_of_all_steps() -> None:
    """mu_x = 1 - 1/t, gradients at the iterate itself: the average of what the base optimizer passes through."""
    weight = Parameter(START.clone())
    optimizer = PrimalAveraging(
        SGD([weight], lr=0.1), train_interp_coeff=0.0, eval_interp_coeff=GrowingHorizon(share=1.0, most=float("inf"))
    )
    base = Parameter(START.clone())
    sgd, passed = SGD([base], lr=0.1), []
    for _ in range(40):
        for point, stepper in ((weight, optimizer), (base, sgd)):
            point.grad = HESSIAN @ point.detach()
            stepper.step()
        assert torch.equal(weight, base)
        passed.append(base.detach().clone())
        with optimizer.averaged():
            torch.testing.assert_close(weight.detach(), torch.stack(passed).mean(0), rtol=1e-12, atol=1e-13)


def test_a_growing_horizon_follows_the_steps_up_to_its_limit() -> None:
    horizon = GrowingHorizon(share=0.1, most=50.0)
    spans = [1 / (1 - horizon(step)) for step in (1, 10, 20, 100, 500, 5000)]
    assert spans == pytest.approx([1, 1, 2, 10, 50, 50])


def test_schedule_free_weighs_iterates_by_the_squares_of_their_learning_rates() -> None:
    """With a warmup; the mean of all iterates so far, by weights that are not needed in advance."""
    weight = Parameter(START.clone())
    sgd = SGD([weight], lr=0.1)
    optimizer = PrimalAveraging(sgd, train_interp_coeff=0.9, weight_lr_power=2.0)
    z, weights, passed = START.clone(), [], []
    x = START.clone()
    for step in range(30):
        lr = 0.1 * min(1.0, (step + 1) / 10)
        sgd.param_groups[0]["lr"] = lr
        y = 0.9 * x + 0.1 * z
        torch.testing.assert_close(weight.detach(), y, rtol=1e-12, atol=1e-13)
        weight.grad = HESSIAN @ weight.detach()
        optimizer.step()
        z = z - lr * (HESSIAN @ y)
        weights.append(lr**2)
        passed.append(z)
        x = sum(w * point for w, point in zip(weights, passed, strict=True)) / sum(weights)
        with optimizer.averaged():
            torch.testing.assert_close(weight.detach(), x, rtol=1e-11, atol=1e-12)


def test_the_published_weight_decay_deviates_by_what_its_docstring_says() -> None:
    """Meta's code: `y' = lerp(y, z_shrunk, 1 - mu_x) + (1 - mu_x mu_y) u`, with x only implied."""
    mu_x, mu_y, lr, decay = 0.9, 0.7, 0.05, 0.1
    weight = Parameter(START.clone())
    optimizer = PrimalAveraging(
        SGD([weight], lr=lr), train_interp_coeff=mu_y, eval_interp_coeff=mu_x, weight_decay=decay
    )
    y, z, exact = START.clone(), START.clone(), START.clone()
    for _ in range(20):
        weight.grad = HESSIAN @ weight.detach()
        optimizer.step()
        shrunk, move = z * (1 - lr * decay), -lr * (HESSIAN @ y)
        x_before = (y - (1 - mu_y) * z) / mu_y
        exact = mu_x * x_before + (1 - mu_x) * (shrunk + move)
        exact = exact + mu_x * (1 - mu_y) / mu_y * lr * decay * z
        y = torch.lerp(y, shrunk, 1 - mu_x) + (1 - mu_x * mu_y) * move
        z = shrunk + move
        torch.testing.assert_close(weight.detach(), y, rtol=1e-12, atol=1e-13)
        with optimizer.averaged():
            torch.testing.assert_close(weight.detach(), exact, rtol=1e-12, atol=1e-13)


def test_a_parameter_without_a_gradient_stays_and_so_does_its_average() -> None:
    moved, left = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    optimizer = PrimalAveraging(SGD([moved, left], lr=0.1))
    for _ in range(3):
        moved.grad = torch.ones(2)
        optimizer.step()
    assert moved[0] < 1
    assert torch.equal(left, torch.ones(2))
    with optimizer.averaged():
        assert torch.equal(left, torch.ones(2))


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
    named = dict(model.named_parameters())
    assert set(optimizers[0].tensors(named)) == {"weight/z", "bias/z", "step", "weight_sum"}
    assert set(optimizers[0].averages(named)) == {"weight", "bias"}


def test_average_and_iterate_by_name_continue_to_the_bit() -> None:
    """As a checkpoint does: live tensors filled, then `train()`."""
    model = nn.Linear(3, 2)
    other = copy.deepcopy(model)
    horizon = GrowingHorizon(share=0.5)
    one, two = (PrimalAveraging(SGD(m.parameters(), lr=0.1), eval_interp_coeff=horizon) for m in (model, other))

    def train(m: nn.Linear, optimizer: PrimalAveraging, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            m(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()

    train(model, one, range(7))
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    saved = one.averages(ours) | one.tensors(ours)
    with torch.no_grad():
        for name, live in (two.averages(theirs) | two.tensors(theirs)).items():
            live.copy_(saved[name])
    two.train()
    train(model, one, range(7, 12))
    train(other, two, range(7, 12))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


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
        ({"train_interp_coeff": -0.1}, "train_interp_coeff=-0.1"),
        ({"eval_interp_coeff": 1.0}, "eval_interp_coeff=1.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"weight_decay": 0.1, "train_interp_coeff": 0.0}, "weight_decay=0.1"),
    ],
)
def test_refuses_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrimalAveraging(SGD([Parameter(torch.zeros(2))], lr=0.1), **settings)
    with pytest.raises(ValueError, match="bfloat16 would lose"):
        PrimalAveraging(SGD([Parameter(torch.zeros(2, dtype=torch.bfloat16))], lr=0.1))
