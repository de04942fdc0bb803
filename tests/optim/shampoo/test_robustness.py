"""Difficult inputs of the optimizer: bad gradients, odd parameters, matrices without a root."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from dlrmctl.optim.shampoo import (
    AdaGradGrafting,
    DistributedShampoo,
    EigenvalueCorrected,
    NonFiniteGradientError,
    RootInverse,
    SGDGrafting,
)
from dlrmctl.optim.shampoo import roots as roots_module


def _all_state(optimizer: DistributedShampoo) -> dict[str, Tensor]:
    return {f"{i}/{k}": t.clone() for i, s in enumerate(optimizer.state.values()) for k, t in s.items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_is_refused_before_anything_changes(bad: float) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    optimizer = DistributedShampoo(model.named_parameters(), precondition_frequency=1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    weights, state = [p.detach().clone() for p in model.parameters()], _all_state(optimizer)
    model[1].weight.grad[0, 2] = bad
    with pytest.raises(NonFiniteGradientError, match=r"gradient of 1\.weight: 1 of 3 values") as caught:
        optimizer.step()
    assert caught.value.name == "1.weight"
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert _same(_all_state(optimizer), state)
    assert int(optimizer.param_groups[0]["step"]) == 1


def test_an_unnamed_parameter_is_named_by_its_place() -> None:
    weight = Parameter(torch.ones(2, 2))
    optimizer = DistributedShampoo([weight])
    weight.grad = torch.full_like(weight, torch.nan)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 \(shape \(2, 2\)\)"):
        optimizer.step()


def test_a_large_finite_gradient_is_not_refused() -> None:
    weight = Parameter(torch.ones(40, 40))
    optimizer = DistributedShampoo([weight], grafting_config=SGDGrafting(), lr=0.0, precondition_frequency=1)
    weight.grad = torch.full_like(weight, 1e37)  # its norm is beyond float32
    optimizer.step()


def test_no_gradient_means_no_move_and_gradients_are_never_changed() -> None:
    used, unused = Parameter(torch.ones(3, 3)), Parameter(torch.ones(3, 3))
    optimizer = DistributedShampoo(
        [used, unused], weight_decay=0.1, momentum=0.9, use_decoupled_weight_decay=False, precondition_frequency=1
    )
    optimizer.step()
    assert torch.equal(used, torch.ones(3, 3))
    state = {k: t.clone() for k, t in optimizer.state[unused].items()}
    used.grad = torch.randn(3, 3)
    grad = used.grad.clone()
    for _ in range(3):
        optimizer.step()
    assert torch.equal(used.grad, grad)
    assert not torch.equal(used, torch.ones(3, 3))
    assert torch.equal(unused, torch.ones(3, 3))
    assert _same(optimizer.state[unused], state)


@pytest.mark.parametrize("grafting", [None, AdaGradGrafting()])
@pytest.mark.parametrize("config", [RootInverse(), EigenvalueCorrected("eigh"), EigenvalueCorrected("qr")])
def test_zero_gradients_do_not_move_a_weight(config: Any, grafting: Any) -> None:
    weight = Parameter(torch.ones(4, 3))
    optimizer = DistributedShampoo(
        [weight], preconditioner_config=config, grafting_config=grafting, precondition_frequency=1
    )
    for _ in range(3):
        weight.grad = torch.zeros(4, 3)
        optimizer.step()
    assert torch.equal(weight, torch.ones(4, 3))
    assert optimizer.num_failed_roots == 0


def test_empty_scalar_and_non_contiguous_parameters_work() -> None:
    torch.manual_seed(0)
    start = torch.randn(5, 4)
    plain, turned = Parameter(start.clone()), Parameter(start.t().contiguous().t())
    scalar, empty = Parameter(torch.tensor(1.0)), Parameter(torch.empty(0, 4))
    optimizer = DistributedShampoo(
        [plain, turned, scalar, empty], max_preconditioner_dim=3, merge_small_dims=True, precondition_frequency=1
    )
    assert not turned.is_contiguous()
    for _ in range(3):
        plain.grad = torch.randn(5, 4)
        turned.grad = plain.grad.t().contiguous().t()
        scalar.grad, empty.grad = torch.tensor(0.5), torch.empty(0, 4)
        optimizer.step()
    assert torch.equal(plain, turned)
    assert scalar.item() < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_keep_float32_state(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    half = Parameter(torch.randn(6, 4).to(dtype))
    full = Parameter(half.detach().float())
    optimizers = [DistributedShampoo([p], lr=0.1, weight_decay=0.1, precondition_frequency=1) for p in (half, full)]
    half.grad = torch.randn(6, 4).to(dtype)
    full.grad = half.grad.float()
    for optimizer in optimizers:
        optimizer.step()
    assert {t.dtype for k, t in optimizers[0].state[half].items() if k != "block_0/root_status"} == {torch.float32}
    assert torch.equal(half.detach(), full.detach().to(dtype))


def test_a_failing_root_falls_back_to_the_last_good_one_then_to_grafting(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, twin = Parameter(torch.zeros(4, 4)), Parameter(torch.zeros(4, 4))
    settings: dict[str, Any] = {"lr": 1.0, "betas": (0.0, 1.0), "precondition_frequency": 1}
    optimizer = DistributedShampoo([weight], **settings)
    grafted = DistributedShampoo([twin], **settings, preconditioner_config=None)

    def fails(matrix: Tensor) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    with monkeypatch.context() as patch:  # before there is a good root: grafting alone
        patch.setattr(roots_module.torch.linalg, "eigh", fails)
        weight.grad = twin.grad = torch.randn(4, 4)
        optimizer.step()
        grafted.step()
    assert torch.equal(weight, twin)
    assert optimizer.num_failed_roots == 1

    optimizer.step()
    good = optimizer.state[weight]["block_0/root_0"].clone()
    assert not torch.equal(good, torch.eye(4))
    with monkeypatch.context() as patch:
        patch.setattr(roots_module.torch.linalg, "eigh", fails)
        before = weight.detach().clone()
        optimizer.step()
    assert torch.equal(optimizer.state[weight]["block_0/root_0"], good)
    assert not torch.equal(weight, before)
    assert optimizer.num_failed_roots == 2


def test_one_bad_block_does_not_disturb_the_others() -> None:
    """A factor that overflows float32 has no root; blocks of its shape in the same stack have theirs."""
    torch.manual_seed(0)
    bad, good, alone = (Parameter(torch.zeros(4, 4)) for _ in range(3))
    together = DistributedShampoo([bad, good], precondition_frequency=1)
    single = DistributedShampoo([alone], precondition_frequency=1)
    good.grad = alone.grad = torch.randn(4, 4)
    bad.grad = torch.full((4, 4), 1e25)
    for _ in range(2):
        together.step()
        single.step()
    assert together.num_failed_roots == 2
    assert torch.isfinite(bad).all()
    torch.testing.assert_close(good, alone, rtol=1e-6, atol=1e-7)  # float32; the failure is retried in float64


def test_the_loss_falls_faster_than_with_the_diagonal_method() -> None:
    """An ill-conditioned quadratic, |A W B - C|^2, where curvature is not diagonal."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(8, 8, generator=generator) for _ in range(3))

    def final_loss(**settings: Any) -> float:
        weight = Parameter(torch.zeros(8, 8))
        optimizer = DistributedShampoo([weight], lr=0.5, **settings)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (a @ weight @ b - c).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert final_loss(precondition_frequency=5) < 0.5 * final_loss(preconditioner_config=None)


def test_complex_and_sparse_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 .* is complex"):
        DistributedShampoo([Parameter(torch.zeros(2, 2, dtype=torch.complex64))])
    weight = Parameter(torch.zeros(2, 2))
    optimizer = DistributedShampoo([weight])
    weight.grad = torch.zeros(2, 2).to_sparse()
    with pytest.raises(ValueError, match="Shampoo needs dense gradients"):
        optimizer.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be at least 0"),
        ({"betas": (1.0, 1.0)}, "beta1 in"),
        ({"betas": (0.9, 1.1)}, "beta2 in"),
        ({"max_preconditioner_dim": 0}, "max_preconditioner_dim=0 must be an integer of at least 1"),
        ({"precondition_frequency": 2.5}, "precondition_frequency=2.5 must be an integer"),
        ({"start_preconditioning_step": 0}, "start_preconditioning_step=0 must be"),
        ({"grafting_config": "adam"}, "grafting_config=adam must be None or one of"),
        ({"epsilon": -1.0}, "epsilon=-1.0 must be at least 0"),
        ({"inverse_exponent_override": {2: -0.5}}, "exponents of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistributedShampoo([Parameter(torch.zeros(2))], **settings)
