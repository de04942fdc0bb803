"""Newton's method where every rank solves with the Hessian of its own rows."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrmctl.optim.convex.effective import effective_dimension
from dlrmctl.optim.convex.newton import Direction, check_memory, descend, solve_positive
from dlrmctl.optim.convex.objective import FiniteSum
from dlrmctl.optim.convex.solution import Record, Solution, Watch

FEWEST_ROWS = 5  # of a rank, for each effective dimension: with fewer the directions vary too much to average
MANY_ROWS = 20  # likewise, above which the bias is too small to matter


def dist_newton(
    objective: FiniteSum,
    start: Tensor,
    *,
    debias: bool | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
    memory_bytes: int = 4 * 2**30,
    watch: Watch | None = None,
) -> Solution:
    """Minimizes by averaging the ranks' Newton directions: in an iteration one sum of gradients and one of directions.

    No Hessian travels. The mean of the inverses of the ranks' Hessians is larger than the inverse of the mean, which
    `local_direction` corrects for. On one rank, or where each has thousands of rows for each parameter, this is
    Newton's method.

    Args:
        objective: with few parameters; its rows are spread over the ranks at random.
        start: where to begin, `[num_parameters]`, the same on all ranks.
        debias: whether to correct; None for where a rank has less than 20 rows for each effective dimension.
        tolerance: of the gradient's Euclidean norm.
        max_iterations: stop after as many.
        memory_bytes: refuse to use more, on each rank.
        watch: called after every iteration.

    Raises:
        ValueError: if a rank has less than 5 rows for each effective dimension, or a Hessian takes too much memory.

    Source: Derezinski, Bartan, Pilanci, Mahoney, arXiv:2007.01327.
    """
    check_memory(objective.num_parameters, memory_bytes)
    record = Record(objective, watch)
    ranks = objective.ranks

    def averaged(point: Tensor, gradient: Tensor) -> Direction:
        hessian, rows = objective.local_hessian(point)
        singular = False
        try:
            vector, dimension = local_direction(hessian, rows, objective.penalty, gradient, debias=debias)
        except ValueError:  # told below, once all ranks know
            vector, dimension, singular = torch.zeros_like(gradient), 1.0, True
        dimensions = torch.zeros(ranks.count, 2, dtype=torch.float64)
        dimensions[ranks.rank] = torch.tensor([dimension, 0.0 if singular else rows / dimension], dtype=torch.float64)
        # Directions of more rows are more exact.
        totals = ranks.sum(torch.cat([vector * rows, dimensions.view(-1)]))
        dimension, fewest = _worst(totals[len(vector) :].view(-1, 2))
        if fewest == 0:
            raise ValueError("the rows of a rank do not determine a direction; use fewer ranks, or an l2 above 0")
        if fewest < FEWEST_ROWS:
            raise ValueError(
                f"a rank has {fewest:.1f} rows for each of {dimension:,.0f} effective dimensions, expected at least "
                f"{FEWEST_ROWS}: use fewer ranks, a larger l2, or exact Newton"
            )
        if len(record.history) == 1:
            record.notes.append(_note(dimension, fewest, debias))
        return Direction(totals[: len(vector)] / objective.num_rows)

    return descend(
        objective, start, averaged, tolerance=tolerance, max_iterations=max_iterations, watch=watch, record=record
    )


def local_direction(
    hessian: Tensor, rows: int, penalty: Tensor, gradient: Tensor, *, debias: bool | None = None
) -> tuple[Tensor, float]:
    """One rank's Newton direction, and its estimate of the effective dimension.

    With m rows and effective dimension d, debiasing scales the penalty by 1 - d / m and then the direction by the same
    factor; the mean of such directions over ranks is Newton's own. It is the same as H m / (m - d) in place of H.

    Args:
        hessian: mean over the rank's rows, without the penalty.
        rows: of the rank, a random part of all.
        penalty: `[num_parameters]`.
        gradient: over all rows.
        debias: None for whether `rows / d` is below 20.
    """
    dimension = effective_dimension(hessian, penalty, rows)
    factor = 1.0
    if debias or (debias is None and rows < MANY_ROWS * dimension):
        factor = max(1 - dimension / rows, 1e-3)  # too few rows are refused once all ranks know
    return -factor * solve_positive(hessian + factor * penalty.diag(), gradient), dimension


def _worst(dimensions_R2: Tensor) -> tuple[float, float]:
    """The largest effective dimension of all ranks, and the fewest rows for each."""
    return float(dimensions_R2[:, 0].max()), float(dimensions_R2[:, 1].min())


def _note(dimension: float, fewest: float, debias: bool | None) -> str:
    corrected = debias if debias is not None else fewest < MANY_ROWS
    return (
        f"effective dimension {dimension:,.1f}, at least {fewest:,.1f} rows for each on every rank: "
        f"directions are {'' if corrected else 'not '}debiased"
    )
