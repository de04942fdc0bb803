"""The few numbers of a step that are not tensors, and the precision they are computed in."""

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
