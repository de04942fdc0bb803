"""The optimizer equals the slow loops of reference.py, for many combinations of settings."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from dlrmctl.optim.shampoo import (
    AdaGradGrafting,
    AdamGrafting,
    DistributedShampoo,
    EigenvalueCorrected,
    RMSpropGrafting,
    SGDGrafting,
)
from tests.optim.shampoo.reference import ReferenceShampoo

GRAFTS = {
    None: None,
    "sgd": (SGDGrafting(), ("sgd", 0.0, 0.0)),
    "adagrad": (AdaGradGrafting(1e-6), ("adagrad", 1e-6, 0.0)),
    "rmsprop": (RMSpropGrafting(0.9, 1e-6), ("rmsprop", 1e-6, 0.9)),
    "adam": (AdamGrafting(0.99, 1e-6), ("adam", 1e-6, 0.99)),
}
SHAPES = [(7, 5), (7,), (1, 6), (), (4, 3, 2), (2, 1, 3, 5), (9, 9)]

CASES: list[tuple[str | None, dict[str, Any]]] = [
    (None, {}),
    ("sgd", {"betas": (0.9, 0.99), "start_preconditioning_step": 3}),
    ("sgd", {"betas": (0.9, 0.99), "start_preconditioning_step": 3, "use_bias_correction": False}),
    ("adagrad", {"max_preconditioner_dim": 4}),
    ("rmsprop", {"betas": (0.9, 0.95), "beta3": 0.5, "precondition_frequency": 3, "start_preconditioning_step": 4}),
    ("adam", {"betas": (0.9, 0.99), "momentum": 0.8, "dampening": 0.2, "use_nesterov": True, "weight_decay": 0.1}),
    ("adam", {"weight_decay": 0.1, "use_decoupled_weight_decay": False, "momentum": 0.5, "max_preconditioner_dim": 3}),
    ("adagrad", {"betas": (0.5, 0.9), "use_bias_correction": False, "precondition_vectors": False}),
    ("adagrad", {"epsilon": None, "relative_epsilon": 1e-3}),
    ("adagrad", {"inverse_exponent_override": 0.5}),
    ("adagrad", {"precondition_frequency": 5, "refresh_schedule": "doubling", "betas": (0.5, 0.9)}),
]


@pytest.mark.parametrize(("graft", "settings"), CASES)
def test_steps_equal_the_slow_reference(graft: str | None, settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    params = [Parameter(start.clone()) for start in starts]
    config, words = GRAFTS[graft] or (None, None)
    ours_settings = {"lr": 0.01, "betas": (0.0, 1.0), "epsilon": 1e-4, "precondition_frequency": 1} | settings
    ours = DistributedShampoo(params, grafting_config=config, **ours_settings)
    start = ours.param_groups[0]["start_preconditioning_step"]
    exponent = settings.get("inverse_exponent_override")
    slow_settings = ours_settings | {"graft": words, "exponent": exponent, "start_preconditioning_step": start}
    if settings.get("refresh_schedule") == "doubling":
        slow_settings["refresh_at"] = (1, 2, 5)
    slow = ReferenceShampoo([start.clone() for start in starts], **slow_settings)

    for step in range(8):
        grads: list[torch.Tensor | None] = [
            torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES
        ]
        if step in (2, 5):
            grads[step - 2] = None  # a parameter that was not used keeps its state, too
        for param, grad in zip(params, grads, strict=True):
            param.grad = None if grad is None else grad.clone()
        ours.step()
        slow.step(grads)
        for param, grad, expected in zip(params, grads, slow.weights, strict=True):
            # Root inverses of matrices with condition 1e5 carry 1e-16 * 1e5; the rest is rounding.
            torch.testing.assert_close(param.detach(), expected, rtol=1e-10, atol=1e-11)
            assert grad is None or torch.equal(param.grad, grad)


@pytest.mark.parametrize("graft", [None, "adam"])
def test_eigenvalue_correction_equals_the_slow_reference(graft: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (2, 3, 2), (3,)]
    starts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    params = [Parameter(start.clone()) for start in starts]
    config, words = GRAFTS[graft] or (None, None)
    # It starts once every factor has full rank: before, its eigenvectors are not unique.
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "epsilon": 1e-8, "precondition_frequency": 3}
    settings["start_preconditioning_step"] = 4
    ours = DistributedShampoo(
        params, grafting_config=config, preconditioner_config=EigenvalueCorrected("eigh"), **settings
    )
    slow = ReferenceShampoo([start.clone() for start in starts], graft=words, soap=True, **settings)
    for _ in range(12):
        grads = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        ours.step()
        slow.step(list(grads))
    for param, expected in zip(params, slow.weights, strict=True):
        torch.testing.assert_close(param.detach(), expected, rtol=1e-10, atol=1e-11)  # eigenvectors of gap 1e-3


def test_the_order_of_parameters_and_groups_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in SHAPES]
    grads = [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(4)]
    reached = []
    for order in (range(len(SHAPES)), reversed(range(len(SHAPES)))):
        params = [Parameter(start.clone()) for start in starts]
        chosen = [params[i] for i in order]
        groups = [{"params": chosen[:3]}, {"params": chosen[3:]}]
        optimizer = DistributedShampoo(groups, max_preconditioner_dim=4, precondition_frequency=2)
        for step_grads in grads:
            for param, grad in zip(params, step_grads, strict=True):
                param.grad = grad
            optimizer.step()
        reached.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*reached, strict=True))


def test_statistics_every_k_steps_stand_for_k() -> None:
    """With a constant gradient it makes no difference which of its products are taken."""
    for beta2 in (1.0, 0.9):
        reached = []
        for every in (1, 4):
            weight = Parameter(torch.ones(3, 2, dtype=torch.float64))
            optimizer = DistributedShampoo(
                [weight],
                betas=(0.0, beta2),
                grafting_config=None,
                statistics_frequency=every,
                precondition_frequency=4,
                epsilon=1e-6,
            )
            for _ in range(8):
                weight.grad = torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 0.1]], dtype=torch.float64)
                optimizer.step()
            reached.append(weight.detach())
        torch.testing.assert_close(reached[0], reached[1], rtol=1e-12, atol=1e-13)  # rounding
