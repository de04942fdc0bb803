"""Checks the settings of a parameter group, and computes the numbers of a step that follow from them."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from dlrmctl.optim.shampoo.configs import GRAFTINGS, PRECONDITIONERS, RootInverse
from dlrmctl.optim.shampoo.plan import REFRESH_SCHEDULES
from dlrmctl.optim.shampoo.roots import iterable_exponent

WEIGHT_DECAY_TYPES = ("l2", "decoupled", "corrected", "independent")
# These determine the blocks; a state dict fits only an optimizer with the same values.
STRUCTURAL = ("max_preconditioner_dim", "merge_small_dims", "precondition_vectors")


def checked_group(settings: dict[str, Any]) -> None:
    """Checks a parameter group and fills in what follows from other settings, in place.

    Raises:
        ValueError: naming the setting, its value and the rule.
    """
    _require(settings, "lr", lambda lr: float(lr) >= 0, "at least 0")
    betas = settings["betas"]
    if len(betas) != 2 or not 0 <= betas[0] < 1 or not 0 < betas[1] <= 1:
        raise ValueError(
            f"{betas=} must be (beta1, beta2) with beta1 in [0, 1) and beta2 in (0, 1]; 1 means a plain sum"
        )
    _require(settings, "beta3", lambda beta3: beta3 == -1 or 0 <= beta3 < 1, "in [0, 1), or -1 for beta1")
    _require(settings, "epsilon", lambda eps: eps is None or eps >= 0, "at least 0, or None for a relative one")
    _require(settings, "relative_epsilon", lambda eps: eps > 0, "above 0")
    _require(settings, "momentum", lambda mu: 0 <= mu < 1, "in [0, 1)")
    _require(settings, "dampening", lambda tau: 0 <= tau < 1, "in [0, 1)")
    _require(settings, "weight_decay", lambda decay: decay >= 0, "at least 0")
    decay_types = ", ".join(WEIGHT_DECAY_TYPES)
    _require(settings, "weight_decay_type", lambda t: t in (None, *WEIGHT_DECAY_TYPES), f"None or one of {decay_types}")
    if settings["peak_lr"] is None:
        settings["peak_lr"] = float(settings["lr"])
    _require(settings, "peak_lr", lambda lr: lr >= 0, "at least 0, or None for lr")
    if settings["weight_decay_type"] in ("corrected", "independent"):
        _require(settings, "peak_lr", lambda lr: lr > 0, "above 0: the weight decay is divided by it")
    _require(settings, "max_preconditioner_dim", _is_count, "an integer of at least 1")
    _require(settings, "precondition_frequency", _is_count, "an integer of at least 1")
    schedules = " or ".join(REFRESH_SCHEDULES)
    _require(settings, "refresh_schedule", lambda schedule: schedule in REFRESH_SCHEDULES, schedules)
    if settings["start_preconditioning_step"] == -1:
        early = settings["refresh_schedule"] == "doubling"
        settings["start_preconditioning_step"] = 1 if early else settings["precondition_frequency"]
    _require(
        settings,
        "start_preconditioning_step",
        lambda start: start == math.inf or _is_count(start),
        "an integer of at least 1, -1 for the first refresh, or inf for never",
    )
    _require(settings, "statistics_frequency", _is_count, "an integer of at least 1")
    for name, kinds in (("grafting_config", GRAFTINGS), ("preconditioner_config", PRECONDITIONERS)):
        if settings[name] is not None and not isinstance(settings[name], kinds):
            raise ValueError(f"{name}={settings[name]} must be None or one of {', '.join(k.__name__ for k in kinds)}")
    override = settings["inverse_exponent_override"]
    exponents = override.values() if isinstance(override, Mapping) else [] if override is None else [override]
    flat = [e for exponent in exponents for e in (exponent.values() if isinstance(exponent, Mapping) else [exponent])]
    if any(exponent < 0 for exponent in flat):
        raise ValueError(
            f"inverse_exponent_override={override} must hold exponents of at least 0; 0.25 is a fourth root"
        )
    config = settings["preconditioner_config"]
    if isinstance(config, RootInverse) and config.method in ("newton", "higher_order"):
        order = config.order if config.method == "higher_order" else None
        bad = [e for e in flat if e != 0 and iterable_exponent(e, order=order) is None]
        if bad:
            form = "1 / p" if order is None else "q / p"
            raise ValueError(
                f"inverse_exponent_override={override}: method {config.method!r} needs exponents {form} with integers "
                f"up to 16, found {bad[0]}; use 'eigh'"
            )


def decay_of_weights(settings: dict[str, Any]) -> tuple[float, float]:
    """Returns the shares of the weights that are added to the gradient, and to the finished direction; one is 0.

    - "l2": `weight_decay` to the gradient; "decoupled": `weight_decay` to the direction, so that a step shrinks weights
      by `lr * weight_decay`, as AdamW's;
    - "corrected": `weight_decay * lr / peak_lr` to the direction: with a schedule, weights shrink by the square of the
      factor, which keeps the ratio of gradient to weight steady (Defazio, arXiv:2506.02285);
    - "independent": `weight_decay / peak_lr`: weights shrink by `factor * weight_decay`, whatever the learning rate.
    """
    decay, kind = settings["weight_decay"], settings["weight_decay_type"]
    if kind is None:
        kind = "decoupled" if settings["use_decoupled_weight_decay"] else "l2"
    if decay == 0 or kind == "l2":
        return decay, 0.0
    if kind == "corrected":
        return 0.0, decay * float(settings["lr"]) / settings["peak_lr"]
    return 0.0, decay / settings["peak_lr"] if kind == "independent" else decay


def _require(settings: dict[str, Any], name: str, rule: Any, words: str) -> None:
    if not rule(settings[name]):
        raise ValueError(f"{name}={settings[name]} must be {words}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def rounded(value: float, *, float32: bool) -> float:
    """Rounds the value to float32 if the settings say so."""
    return float(torch.tensor(value, dtype=torch.float32)) if float32 else float(value)


def bias_correction(beta: float, step: int, *, float32: bool, factor: float = 1.0) -> float:
    """Returns the divisor of an average that began at zero: `1 - factor * beta^step`.

    Computed in float64. In float32, as in Meta's implementation, `1 - 0.999` is off by 1e-5; that is used only to
    repeat its trajectories digit by digit.
    """
    if not float32:
        return 1 - factor * beta**step
    power = torch.pow(beta, torch.tensor(step, dtype=torch.float32))
    return float(1 - factor * power)


def largest_ratio(beta1: float, beta2: float) -> float:
    """Returns the bound of `|m| / sqrt(v)` for any gradients: m is their average with beta1, v that of their squares.

    By Cauchy and Schwarz `(sum a_k g_k)^2 <= sum a_k^2 / b_k * sum b_k g_k^2` with `a_k = (1 - beta1) beta1^k` and
    `b_k = (1 - beta2) beta2^k` (1 for a plain sum). Infinite if v forgets too fast for a bound.
    """
    if beta1 * beta1 >= beta2:
        return math.inf
    weight = 1.0 if beta2 == 1 else 1 - beta2
    return (1 - beta1) / math.sqrt(weight * (1 - beta1 * beta1 / beta2))
