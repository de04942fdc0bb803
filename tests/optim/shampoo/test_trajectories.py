"""The optimizer takes the steps that the reference implementation took, in float64 (see fixtures/README.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from dlrmctl.optim.averaging import PrimalAveraging
from dlrmctl.optim.shampoo import AdaGradGrafting, AdamGrafting, DistributedShampoo, EigenvalueCorrected, RootInverse

FIXTURES = Path(__file__).parent / "fixtures"
CONFIGURATIONS = json.loads((FIXTURES / "configurations.json").read_text())
NUM_STEPS = 20


def _optimizer(params: list[Parameter], words: dict[str, Any]) -> DistributedShampoo | PrimalAveraging:
    """The reference's words for a configuration, and its defaults, in ours."""
    grafting = None
    if "grafting" in words:
        fields = dict(words["grafting"])
        grafting = {"adagrad": AdaGradGrafting, "adam": AdamGrafting}[fields.pop("type")](**fields)
    averaged = "averaging" in words
    base = DistributedShampoo(
        params,
        lr=words["lr"],
        betas=tuple(words.get("betas", (0.9, 1.0))),
        epsilon=words.get("epsilon", 1e-12),
        momentum=words.get("momentum", 0.0),
        dampening=words.get("dampening", 0.0),
        use_nesterov=words.get("nesterov", False),
        weight_decay=0.0 if averaged else words.get("weight_decay", 0.0),
        use_decoupled_weight_decay=words.get("weight_decay_type", "DECOUPLED") == "DECOUPLED",
        max_preconditioner_dim=words.get("max_preconditioner_dim", 1024),
        merge_small_dims=words.get("target_dim", 1) == 1,
        precondition_frequency=words.get("precondition_frequency", 1),
        start_preconditioning_step=words.get("start_preconditioning_step", -1),
        grafting_config=grafting,
        preconditioner_config=EigenvalueCorrected(method="qr") if "precond" in words else RootInverse(),
        use_float32_scalars=True,
    )
    if not averaged:
        return base
    return PrimalAveraging(
        base,
        train_interp_coeff=words["averaging"]["train_interp_coeff"],
        eval_interp_coeff=words["averaging"]["eval_interp_coeff"],
        weight_decay=words["weight_decay"],
        use_float32_scalars=True,
    )


def _loss(weights: dict[str, Tensor], x: Tensor, y: Tensor, step: int) -> Tensor:
    rows = torch.arange(64 * step, 64 * step + 64) % len(x)
    hidden = x[rows]
    for layer in range(3):
        hidden = hidden @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]
        hidden = hidden.tanh() if layer < 2 else hidden
    return (hidden - y[rows]).square().mean()


@pytest.mark.parametrize("closed_loop", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_takes_the_steps_of_the_reference(name: str, closed_loop: bool) -> None:
    """Open loop: gradients at the reference's weights. Closed loop: at our own."""
    problem = {key: torch.from_numpy(value) for key, value in np.load(FIXTURES / "problem.npz").items()}
    reached = {key: torch.from_numpy(value) for key, value in np.load(FIXTURES / f"{name}.npz").items()}
    weights = {key: Parameter(problem[f"init/{key}"].clone()) for key in reached}
    optimizer = _optimizer(list(weights.values()), CONFIGURATIONS[name])
    # 1e-9, or a hundred times what rounding alone does to this configuration.
    tolerance = max(100 * CONFIGURATIONS[name]["noise_floor"], 1e-9)

    for step in range(NUM_STEPS):
        at: dict[str, Tensor] = dict(weights)
        if not closed_loop:
            at = {
                k: (reached[k][step - 1] if step else w.detach().clone()).requires_grad_() for k, w in weights.items()
            }
        grads = torch.autograd.grad(_loss(at, problem["X"], problem["Y"], step), list(at.values()))
        for weight, grad in zip(weights.values(), grads, strict=True):
            weight.grad = grad
        optimizer.step()
        for key, weight in weights.items():
            error = (weight.detach() - reached[key][step]).norm() / reached[key][step].norm()
            assert error < tolerance, f"step {step}, {key}"
