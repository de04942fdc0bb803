"""Inverse roots and eigenbases of stacks of factor matrices.

Shapes: K matrices of N x N, stacked: [K, N, N]. A matrix that cannot be decomposed yields NaN in its own place and
never an exception, so that its block can fall back alone.
"""

import torch
from torch import Tensor

from optim.shampoo.configs import Eigendecomposed, RootInverse
from optim.shampoo.iterations import coupled_inverse_root, iterable_exponent


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


def trace_scaled(factor_KNN: Tensor, floor: float) -> Tensor:
    """Each matrix divided by the square root of its trace, or of `floor` where that is larger.

    Source: Eschenhagen et al., arXiv:2506.03595: as if both sides of a block shared one scale.
    """
    trace_K = factor_KNN.diagonal(dim1=-2, dim2=-1).sum(-1)
    return factor_KNN * trace_K.clamp_min(max(floor, torch.finfo(factor_KNN.dtype).tiny)).rsqrt()[:, None, None]


def inverse_root(factor_KNN: Tensor, exponent: float, epsilon_K: Tensor, config: RootInverse) -> Tensor:
    """`(F + epsilon I) ** -exponent` of each symmetric positive semidefinite matrix of the stack.

    Args:
        factor_KNN: float32 or float64.
        exponent: > 0; 1 / (2 * order of the block) in Shampoo.
        epsilon_K: from `regularization`; the pseudo-inverse does not use it.

    Returns:
        [K, N, N] of the same type; NaN where a matrix could not be decomposed.
    """
    order = config.order if config.method == "higher_order" else None
    fraction = iterable_exponent(exponent, order=order) if config.method in ("newton", "higher_order") else None
    if fraction is None:
        values_KN, vectors_KNN = eigendecomposition(factor_KNN, epsilon_K, config)
        return root_of(values_KN, vectors_KNN, exponent)
    root_KNN, right_K = coupled_inverse_root(
        damped(factor_KNN, epsilon_K),
        fraction,
        order=order,
        max_iterations=config.max_iterations,
        tolerance=config.tolerance,
    )
    if not right_K.all():
        values_KN, vectors_KNN = eigendecomposition(factor_KNN[~right_K], epsilon_K[~right_K], config)
        root_KNN[~right_K] = root_of(values_KN, vectors_KNN, exponent)
    return root_KNN


def eigendecomposition(
    factor_KNN: Tensor, epsilon_K: Tensor, config: RootInverse | Eigendecomposed
) -> tuple[Tensor, Tensor]:
    """Eigenvalues [K, N] of `F + epsilon I`, made positive, and the eigenvectors in columns.

    An eigenvalue that rounding has pushed below epsilon shifts the whole spectrum up until the smallest is epsilon.
    The pseudo-inverse adds nothing; what it leaves out is infinite, so that its inverse is 0.
    """
    if config.method != "pseudo_inverse":
        values_KN, vectors_KNN = eigh(damped(factor_KNN, epsilon_K))
        return lifted(values_KN, epsilon_K), vectors_KNN
    values_KN, vectors_KNN = eigh(factor_KNN)
    tolerance = config.rank_tolerance
    if tolerance is None:
        tolerance = values_KN.shape[1] * torch.finfo(values_KN.dtype).eps
    largest_K1 = values_KN[:, -1:]
    kept_KN = torch.where(values_KN <= tolerance * largest_K1.clamp_min(0), torch.inf, values_KN)
    # A matrix of zeros has seen no gradient: its root is the identity, not a wall for the first one.
    return torch.where(largest_K1 <= 0, torch.ones_like(kept_KN), kept_KN), vectors_KNN


def lifted(values_KN: Tensor, epsilon_K: Tensor) -> Tensor:
    """Every spectrum whose smallest value lies below its epsilon, moved up to it."""
    smallest_K = values_KN.amin(-1)
    shift_K = torch.where(smallest_K < epsilon_K, epsilon_K - smallest_K, torch.zeros_like(smallest_K))
    return values_KN + shift_K[:, None]


def root_of(values_KN: Tensor, vectors_KNN: Tensor, exponent: float) -> Tensor:
    """`Q diag(l ** -exponent) Q^T`."""
    return (vectors_KNN * values_KN.pow(-exponent)[:, None, :]) @ vectors_KNN.mT


def turned_basis(
    factor_KNN: Tensor, basis_KNN: Tensor, *, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Turns each basis towards the eigenvectors of its factor matrix by QR iterations.

    With `B = Q^T F Q`, one iteration is `B = Q' R'`, `B <- R' Q'`, `Q <- Q Q'`. A matrix stops once the part of B off
    the diagonal is at most `tolerance` of it (Frobenius norms).

    Returns:
        The diagonal of B, rising, [K, N], and the columns of the basis in that order, [K, N, N].
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
    values_KN, order_KN = seen_KNN.diagonal(dim1=-2, dim2=-1).sort(dim=-1, stable=True)
    return values_KN, basis_KNN.gather(-1, order_KN[:, None, :].expand_as(basis_KNN))


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
