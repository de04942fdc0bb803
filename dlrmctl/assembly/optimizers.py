"""Builds the dense optimizer, its averaging and the learning-rate schedule, and names their state."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlrmctl.models.dlrm import DenseNetwork
from dlrmctl.models.mlp import MLP
from dlrmctl.optim.averaging import GrowingHorizon, PrimalAveraging
from dlrmctl.optim.muon import Muon
from dlrmctl.optim.schedule import Schedule
from dlrmctl.optim.shampoo import (
    AdaGradGrafting,
    AdamGrafting,
    DistributedShampoo,
    RMSpropGrafting,
    RootInverse,
    SGDGrafting,
)
from dlrmctl.optim.shampoo.configs import Grafting
from dlrmctl.optim.signum import Signum
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import Config, OptimSettings

_MU_Y = {"gpa": 0.7, "ema": 0.0, "schedule-free": 0.9}


def build_dense_optimizer(
    settings: OptimSettings, network: nn.Module, group: dist.ProcessGroup | None
) -> torch.optim.Optimizer:
    """Builds the optimizer of the MLPs; the tables' optimizer runs inside their backward.

    Args:
        group: the ranks that share Shampoo's work; None means this process alone.
    """
    parameters, lr, decay = list(network.parameters()), settings.dense_lr, settings.weight_decay
    # One pass over memory on CPU. On a GPU, torch's fused Adagrad, which also counts its steps there, was not tried.
    kernel = {"fused": True} if parameters[0].device.type == "cpu" else {"foreach": True}
    if settings.dense_optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=lr, weight_decay=decay, eps=settings.dense_eps, **kernel)
    if settings.dense_optimizer == "adamw":
        betas = (settings.beta1 or 0.9, settings.beta2 if settings.beta2 < 1 else 0.999)
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=decay, eps=settings.dense_eps, **kernel)
    if settings.dense_optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum, weight_decay=decay, **kernel)
    if settings.dense_optimizer == "signum":
        return Signum(parameters, lr=lr, beta=settings.beta1 or 0.9, weight_decay=decay)
    if settings.dense_optimizer == "muon":
        matrices = hidden_matrices(network)
        others = [p for p in parameters if not any(p is matrix for matrix in matrices)]
        # Not --dense-eps: AdamW divides by roots of averages, which are smaller than Adagrad's sums.
        return Muon(matrices, others, lr=lr, momentum=settings.beta1 or 0.95, weight_decay=decay)
    return DistributedShampoo(
        network.named_parameters(),
        lr=lr,
        betas=(settings.beta1, settings.beta2),
        relative_epsilon=settings.shampoo_epsilon,
        momentum=settings.momentum,
        weight_decay=decay,
        use_decoupled_weight_decay=True,
        max_preconditioner_dim=settings.shampoo_block,
        precondition_frequency=settings.shampoo_frequency,
        refresh_schedule=settings.shampoo_schedule,
        start_preconditioning_step=settings.shampoo_start,
        grafting_config=_grafting(settings),
        # One-sided: the root of that factor alone, to the power -1/2.
        inverse_exponent_override={2: {0: 0.5, 1: 0.0}} if settings.shampoo_sides == 1 else None,
        precondition_vectors=False,
        preconditioner_config=RootInverse(method=settings.shampoo_roots),
        stagger_refresh=settings.shampoo_roots == "eigh",
        statistics_frequency=settings.shampoo_statistics,
        process_group=group,
    )


def hidden_matrices(network: nn.Module) -> list[Tensor]:
    """The weights of layers between hidden units: without the bottom MLP's first layer, and that of the logit."""
    outer: list[Tensor] = []
    if isinstance(network, DenseNetwork):
        layers = [network.top.output, *([network.bottom.layers[0]] if isinstance(network.bottom, MLP) else [])]
        outer = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    return [p for p in network.parameters() if p.dim() == 2 and not any(p is weight for weight in outer)]


def build_averaging(settings: OptimSettings, optimizer: torch.optim.Optimizer) -> PrimalAveraging | None:
    """Returns the averaging that wraps this optimizer and steps in its place; None without averaging."""
    if settings.averaging == "none":
        return None
    horizon, mu_y = settings.averaging_horizon, settings.averaging_mu_y
    return PrimalAveraging(
        optimizer,
        train_interp_coeff=_MU_Y[settings.averaging] if mu_y is None else mu_y,
        eval_interp_coeff=GrowingHorizon() if horizon is None else 1 - 1 / horizon,
        weight_lr_power=2.0 if settings.averaging == "schedule-free" else None,
    )


def _grafting(settings: OptimSettings) -> Grafting | None:
    beta2 = settings.beta2 if settings.beta2 < 1 else 0.999
    if settings.grafting == "adagrad":
        return AdaGradGrafting(epsilon=settings.dense_eps)
    if settings.grafting == "rmsprop":
        return RMSpropGrafting(beta2=beta2, epsilon=settings.dense_eps)
    if settings.grafting == "adam":
        return AdamGrafting(beta2=beta2, epsilon=settings.dense_eps)
    return SGDGrafting() if settings.grafting == "sgd" else None


def build_schedule(config: Config, steps: int, steps_before: int = 0) -> Schedule:
    """Returns the learning-rate factor by step of a run of this many steps; a decay without a length ends with it.

    Args:
        steps_before: steps of the runs that this one started from. The schedule continues from there, except that a
            decay that ends with the run is repeated, without warmup.
    """
    settings = config.schedule
    warmup_steps = default_warmup(steps) if settings.warmup_steps is None else settings.warmup_steps
    if steps_before >= warmup_steps and settings.decay != "none" and not settings.decay_steps:
        steps_before, warmup_steps = 0, 0
    ramp = warmup_steps + settings.hold_steps
    decay_steps = 0 if settings.decay == "none" else settings.decay_steps or max(steps - ramp, 1)
    return Schedule(
        warmup_steps=warmup_steps,
        hold_steps=settings.hold_steps,
        decay_steps=decay_steps,
        decay="cosine" if settings.decay == "cosine" else "polynomial",
        floor=settings.final_lr_factor,
        steps_before=steps_before,
    )


def default_warmup(steps: int) -> int:
    """A twentieth of the run, at least 50 steps and at most 1,000, but never more than a tenth of the run."""
    return min(max(steps // 20, 50), 1000, steps // 10)


def dense_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Returns the state by parameter name: live tensors, so that loading into them changes the optimizer.

    State that torch's optimizers make on their first step is made here, since a load would miss it otherwise.
    """
    named = dict(network.named_parameters())
    if isinstance(optimizer, DistributedShampoo):
        return optimizer.blocks_state_dict(named)
    if any(p not in optimizer.state for p in named.values()):
        _materialize(optimizer)
    return {
        f"{name}.{key}": value
        for name, parameter in named.items()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def failed_roots(optimizer: torch.optim.Optimizer, ranks: Ranks) -> list[str]:
    """Returns one line per rank with failed roots of Shampoo blocks. Every rank must call it."""
    report = optimizer.failed_roots_report() if isinstance(optimizer, DistributedShampoo) else ""
    return [text for text in ranks.gather(report) if text]


@torch.no_grad()
def _materialize(optimizer: torch.optim.Optimizer) -> None:
    """Makes a torch optimizer allocate its state, without changing a weight."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [(p.detach().clone(), p.grad) for p in parameters]
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, (value, grad) in zip(parameters, before, strict=True):
        p.copy_(value)
        p.grad = grad
        for state in optimizer.state[p].values():
            if isinstance(state, Tensor):
                state.zero_()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
