"""Saves and loads plain state dicts as in torch.optim, and state by block name for any number of ranks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from dlrmctl.optim.shampoo.configs import config_from_dict, config_to_dict
from dlrmctl.optim.shampoo.gradients import parameter_name
from dlrmctl.optim.shampoo.settings import STRUCTURAL

_CONFIGS = ("grafting_config", "preconditioner_config")
_LEFT_ALONE = {"params", "param_names", "step", *_CONFIGS}


def to_plain(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Returns the state dict with configurations as dicts; the optimizer's own groups are not changed."""
    groups = [group | {name: config_to_dict(group[name]) for name in _CONFIGS} for group in state_dict["param_groups"]]
    return state_dict | {"param_groups": groups}


def load_plain(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Copies a state dict into the optimizer's live tensors, after checking all of it."""
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(optimizer.param_groups):
        raise ValueError(f"the state dict has {len(saved_groups)} groups, the optimizer {len(optimizer.param_groups)}")
    copies: list[tuple[Tensor, Tensor]] = []
    for g, (group, saved) in enumerate(zip(optimizer.param_groups, saved_groups, strict=True)):
        if len(group["params"]) != len(saved["params"]):
            raise ValueError(f"group {g} has {len(group['params'])} parameters, the state dict {len(saved['params'])}")
        for name in STRUCTURAL:
            if group[name] != saved[name]:
                raise ValueError(f"group {g} was saved with {name}={saved[name]}, the optimizer has {group[name]}")
        for i, (p, index) in enumerate(zip(group["params"], saved["params"], strict=True)):
            prefix = parameter_name(group, i, g)
            live, found = optimizer.state.get(p, {}), state_dict["state"].get(index, {})
            copies += _matched(live, found, prefix, "; a state dict fits the same rank of the same number of ranks")
    for group, saved in zip(optimizer.param_groups, saved_groups, strict=True):
        group.update({name: value for name, value in saved.items() if name not in _LEFT_ALONE})
        group.update({name: config_from_dict(saved[name]) for name in _CONFIGS})
        group["step"].copy_(torch.as_tensor(saved["step"]))
    _copy(copies)


def blocks_state_dict(optimizer: Optimizer, named: Mapping[str, Parameter]) -> dict[str, Tensor]:
    names = {id(p): name for name, p in named.items()}
    tensors: dict[str, Tensor] = {}
    for g, group in enumerate(optimizer.param_groups):
        tensors[f"group_{g}/step"] = group["step"]
        for i, p in enumerate(group["params"]):
            if id(p) not in names:
                raise ValueError(f"{parameter_name(group, i, g)} has no name among the {len(names)} given")
            tensors |= {f"{names[id(p)]}/{key}": tensor for key, tensor in optimizer.state.get(p, {}).items()}
    return tensors


def load_blocks_state_dict(
    optimizer: Optimizer, named: Mapping[str, Parameter], state_dict: Mapping[str, Tensor]
) -> None:
    _copy(_matched(blocks_state_dict(optimizer, named), state_dict, "optimizer state", ""))


def _matched(live: Mapping[str, Tensor], found: Mapping[str, Any], what: str, hint: str) -> list[tuple[Tensor, Tensor]]:
    extra = [key for key in found if key not in live and hint]
    if extra:
        raise ValueError(f"{what}: {extra[0]} does not belong to this optimizer, which has other settings")
    pairs = []
    for key, tensor in live.items():
        if key not in found:
            raise ValueError(f"{what}: {key} is missing{hint}")
        saved = torch.as_tensor(found[key])
        if saved.shape != tensor.shape:
            raise ValueError(f"{what}: {key} has shape {tuple(saved.shape)}, expected {tuple(tensor.shape)}")
        pairs.append((tensor, saved))
    return pairs


@torch.no_grad()
def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for live, saved in pairs:
        if live is not saved:
            live.copy_(saved)
