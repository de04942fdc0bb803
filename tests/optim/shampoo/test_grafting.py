"""With preconditioning off, grafting alone is the torch optimizer it is named after."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from dlrmctl.optim.shampoo import AdaGradGrafting, AdamGrafting, DistributedShampoo, RMSpropGrafting, SGDGrafting

# Epsilon enters as in torch: added to the root of the second moment, after Adam's bias correction of it.
PAIRS: list[tuple[str, Callable[..., Optimizer], dict[str, Any], dict[str, Any]]] = [
    ("sgd", SGD, {}, {"grafting_config": SGDGrafting(), "betas": (0.0, 1.0)}),
    (
        "sgd with Nesterov momentum and L2",
        SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {
            "grafting_config": SGDGrafting(),
            "betas": (0.0, 1.0),
            "momentum": 0.9,
            "use_nesterov": True,
            "weight_decay": 0.1,
            "use_decoupled_weight_decay": False,
        },
    ),
    ("adagrad", Adagrad, {"eps": 1e-8}, {"grafting_config": AdaGradGrafting(1e-8), "betas": (0.0, 1.0)}),
    ("rmsprop", RMSprop, {"alpha": 0.9}, {"grafting_config": RMSpropGrafting(0.9, 1e-8), "betas": (0.0, 1.0)}),
    ("adam", Adam, {"betas": (0.8, 0.99)}, {"grafting_config": AdamGrafting(0.99, 1e-8), "betas": (0.8, 1.0)}),
    (
        "adamw",
        AdamW,
        {"weight_decay": 0.1},
        {"grafting_config": AdamGrafting(0.999, 1e-8), "betas": (0.9, 1.0), "weight_decay": 0.1},
    ),
]


@pytest.mark.parametrize("off", [{"preconditioner_config": None}, {"start_preconditioning_step": 1000}])
@pytest.mark.parametrize(("name", "torch_class", "torch_settings", "ours"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_without_preconditioning_it_is_torchs_own(
    name: str, torch_class: Callable[..., Optimizer], torch_settings: dict, ours: dict, off: dict
) -> None:
    generator = torch.Generator().manual_seed(1)
    starts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(6, 5), (5,), ()]]
    mine, theirs = [[Parameter(start.clone()) for start in starts] for _ in range(2)]
    optimizers = [DistributedShampoo(mine, lr=0.01, **ours, **off), torch_class(theirs, lr=0.01, **torch_settings)]
    for _ in range(10):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator, dtype=torch.float64)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(mine, theirs, strict=True):
        # The same formula in another order of multiplications: a few roundings of 1e-16 per step.
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
        if name == "sgd":
            assert torch.equal(a, b)  # here even the order is the same


@pytest.mark.parametrize("grafting", [RMSpropGrafting, AdamGrafting])
def test_without_the_weighting_factor_it_is_rmsprop_at_another_rate(grafting: type) -> None:
    # The second moment is 1 / (1 - beta2) times RMSprop's, and nothing corrects it.
    generator, root = torch.Generator().manual_seed(1), (1 - 0.9) ** 0.5
    start = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mine, theirs = Parameter(start.clone()), Parameter(start.clone())
    graft = grafting(0.9, 1e-8 / root, drop_weighting_factor_on_gsquare=True)
    ours = DistributedShampoo(
        [mine], lr=0.01 / root, betas=(0.0, 1.0), grafting_config=graft, preconditioner_config=None
    )
    other = RMSprop([theirs], lr=0.01, alpha=0.9, eps=1e-8)
    for _ in range(10):
        mine.grad = theirs.grad = torch.randn(6, 5, generator=generator, dtype=torch.float64)
        ours.step()
        other.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)  # rounding


def test_grafted_blocks_have_the_length_of_the_grafted_step() -> None:
    torch.manual_seed(0)
    weight = Parameter(torch.randn(6, 8, dtype=torch.float64))
    before = weight.detach().clone()
    optimizer = DistributedShampoo(
        [weight], lr=1.0, betas=(0.0, 1.0), max_preconditioner_dim=4, precondition_frequency=1, epsilon=1e-6
    )
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    move, adagrad = before - weight.detach(), weight.grad / (weight.grad.abs() + 1e-10)
    assert not torch.allclose(move, adagrad)
    for rows, columns in [(slice(0, 4), slice(0, 4)), (slice(4, 6), slice(4, 8))]:
        assert float(move[rows, columns].norm()) == pytest.approx(float(adagrad[rows, columns].norm()), rel=1e-12)


@pytest.mark.parametrize("beta2", [1.0, 0.9])
def test_vectors_without_grafting_take_the_diagonal_of_their_own_statistics(beta2: float) -> None:
    mine, theirs = Parameter(torch.ones(5, dtype=torch.float64)), Parameter(torch.ones(5, dtype=torch.float64))
    ours = DistributedShampoo(
        [mine], lr=0.1, betas=(0.0, beta2), grafting_config=None, precondition_vectors=False, epsilon=1e-8
    )
    other = Adagrad([theirs], lr=0.1, eps=1e-8) if beta2 == 1 else Adam([theirs], lr=0.1, betas=(0.0, beta2), eps=1e-8)
    for step in range(4):
        mine.grad = theirs.grad = torch.arange(5, dtype=torch.float64) - step
        ours.step()
        other.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-14)  # rounding


@pytest.mark.parametrize("make", [lambda: AdamGrafting(beta2=1.0), lambda: AdaGradGrafting(-1.0)])
def test_refuses_settings_out_of_range(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"grafting (beta2|epsilon)"):
        make()
