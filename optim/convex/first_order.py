"""Methods of gradients alone, to compare with: Adam, and gradients with the variance reduced (SVRG)."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrmctl.optim.convex.objective import FiniteSum, Rescaled, RowSample
from dlrmctl.optim.convex.solution import Record, Solution, Watch


def adam(
    objective: FiniteSum,
    start: Tensor,
    *,
    scale: Tensor | None = None,
    lr: float = 0.01,
    sample_size: int = 256,
    max_passes: float = 10.0,
    record_every: float = 0.25,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    watch: Watch | None = None,
) -> Solution:
    """Adam with a constant rate, on samples that follow one another.

    Args:
        objective: any number of parameters.
        start: where to begin, `[num_parameters]`.
        scale: units to work in, `[num_parameters]`; None for the given ones.
        lr: learning rate.
        sample_size: rows of each step.
        max_passes: over the data.
        record_every: passes from one entry of the history to the next.
        betas: of the two averages.
        eps: added to the root of the second.
        watch: called at every entry.
    """
    if scale is not None:
        objective, start = Rescaled(objective, scale), start / scale
    record = Record(objective, watch)
    point, mean, square = start, torch.zeros_like(start), torch.zeros_like(start)
    size, begin, steps, due = min(sample_size, objective.num_rows), 0, 0, 0.0
    while True:
        before = record.passes
        here = objective.evaluate(point, RowSample(begin, begin + size))
        if before >= due:
            due += record_every
            if record.add(point, here.value, here.gradient, sample_size=size, step=lr):
                return record.solution(point, "stopped")
            if before >= max_passes:
                return record.solution(point, "out of passes")
        steps += 1
        mean = betas[0] * mean + (1 - betas[0]) * here.gradient
        square = betas[1] * square + (1 - betas[1]) * here.gradient.square()
        corrected = mean / (1 - betas[0] ** steps)
        point = point - lr * corrected / ((square / (1 - betas[1] ** steps)).sqrt() + eps)
        begin += size


def svrg(
    objective: FiniteSum,
    start: Tensor,
    *,
    scale: Tensor | None = None,
    lr: float | None = None,
    sample_size: int = 64,
    max_passes: float = 30.0,
    tolerance: float = 1e-8,
    watch: Watch | None = None,
) -> Solution:
    """Stochastic variance-reduced gradients: one full gradient, then one pass of small samples corrected by it.

    A stage reads the data three times: for the full gradient, and for the samples' gradients at two points.

    Args:
        objective: any number of parameters.
        start: where to begin, `[num_parameters]`.
        scale: units to work in, `[num_parameters]`; None for the given ones.
        lr: learning rate; None for half of what the curvature at the start admits.
        sample_size: rows of each step.
        max_passes: over the data.
        tolerance: of the full gradient's Euclidean norm.
        watch: called after every stage.

    Source: Johnson and Zhang, "Accelerating stochastic gradient descent using predictive variance reduction", 2013.
    """
    if scale is not None:
        objective, start = Rescaled(objective, scale), start / scale
    record = Record(objective, watch)
    size = min(sample_size, objective.num_rows)
    rate = lr or 0.5 / largest_curvature(objective, start)
    point, begin = start, 0
    while True:
        anchor, full = point, objective.evaluate(point)
        objective.check_optimum()
        stop = record.add(point, full.value, full.gradient, sample_size=objective.num_rows, step=rate)
        if record.history[-1].gradient_norm <= tolerance:
            return record.solution(point, "converged")
        if stop:
            return record.solution(point, "stopped")
        if record.passes >= max_passes:
            return record.solution(point, "out of passes")
        for _ in range(objective.num_rows // size):
            sample = RowSample(begin, begin + size)
            correction = full.gradient - objective.evaluate(anchor, sample).gradient
            point = point - rate * (objective.evaluate(point, sample).gradient + correction)
            begin += size


def largest_curvature(objective: FiniteSum, point: Tensor, *, sample_size: int = 4096, iterations: int = 12) -> float:
    """The Hessian's largest eigenvalue at a point over the first rows, by power iteration on differences of gradients.

    It comes from below: a method that must not exceed it should keep a margin.
    """
    sample = RowSample(0, min(sample_size, objective.num_rows))
    here = objective.evaluate(point, sample).gradient
    direction, length = here, 1e-4  # of the difference: its errors, of second order and of rounding, are about 1e-8
    curvature = 0.0
    for _ in range(iterations):
        norm = float(direction.norm())
        if norm == 0:
            break
        direction = direction * (length / norm)
        direction = objective.evaluate(point + direction, sample).gradient - here
        curvature = float(direction.norm()) / length
    return max(curvature, float(objective.penalty.max()), 1e-12)
