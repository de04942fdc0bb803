"""Inverse roots and eigenbases of stacks of factor matrices.

Shapes: K matrices of N x N, stacked: [K, N, N]. A matrix that cannot be decomposed yields NaN in its own place and
never an exception, so that its block can fall back alone.
"""

import torch
from torch import Tensor


def regularization(factor_KNN: Tensor, epsilon: float | None, relative_epsilon: float) -> Tensor:
    """What is added to the diagonal of each factor matrix, [K].

    `epsilon` for all of them when it is given. Otherwise `relative_epsilon` times the factor's mean eigenvalue, which
    makes the damping independent of the gradient's scale; a zero matrix gets 1, so that its root is the identity.
    """
    if epsilon is not None:
        return factor_KNN.new_full((factor_KNN.shape[0],), epsilon)
    mean_K = factor_KNN.diagonal(dim1=-2, dim2=-1).mean(-1)
    return torch.where(mean_K == 0, torch.ones_like(mean_K), mean_K * relative_epsilon)


def damped(factor_KNN: Tensor, epsilon_K: Tensor) -> Tensor:
    """`F + epsilon I`, a copy."""
    damped_KNN = factor_KNN.clone()
    damped_KNN.diagonal(dim1=-2, dim2=-1).add_(epsilon_K[:, None])
    return damped_KNN


def inverse_root(factor_KNN: Tensor, exponent: float, epsilon_K: Tensor) -> Tensor:
    """`(F + epsilon I) ** -exponent` of each symmetric positive semidefinite matrix of the stack.

    An eigenvalue that rounding has pushed below epsilon shifts the whole spectrum up until the smallest is epsilon.

    Args:
        factor_KNN: float32 or float64.
        exponent: > 0; 1 / (2 * order of the block) in Shampoo.
        epsilon_K: from `regularization`.

    Returns:
        [K, N, N] of the same type; NaN where a matrix could not be decomposed.
    """
    values_KN, vectors_KNN = eigh(damped(factor_KNN, epsilon_K))
    smallest_K = values_KN[:, 0]
    shift_K = torch.where(smallest_K < epsilon_K, epsilon_K - smallest_K, torch.zeros_like(smallest_K))
    scale_KN = (values_KN + shift_K[:, None]).pow(-exponent)
    return (vectors_KNN * scale_KN[:, None, :]) @ vectors_KNN.mT


def turned_basis(factor_KNN: Tensor, basis_KNN: Tensor, *, max_iterations: int, tolerance: float) -> Tensor:
    """Turns each basis towards the eigenvectors of its factor matrix by QR iterations; columns by rising eigenvalue.

    With `B = Q^T F Q`, one iteration is `B = Q' R'`, `B <- R' Q'`, `Q <- Q Q'`. A matrix stops once the part of B off
    the diagonal is at most `tolerance` of it (Frobenius norms).
    """
    seen_KNN = basis_KNN.mT @ factor_KNN @ basis_KNN
    for _ in range(max_iterations):
        norm_K = torch.linalg.matrix_norm(seen_KNN)
        diagonal_norm_K = torch.linalg.vector_norm(seen_KNN.diagonal(dim1=-2, dim2=-1), dim=-1)
        off_norm_K = (norm_K.square() - diagonal_norm_K.square()).clamp_min(0).sqrt()
        unfinished_K11 = ~(off_norm_K <= tolerance * norm_K)[:, None, None]
        q_KNN, r_KNN = torch.linalg.qr(seen_KNN)
        seen_KNN = torch.where(unfinished_K11, r_KNN @ q_KNN, seen_KNN)
        basis_KNN = torch.where(unfinished_K11, basis_KNN @ q_KNN, basis_KNN)
    order_KN = seen_KNN.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, stable=True)
    return basis_KNN.gather(-1, order_KN[:, None, :].expand_as(basis_KNN))


def eigh(matrix_KNN: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (ascending) and eigenvectors; a failure is tried again in float64, matrix by matrix."""
    try:
        return torch.linalg.eigh(matrix_KNN)
    except RuntimeError:  # LinAlgError, or a backend's own: one bad matrix fails the whole stack
        results = [_eigh_float64(matrix_NN) for matrix_NN in matrix_KNN]
        return torch.stack([values for values, _ in results]), torch.stack([vectors for _, vectors in results])


def _eigh_float64(matrix_NN: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values_N, vectors_NN = torch.linalg.eigh(matrix_NN.double())
    except RuntimeError:
        return matrix_NN.new_full(matrix_NN.shape[:1], torch.nan), torch.full_like(matrix_NN, torch.nan)
    return values_N.to(matrix_NN.dtype), vectors_NN.to(matrix_NN.dtype)
