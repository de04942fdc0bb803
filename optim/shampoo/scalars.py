"""The few numbers of a step that are not tensors, and the precision they are computed in."""

import math

import torch


def rounded(value: float, *, float32: bool) -> float:
    return float(torch.tensor(value, dtype=torch.float32)) if float32 else float(value)


def bias_correction(beta: float, step: int, *, float32: bool, factor: float = 1.0) -> float:
    """`1 - factor * beta^step`: what an average that began at zero has to be divided by.

    In float32 `1 - 0.999` is already off by 1e-5. Meta's implementation computes it so, and so do we where its
    trajectories are to be repeated digit by digit; otherwise in float64.
    """
    if not float32:
        return 1 - factor * beta**step
    power = torch.pow(beta, torch.tensor(step, dtype=torch.float32))
    return float(1 - factor * power)


def largest_ratio(beta1: float, beta2: float) -> float:
    """What `|m| / sqrt(v)` cannot exceed, whatever the gradients: m their average with beta1, v that of their squares.

    By Cauchy and Schwarz `(sum a_k g_k)^2 <= sum a_k^2 / b_k * sum b_k g_k^2` with `a_k = (1 - beta1) beta1^k` and
    `b_k = (1 - beta2) beta2^k` (1 for a plain sum). Infinite where v forgets too fast for a bound.
    """
    if beta1 * beta1 >= beta2:
        return math.inf
    weight = 1.0 if beta2 == 1 else 1 - beta2
    return (1 - beta1) / math.sqrt(weight * (1 - beta1 * beta1 / beta2))
