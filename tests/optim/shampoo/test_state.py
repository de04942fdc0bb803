"""State dicts, copies and late groups."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from dlrmctl.optim.shampoo import AdamGrafting, DistributedShampoo, Eigendecomposed, EigenvalueCorrected, RootInverse

SETTINGS: list[dict[str, Any]] = [
    {"precondition_frequency": 2, "stagger_refresh": True, "momentum": 0.9},
    {"precondition_frequency": 4, "stagger_refresh": True, "refresh_schedule": "doubling"},
    {
        "precondition_frequency": 2,
        "betas": (0.9, 0.99),
        "grafting_config": AdamGrafting(),
        "inverse_exponent_override": {2: {0: 0.5}},
        "preconditioner_config": EigenvalueCorrected("eigh", ignored_basis_change_dims={2: [0]}),
    },
    {
        "precondition_frequency": 2,
        "preconditioner_config": Eigendecomposed("qr", statistics="kl"),
        "weight_decay_type": "corrected",
    },
    {
        "precondition_frequency": 2,
        "preconditioner_config": RootInverse("higher_order", trace_scaling=True),
        "inverse_exponent_override": {2: {1: 0.0}},
    },
]


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 2))


def _train(model: nn.Sequential, optimizer: DistributedShampoo, steps: range) -> None:
    for step in steps:
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def _same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_state_dict_is_safe_to_load_and_continues_to_the_bit(settings: dict[str, Any]) -> None:
    model = _model()
    optimizer = DistributedShampoo(model.parameters(), **settings)
    _train(model, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    _train(model, optimizer, range(5, 9))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = _model()
    resumed = DistributedShampoo(other.parameters(), lr=123.0, **(settings | {"weight_decay": 0.5}))
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert resumed.param_groups[0]["grafting_config"] == optimizer.param_groups[0]["grafting_config"]
    _train(other, resumed, range(5, 9))
    assert _same_weights(model, other)


def test_blocks_can_be_loaded_by_hand() -> None:
    model, other = _model(), _model()
    optimizer = DistributedShampoo(model.parameters(), precondition_frequency=1)
    resumed = DistributedShampoo(other.parameters(), precondition_frequency=1)
    _train(model, optimizer, range(3))
    state = {k: t.clone() for k, t in optimizer.blocks_state_dict(dict(model.named_parameters())).items()}
    other.load_state_dict(model.state_dict())
    resumed.load_blocks_state_dict(dict(other.named_parameters()), state)
    _train(model, optimizer, range(3, 6))
    _train(other, resumed, range(3, 6))
    assert _same_weights(model, other)
    assert {"group_0/step", "0.weight/block_0/factor_0", "3.bias/block_0/root_0"} <= state.keys()


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_copy_lives_its_own_life(settings: dict[str, Any]) -> None:
    model = _model()
    optimizer = DistributedShampoo(model.parameters(), **settings)
    _train(model, optimizer, range(3))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    before = copy.deepcopy(model)
    _train(twin, twin_optimizer, range(3, 7))
    assert _same_weights(model, before)
    _train(model, optimizer, range(3, 7))
    assert _same_weights(model, twin)
    factors = [t for key, t in twin_optimizer.state[twin[0].weight].items() if "factor" in key]
    assert factors
    assert all(t.any() for t in factors)


def test_a_group_added_later_trains_with_its_own_settings_and_counter() -> None:
    model, whole = _model(), _model()
    optimizer = DistributedShampoo(model[0].parameters(), precondition_frequency=1)
    optimizer.add_param_group({"params": list(model[2:].parameters()), "lr": 0.5})
    groups = [{"params": list(whole[0].parameters())}, {"params": list(whole[2:].parameters()), "lr": 0.5}]
    together = DistributedShampoo(groups, precondition_frequency=1)
    _train(model, optimizer, range(4))
    _train(whole, together, range(4))
    assert _same_weights(model, whole)

    with pytest.raises(ValueError, match="lr=-1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": -1})
    assert len(optimizer.param_groups) == 2
    extra = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra]})
    extra.grad = torch.ones(3)
    _train(model, optimizer, range(4, 6))
    assert not torch.equal(extra, torch.ones(3)) or extra.grad is None
    assert [int(group["step"]) for group in optimizer.param_groups] == [6, 6, 2]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_group_added_in_the_middle_does_not_disturb_the_others(settings: dict[str, Any]) -> None:
    model, twin = _model(), _model()
    optimizer, alone = [DistributedShampoo(m[:3].parameters(), **settings) for m in (model, twin)]
    _train(model, optimizer, range(3))
    _train(twin, alone, range(3))
    optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 0.0, "peak_lr": 0.01})
    _train(model, optimizer, range(3, 7))
    _train(twin, alone, range(3, 7))
    assert _same_weights(model, twin)
    assert all(torch.equal(a, b) for a, b in zip(_model()[3].parameters(), model[3].parameters(), strict=True))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_preconditioner_dim": 3}, "saved with max_preconditioner_dim=128, the optimizer has 3"),
        ({"momentum": 0.9}, "momentum is missing"),
        ({"inverse_exponent_override": {2: {0: 0}}}, "factor_0 does not belong to this optimizer"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing(change: dict, message: str) -> None:
    model = _model()
    saved = DistributedShampoo(model.parameters()).state_dict()
    optimizer = DistributedShampoo(model.parameters(), lr=0.5, **change)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_every_parameter_needs_a_name_for_a_state_by_block() -> None:
    model = _model()
    optimizer = DistributedShampoo(model.parameters())
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 .* has no name"):
        optimizer.blocks_state_dict({"some": model[2].weight})
