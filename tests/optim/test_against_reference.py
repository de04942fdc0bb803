"""The optimizer equals the slow loops of reference.py, for many combinations of settings."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from optim.shampoo import AdaGradGrafting, AdamGrafting, DistributedShampoo, RMSpropGrafting, SGDGrafting
from tests.optim.reference import ReferenceShampoo

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
