"""Collects the gradients of a step, and rejects them if one of them cannot be used."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class NonFiniteGradientError(ValueError):
    """Raised before anything is changed if a gradient holds NaN or infinity; `name` is the parameter's name."""

    def __init__(self, name: str, num_bad: int, numel: int) -> None:
        super().__init__(
            f"gradient of {name}: {num_bad:,} of {numel:,} values are not finite; "
            "no weight and no state was changed; a lower learning rate or gradient clipping may help"
        )
        self.name = name


def parameter_name(group: dict[str, Any], position: int, group_index: int) -> str:
    if "param_names" in group:
        return str(group["param_names"][position])
    return f"parameter {position} of group {group_index} (shape {tuple(group['params'][position].shape)})"


def gradients(param_groups: Sequence[dict[str, Any]], *, check: bool = True) -> list[list[Tensor | None]]:
    """Returns the gradients, `[group][position]`, None where there is none.

    With `check`, they must be finite. A finite norm, one fused call per device and type, means finite gradients. Since
    a norm can overflow where no gradient does, each gradient is checked only if the norm is not finite.

    Raises:
        NonFiniteGradientError: if one that is checked holds NaN or infinity.
        ValueError: if one is sparse.
    """
    grads = [[p.grad for p in group["params"]] for group in param_groups]
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for g, group_grads in enumerate(grads):
        for i, grad in enumerate(group_grads):
            if grad is None or grad.numel() == 0:
                continue
            if grad.layout != torch.strided:
                name = parameter_name(param_groups[g], i, g)
                raise ValueError(f"gradient of {name} has layout {grad.layout}; Shampoo needs dense gradients")
            by_kind[grad.device, grad.dtype].append(grad)
    if not check:
        return grads
    norms = [torch.stack(torch._foreach_norm(tensors)).sum() for tensors in by_kind.values()]
    if not all(math.isfinite(float(norm)) for norm in norms):
        _refuse_non_finite(param_groups, grads)
    return grads


def _refuse_non_finite(param_groups: Sequence[dict[str, Any]], grads: list[list[Tensor | None]]) -> None:
    for g, group_grads in enumerate(grads):
        for i, grad in enumerate(group_grads):
            if grad is not None and not grad.isfinite().all():
                num_bad = int((~grad.isfinite()).sum())
                raise NonFiniteGradientError(parameter_name(param_groups[g], i, g), num_bad, grad.numel())
