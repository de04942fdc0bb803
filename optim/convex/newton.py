"""Newton's method with the exact Hessian, and the loop that all methods with a Hessian share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrmctl.optim.convex.objective import FiniteSum
from dlrmctl.optim.convex.solution import Record, Solution, Watch

SUFFICIENT_DECREASE = 1e-4  # of the decrease that the slope promises; Armijo's condition
ROUNDING = 8 * torch.finfo(torch.float64).eps  # of a value of the objective, relative


@dataclass(frozen=True)
class Direction:
    """Where to go from a point, and how far to try first."""

    vector: Tensor
    first_step: float = 1.0


def newton(
    objective: FiniteSum,
    start: Tensor,
    *,
    tolerance: float = 1e-8,
    max_iterations: int = 100,
    memory_bytes: int = 4 * 2**30,
    watch: Watch | None = None,
) -> Solution:
    """Minimizes by Newton's method with a line search: exact Hessian, Cholesky factor, two passes an iteration.

    Args:
        objective: with few parameters; a Hessian is `8 * num_parameters ** 2` bytes.
        start: where to begin, `[num_parameters]`.
        tolerance: of the gradient's Euclidean norm.
        max_iterations: stop after as many.
        memory_bytes: refuse to use more.
        watch: called after every iteration.

    Raises:
        ValueError: if Hessians would take more than `memory_bytes`, or there is no single optimum.
    """
    check_memory(objective.num_parameters, memory_bytes)

    def exact(point: Tensor, gradient: Tensor) -> Direction:
        return Direction(-solve_positive(objective.hessian(point), gradient))

    return descend(objective, start, exact, tolerance=tolerance, max_iterations=max_iterations, watch=watch)


def descend(
    objective: FiniteSum,
    start: Tensor,
    find_direction: Callable[[Tensor, Tensor], Direction],
    *,
    tolerance: float,
    max_iterations: int,
    watch: Watch | None,
    record: Record | None = None,
) -> Solution:
    """Follows directions computed from all rows, each as far as Armijo's condition asks, halving its first step."""
    record = record or Record(objective, watch)
    point, step, first = start, 0.0, True
    while True:
        here = objective.evaluate(point)
        objective.check_optimum()
        stop = record.add(
            point, here.value, here.gradient, sample_size=objective.num_rows, step=step, first_accepted=first
        )
        if record.history[-1].gradient_norm <= tolerance:
            return record.solution(point, "converged")
        if stop:
            return record.solution(point, "stopped")
        if len(record.history) > max_iterations:
            return record.solution(point, "out of iterations")
        direction = find_direction(point, here.gradient)
        found = search_line(objective, point, here.value, here.gradient, direction)
        if found is None:
            return record.solution(point, "no further progress")
        step, first = found
        point = point + step * direction.vector


def search_line(
    objective: FiniteSum, point: Tensor, value: float, gradient: Tensor, direction: Direction
) -> tuple[float, bool] | None:
    """The first step, halved until it decreases the value enough.

    Returns:
        The step and whether it is the first that was tried; None if 32 steps are too long.
    """
    slope = float(gradient @ direction.vector)
    if not slope < 0:
        return None
    slack = ROUNDING * abs(value)  # near the optimum rounding hides the decrease, where the first step is right
    for tried in range(0, 32, 2):
        steps = [direction.first_step * 0.5**number for number in (tried, tried + 1)]
        line = objective.along(point, direction.vector, steps, None, probe=direction.vector)
        for step, reached in zip(steps, line.values, strict=True):
            if reached <= value + SUFFICIENT_DECREASE * step * slope + slack:
                return step, step == direction.first_step
    return None


def solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """Solves with a symmetric positive definite matrix.

    Raises:
        ValueError: if the matrix is singular.
    """
    diagonal = matrix.diagonal()
    factor, problem = torch.linalg.cholesky_ex(matrix)
    # A pivot is what a column adds to those before it; at rounding's size it adds nothing.
    if problem or bool((factor.diagonal().square() <= 1e-14 * len(matrix) * diagonal).any()):
        raise ValueError(
            "the Hessian is singular: some features are constant or combinations of others; use an l2 above 0"
        )
    return torch.cholesky_solve(right[:, None], factor)[:, 0]


def check_memory(num_parameters: int, memory_bytes: int) -> None:
    """Refuse Hessians, of which three are alive at a time, that take more than `memory_bytes`."""
    needed = 3 * 8 * num_parameters**2
    if needed > memory_bytes:
        raise ValueError(
            f"{num_parameters:,} parameters: their Hessian and its factor take {needed / 2**30:,.1f} GiB, more than "
            f"{memory_bytes / 2**30:,.1f} GiB; use L-BFGS, or fewer features"
        )
