"""Inverse roots by coupled iterations: matrix products alone, which accelerators like better than eigh.

For `A ** (-1/p)` two sequences move together, `X` to the root and `M = X^p A` to the identity:

    X <- X T,   M <- T^p M,   T = an approximation of M ** (-1/p) that is right near the identity

Newton's `T = ((p + 1) I - M) / p` is the binomial series of `(I - (I - M)) ** (-1/p)` cut after its second term; a
method of higher order keeps more of it. Source: Guo and Higham, SIAM J. Matrix Anal. Appl. 28 (2006); Lakic, ZAMM 78
(1998).
"""

from fractions import Fraction

import torch
from torch import Tensor

_LARGEST_POWER = 16  # of a matrix inside an iteration; rounding grows with it
_ACCEPTED_RESIDUAL = 0.1  # largest entry of X^p A - I; beyond it the iteration has not found the root
_DIVERGED = 1.2  # an error that grows by this factor will not come back


def iterable_exponent(exponent: float, *, order: int | None) -> Fraction | None:
    """The exponent as a fraction the iterations can do, or None. Newton (`order` None) does roots only: 1 / p."""
    fraction = Fraction(exponent).limit_denominator(_LARGEST_POWER)
    if abs(fraction - Fraction(exponent)) > 1e-9 or not 1 <= fraction.numerator <= _LARGEST_POWER:
        return None
    return fraction if order is not None or fraction.numerator == 1 else None


def coupled_inverse_root(
    matrix_KNN: Tensor, exponent: Fraction, *, order: int | None, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """`A ** -exponent` of each symmetric positive definite matrix.

    Args:
        matrix_KNN: K matrices of N x N, float32 or float64.
        exponent: q / p from `iterable_exponent`; the iteration finds `A ** (-1/p)`, whose q-th power is returned.
        order: None for Newton's method started from the Frobenius norm; an integer >= 2 for the series with that many
            terms, started from the trace, after one of Newton's steps, which brings M close enough.
        max_iterations: >= 1.
        tolerance: a matrix is finished when the largest entry of `M - I` is at most this, or no longer falls.

    Returns:
        The roots [K, N, N], and which of them are right [K], bool; the others may hold anything, NaN included.
    """
    p, q = exponent.denominator, exponent.numerator
    eye_NN = torch.eye(matrix_KNN.shape[-1], dtype=matrix_KNN.dtype, device=matrix_KNN.device)
    if order is None:
        scale_K = (p + 1) / (2 * torch.linalg.matrix_norm(matrix_KNN))
    else:
        scale_K = 1 / matrix_KNN.diagonal(dim1=-2, dim2=-1).sum(-1)
    root_KNN = scale_K[:, None, None] ** (1 / p) * eye_NN
    near_KNN = scale_K[:, None, None] * matrix_KNN
    error_K = _largest(near_KNN - eye_NN)
    going_K = error_K > tolerance
    for iteration in range(max_iterations):
        if not going_K.any():
            break
        terms = 2 if order is None or iteration == 0 else order
        turn_KNN = _series(eye_NN - near_KNN, eye_NN, p, terms)
        new_root_KNN, new_near_KNN = root_KNN @ turn_KNN, torch.linalg.matrix_power(turn_KNN, p) @ near_KNN
        new_error_K = _largest(new_near_KNN - eye_NN)
        # Far from the identity the error may stand still for many steps; near it, standing still is the end.
        worse_K = ~(new_error_K <= _DIVERGED * error_K) | ((new_error_K >= error_K) & (error_K < 1e-3))
        taken_K11 = (going_K & ~worse_K)[:, None, None]
        root_KNN = torch.where(taken_K11, new_root_KNN, root_KNN)
        near_KNN = torch.where(taken_K11, new_near_KNN, near_KNN)
        going_K = going_K & ~worse_K & (new_error_K > tolerance)
        error_K = torch.where(taken_K11[:, 0, 0], new_error_K, error_K)
    residual_K = _largest(torch.linalg.matrix_power(root_KNN, p) @ matrix_KNN - eye_NN)
    root_KNN = torch.linalg.matrix_power(root_KNN, q)
    right_K = (residual_K <= _ACCEPTED_RESIDUAL) & root_KNN.isfinite().all(-1).all(-1)
    return (root_KNN + root_KNN.mT) / 2, right_K  # the products lose symmetry to rounding


def _series(away_KNN: Tensor, eye_NN: Tensor, p: int, terms: int) -> Tensor:
    """The first `terms` of `(I - E) ** (-1/p) = sum_i b_i E^i`, by Horner's rule."""
    coefficients = [1.0]
    for i in range(1, terms):
        coefficients.append(coefficients[-1] * (1 + (i - 1) * p) / (i * p))
    total_KNN = coefficients[-1] * away_KNN + coefficients[-2] * eye_NN
    for coefficient in reversed(coefficients[:-2]):
        total_KNN = total_KNN @ away_KNN + coefficient * eye_NN
    return total_KNN


def _largest(matrix_KNN: Tensor) -> Tensor:
    return matrix_KNN.abs().amax(dim=(-2, -1))
