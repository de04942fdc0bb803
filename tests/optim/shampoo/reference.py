"""Reference Shampoo in float64, one block and one matrix at a time."""

import itertools
from typing import Any

import torch
from torch import Tensor


def inverse_root(factor: Tensor, exponent: float, epsilon: float, pseudo: bool = False) -> Tensor:
    if pseudo:
        values, vectors = torch.linalg.eigh(factor)
        kept = values > len(values) * torch.finfo(factor.dtype).eps * values.max()
        return vectors @ torch.diag(torch.where(kept, values.abs() ** -exponent, 0.0)) @ vectors.T
    values, vectors = torch.linalg.eigh(factor + epsilon * torch.eye(len(factor), dtype=factor.dtype))
    if values.min() < epsilon:
        values = values - values.min() + epsilon
    return vectors @ torch.diag(values**-exponent) @ vectors.T


def unfold(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


def mode_product(tensor: Tensor, matrix: Tensor, dim: int) -> Tensor:
    return torch.tensordot(matrix, tensor, dims=([1], [dim])).movedim(0, dim)


class ReferenceShampoo:
    """Steps a list of float64 tensors; settings by the names of DistributedShampoo."""

    def __init__(self, weights: list[Tensor], **settings: Any) -> None:
        self.weights = weights
        self.s: dict[str, Any] = {
            "lr": 0.01,
            "betas": (0.0, 1.0),
            "beta3": -1.0,
            "epsilon": 1e-4,
            "relative_epsilon": 0.0,
            "momentum": 0.0,
            "dampening": 0.0,
            "use_nesterov": False,
            "weight_decay": 0.0,
            "use_decoupled_weight_decay": True,
            "max_preconditioner_dim": 1024,
            "precondition_frequency": 1,
            "start_preconditioning_step": 1,
            "refresh_at": None,  # steps, in place of these two
            "use_bias_correction": True,
            "precondition_vectors": True,
            "exponent": None,
            "graft": None,  # (name, epsilon, beta2)
            "soap": False,
            "statistics": "shampoo",  # or "kl", "kl_mean"
            "trace_scaling": False,
            "pseudo": False,
            "ignored": (),  # of SOAP: dimensions that keep their basis
            "decay_type": None,
            "peak_lr": None,
        } | settings
        self.t = 0
        self.state: dict[Any, dict[str, Any]] = {}

    def step(self, grads: list[Tensor | None]) -> None:
        self.t += 1
        limit = self.s["max_preconditioner_dim"]
        for index, (weight, grad) in enumerate(zip(self.weights, grads, strict=True)):
            if grad is None:
                continue
            shape = [n for n in weight.shape if n != 1] or [1]
            view, grad_view = weight.view(shape), grad.reshape(shape)
            for corner in itertools.product(*(range(0, n, limit) for n in shape)):
                region = tuple(slice(start, start + limit) for start in corner)
                move = self.direction((index, corner), view[region].clone(), grad_view[region].clone())
                view[region] -= self.s["lr"] * move

    def direction(self, key: Any, weight: Tensor, grad: Tensor) -> Tensor:
        s, t = self.s, self.t
        state = self.state.setdefault(key, {"new": True})
        if state.pop("new", False):
            state["factors"] = [torch.zeros(n, n, dtype=grad.dtype) for n in grad.shape]
            state["roots"] = [torch.eye(n, dtype=grad.dtype) for n in grad.shape]
            state["v"] = torch.zeros_like(grad)
            state["m"] = torch.zeros_like(grad)
            state["momentum"] = torch.zeros_like(grad)
        order = grad.dim()
        beta1, beta2 = s["betas"]
        kind = s["decay_type"] or ("decoupled" if s["use_decoupled_weight_decay"] else "l2")
        if kind == "l2":
            grad = grad + s["weight_decay"] * weight

        for dim in range(order):
            unfolded = unfold(grad, dim)
            if s["statistics"] != "shampoo":
                whitened = grad
                for other in range(order):
                    if other != dim:
                        whitened = mode_product(whitened, state["roots"][other], other)
                unfolded = unfold(whitened, dim)
            share = 1.0 if beta2 == 1 else 1 - beta2
            if s["statistics"] == "kl_mean":
                share = share / unfolded.shape[1]
            state["factors"][dim] = beta2 * state["factors"][dim] + share * unfolded @ unfolded.T
        start = s["start_preconditioning_step"]
        due = t == start or (t > start and t % s["precondition_frequency"] == 0)
        if due if s["refresh_at"] is None else t in s["refresh_at"]:
            correction = 1 - beta2**t if s["use_bias_correction"] and beta2 < 1 else 1.0
            for dim, factor in enumerate(state["factors"]):
                exponent = 1 / (2 * order) if s["exponent"] is None else s["exponent"]
                if isinstance(exponent, dict):
                    exponent = exponent.get(order, {}).get(dim, 1 / (2 * order))
                factor = factor / correction
                if s["trace_scaling"]:
                    factor = factor / float(factor.trace()) ** 0.5
                epsilon = s["epsilon"] or s["relative_epsilon"] * float(factor.trace()) / len(factor)
                if s["soap"] and dim in s["ignored"]:
                    state["roots"][dim] = torch.eye(len(factor), dtype=factor.dtype)
                elif s["soap"]:
                    damped = factor + epsilon * torch.eye(len(factor), dtype=factor.dtype)
                    state["roots"][dim] = torch.linalg.eigh(damped)[1]
                else:
                    state["roots"][dim] = inverse_root(factor, exponent, epsilon, s["pseudo"])
        if s["soap"]:
            seen = grad
            for basis in state["roots"]:
                seen = torch.tensordot(seen, basis, dims=([0], [0]))
            state["seen"] = beta2 * state.get("seen", 0.0) + (1.0 if beta2 == 1 else 1 - beta2) * seen**2

        graft, graft_epsilon, graft_beta2 = s["graft"] or (None, 0.0, 0.0)
        if graft == "adagrad":
            state["v"] = state["v"] + grad**2
        elif graft in ("rmsprop", "adam"):
            state["v"] = graft_beta2 * state["v"] + (1 - graft_beta2) * grad**2

        filtered = grad
        if beta1 > 0:
            beta3 = beta1 if s["beta3"] == -1 else s["beta3"]
            filtered = beta3 * state["m"] + (1 - beta3) * grad
            state["m"] = beta1 * state["m"] + (1 - beta1) * grad
            if s["use_bias_correction"]:
                filtered = filtered / (1 - beta3 * beta1 ** (t - 1))

        grafted = filtered
        if graft in ("adagrad", "rmsprop", "adam"):
            correction = 1 - graft_beta2**t if graft == "adam" else 1.0
            grafted = filtered / ((state["v"] / correction).sqrt() + graft_epsilon)

        if graft and (t < start or (order == 1 and not s["precondition_vectors"])):
            move = grafted
        else:
            move = filtered
            for dim in range(order):
                move = torch.tensordot(move, state["roots"][dim], dims=([0], [0]))  # cycles through the dimensions
            if s["soap"]:
                correction = 1 - beta2**t if s["use_bias_correction"] and beta2 < 1 else 1.0
                move = move / ((state["seen"] / correction).sqrt() + s["epsilon"])
                for basis in state["roots"]:
                    move = torch.tensordot(move, basis, dims=([0], [1]))
            if graft:
                move = move * grafted.norm() / (move.norm() + 1e-16)

        if kind == "decoupled":
            move = move + s["weight_decay"] * weight
        elif kind == "corrected":
            move = move + s["weight_decay"] * s["lr"] / s["peak_lr"] * weight
        elif kind == "independent":
            move = move + s["weight_decay"] / s["peak_lr"] * weight
        if s["momentum"] > 0:
            state["momentum"] = s["momentum"] * state["momentum"] + (1 - s["dampening"]) * move
            if s["use_nesterov"]:
                move = (1 - s["dampening"]) * move + s["momentum"] * state["momentum"]
            else:
                move = state["momentum"]
        return move
