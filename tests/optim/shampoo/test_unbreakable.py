"""Every kind of preconditioner under gradients and parameters that break optimizers."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from dlrmctl.optim.shampoo import (
    AdaGradGrafting,
    AdamGrafting,
    DistributedShampoo,
    Eigendecomposed,
    EigenvalueCorrected,
    RMSpropGrafting,
    RootInverse,
    SGDGrafting,
)
from dlrmctl.optim.shampoo import roots as roots_module

CONFIGS = [
    RootInverse(),
    RootInverse("newton"),
    RootInverse("higher_order"),
    RootInverse("pseudo_inverse"),
    RootInverse(statistics="kl_mean", trace_scaling=True),
    Eigendecomposed(),
    Eigendecomposed("qr", statistics="kl"),
    EigenvalueCorrected("eigh"),
    EigenvalueCorrected("qr"),
]
GRAFTS = [None, SGDGrafting(), AdaGradGrafting(), RMSpropGrafting(), AdamGrafting()]


def _rank_one(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step % 2)
    return torch.outer(torch.randn(6, generator=generator), torch.randn(5, generator=generator))


def _huge_range(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    decades = torch.randint(-12, 12, (6, 5), generator=generator).float()
    return torch.randn(6, 5, generator=generator) * 10**decades


def label(config: Any) -> str:
    words = [type(config).__name__, *(str(getattr(config, name, "")) for name in ("method", "statistics"))]
    return " ".join(word for word in words if word not in ("", "shampoo"))


GRADIENTS = {
    "zero": lambda step: torch.zeros(6, 5),
    "rank one": _rank_one,
    "the same again and again": lambda step: torch.ones(6, 5),
    "24 decades": _huge_range,
    "tiny": lambda step: 1e-20 * _huge_range(step).sign(),
    "growing by 1e3 a step": lambda step: 1e3**step * _rank_one(step),
    "one value": lambda step: torch.zeros(6, 5).index_fill_(0, torch.tensor([2]), 3.0),
}


@pytest.mark.parametrize("grafting", GRAFTS, ids=label)
@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_hard_gradients_leave_everything_finite(config: Any, grafting: Any) -> None:
    for name, gradient in GRADIENTS.items():
        weight = Parameter(torch.ones(6, 5))
        optimizer = DistributedShampoo(
            [weight],
            lr=0.01,
            betas=(0.9, 0.99),
            momentum=0.9,
            precondition_frequency=1,
            preconditioner_config=config,
            grafting_config=grafting,
        )
        for step in range(6):
            weight.grad = gradient(step)
            before = weight.grad.clone()
            optimizer.step()
            assert weight.isfinite().all(), name
            assert torch.equal(weight.grad, before)
        if name == "zero":
            assert torch.equal(weight, torch.ones(6, 5))
        assert optimizer.num_failed_roots == 0, name


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1e25, 1e33, 1.0), (1e-8, 1e-8, 1e36, 1e-8)])
@pytest.mark.parametrize("grafting", [None, SGDGrafting(), AdaGradGrafting()], ids=label)
@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_gradients_whose_squares_overflow_never_make_a_weight_non_finite(
    config: Any, grafting: Any, scales: Any
) -> None:
    weight = Parameter(torch.ones(6, 5))
    optimizer = DistributedShampoo(
        [weight],
        lr=1e-4,
        betas=(0.0, 1.0),
        precondition_frequency=1,
        preconditioner_config=config,
        grafting_config=grafting,
    )
    for step, scale in enumerate(scales):
        weight.grad = scale * _rank_one(step)
        optimizer.step()
        assert weight.isfinite().all()


def test_a_direction_whose_square_overflows_still_gets_the_grafted_length() -> None:
    torch.manual_seed(0)
    weight = Parameter(torch.zeros(6, 5))
    optimizer = DistributedShampoo([weight], betas=(0.0, 1.0), precondition_frequency=1, grafting_config=SGDGrafting())
    for scale in (1.0, 1e25):
        weight.grad = scale * torch.randn(6, 5)
        optimizer.param_groups[0]["lr"] = 0.1 / scale
        before = weight.detach().clone()
        optimizer.step()
    move, grad = (before - weight.detach()).double() / (0.1 / scale), weight.grad.double()
    assert float(move.norm()) == pytest.approx(float(grad.norm()), rel=1e-5)
    assert float((move * grad).sum() / move.norm() / grad.norm()) < 0.999  # along the last good roots, not the gradient


@pytest.mark.parametrize("decay_type", ["l2", "decoupled"])
@pytest.mark.parametrize("grafting", GRAFTS, ids=label)
def test_the_gradient_is_never_changed_not_even_a_bit(grafting: Any, decay_type: str) -> None:
    torch.manual_seed(0)
    params = [Parameter(torch.randn(5, 4)), Parameter(torch.randn(3)), Parameter(torch.tensor(1.0))]
    for config in [*CONFIGS, None]:
        optimizer = DistributedShampoo(
            params,
            betas=(0.9, 0.9),
            beta3=0.5,
            momentum=0.9,
            use_nesterov=True,
            weight_decay=0.1,
            weight_decay_type=decay_type,
            precondition_frequency=2,
            preconditioner_config=config,
            grafting_config=grafting or (AdaGradGrafting() if config is None else None),
        )
        for _ in range(3):
            grads = [torch.randn_like(p) for p in params]
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad.clone()
            optimizer.step()
            assert all(torch.equal(p.grad, grad) for p, grad in zip(params, grads, strict=True))


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_a_parameter_without_gradient_keeps_weight_and_state(config: Any) -> None:
    torch.manual_seed(0)
    used, rested = Parameter(torch.randn(4, 3)), Parameter(torch.randn(4, 3))
    optimizer = DistributedShampoo(
        [used, rested], momentum=0.9, weight_decay=0.1, precondition_frequency=1, preconditioner_config=config
    )
    for p in (used, rested):
        p.grad = torch.randn(4, 3)
    optimizer.step()
    rested.grad = None
    weight, state = rested.detach().clone(), {k: t.clone() for k, t in optimizer.state[rested].items()}
    for _ in range(2):
        optimizer.step()
    assert torch.equal(rested, weight)
    assert all(torch.equal(state[k], t) for k, t in optimizer.state[rested].items())


def test_roots_that_come_out_as_nan_are_not_used_and_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    optimizer = DistributedShampoo(
        model.named_parameters(), precondition_frequency=1, max_preconditioner_dim=3, precondition_vectors=False
    )
    assert optimizer.failed_roots_report() == ""
    original = roots_module.torch.linalg.eigh

    def to_nan(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = original(matrix)
        return values, vectors * torch.nan

    def step() -> None:
        model.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()

    step()
    good = {k: t.clone() for k, t in optimizer.state[model[0].weight].items() if "root" in k}
    with monkeypatch.context() as patch:
        patch.setattr(roots_module.torch.linalg, "eigh", to_nan)
        step()
    assert all(torch.equal(good[k], optimizer.state[model[0].weight][k]) for k in good)
    assert optimizer.num_failed_roots == 6
    assert optimizer.failed_roots_report() == (
        "6 root inverses failed: 1.weight block 0 (kept the last good one), 1.weight block 1 (kept the last good one), "
        "0.weight block 0 (kept the last good one) and 3 more blocks"
    )
    step()
    assert optimizer.num_failed_roots == 6


def test_a_block_that_never_had_a_root_says_what_it_does_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = DistributedShampoo([weight], precondition_frequency=1)

    def fails(matrix: Tensor) -> None:
        raise torch.linalg.LinAlgError("x" * 10_000)

    monkeypatch.setattr(roots_module.torch.linalg, "eigh", fails)
    for _ in range(2):
        weight.grad = torch.ones(2, 2)
        optimizer.step()
    expected = "2 root inverses failed: parameter 0 of group 0 (shape (2, 2)) block 0 (2 times, takes the grafted step)"
    assert optimizer.failed_roots_report() == expected


def test_a_step_changes_nothing_global(capfd: pytest.CaptureFixture[str]) -> None:
    def world() -> tuple[Any, ...]:
        options = vars(torch._tensor_str.PRINT_OPTS).copy()
        return (
            options,
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        )

    weight = Parameter(torch.ones(4, 4))
    before = world()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for config in CONFIGS:
            optimizer = DistributedShampoo([weight], precondition_frequency=1, preconditioner_config=config)
            for scale in (1.0, 1e25):  # the second has no root
                weight.grad = torch.full((4, 4), scale)
                optimizer.step()
    assert world() == before
    assert capfd.readouterr() == ("", "")
