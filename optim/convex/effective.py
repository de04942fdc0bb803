"""How many dimensions a penalty leaves free, told from a Hessian over few rows without its bias."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_dimension(hessian: Tensor, penalty: Tensor, rows: float = float("inf")) -> float:
    """d = tr(H (H + penalty)^-1) of the Hessian over all rows, from that of a random part of them.

    A Hessian over few rows looks better conditioned in some directions and worse in others, and its inverse is larger
    on average by m / (m - d), where m is the number of rows. So d solves d = tr(H (H + penalty (1 - d / m))^-1).

    Args:
        hessian: mean over the part, without the penalty, `[d, d]`.
        penalty: its diagonal, `[d]`.
        rows: m; with infinitely many this is the plain trace.

    Raises:
        ValueError: if the Hessian is not one, such as that of no rows.

    Source: Derezinski, Bartan, Pilanci, Mahoney, arXiv:2007.01327; the equation in d is derived from it.
    """
    factor, problem = torch.linalg.cholesky_ex(hessian + penalty.diag() + _jitter(hessian))
    if problem or not factor.isfinite().all():
        raise ValueError("the Hessian is not finite, or not positive")
    half = torch.linalg.solve_triangular(factor, penalty.sqrt().diag(), upper=False)
    shares = torch.linalg.eigvalsh(half @ half.T).clamp(0.0, 1.0)  # of the penalty, in the directions of H + penalty
    low, high = 0.0, float(min(len(penalty), rows))
    for _ in range(60):  # of bisection: to rounding
        middle = (low + high) / 2
        left = 1 - middle / rows
        trace = float(((1 - shares) / (1 - shares + left * shares)).sum())
        low, high = (middle, high) if trace > middle else (low, middle)
    return (low + high) / 2


def _jitter(hessian: Tensor) -> Tensor:
    """What makes a singular Hessian factor, at rounding's size."""
    return 1e-14 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
