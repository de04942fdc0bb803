"""Inverse roots and eigenbases of stacks of factor matrices, by decomposition or by coupled iterations.

Shapes: K matrices of N x N, stacked: [K, N, N]. A matrix that cannot be decomposed yields NaN instead of an exception,
so that only its block falls back.

Coupled iterations use only matrix products, which are faster than eigh on accelerators. For `A ** (-1/p)` two sequences
move together, `X` to the root and `M = X^p A` to the identity:

    X <- X T,   M <- T^p M,   T = an approximation of M ** (-1/p) near the identity

Newton's `T = ((p + 1) I - M) / p` is the binomial series of `(I - (I - M)) ** (-1/p)` cut after its second term; a
method of higher order keeps more of it. Source: Guo and Higham, SIAM J. Matrix Anal. Appl. 28 (2006); Lakic, ZAMM 78
(1998).
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from dlrmctl.optim.shampoo.configs import Eigendecomposed, RootInverse

_LARGEST_POWER = 16  # of a matrix in an iteration; rounding errors grow with it
_ACCEPTED_RESIDUAL = 0.1  # largest entry of X^p A - I at which the iteration has found the root
_ITERATIONS_PER_WAIT = 8
_DIVERGED = 1.2  # an error that grows by this factor means divergence

T = TypeVar("T")


def side_by_side(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Returns the results of jobs on a CPU, in their order; each runs on one thread, and as many at once as torch has.

    A matrix of 128 x 128 gains nothing from a second thread: its decomposition is many short parts, after each of which
    threads wait for each other. So the results do not depend on the number of threads either.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [job() for job in jobs]
    try:
        return list(_workers(threads).map(_on_one_thread, jobs))
    finally:
        # A worker sets its own number, and that of threads that begin later; this restores the latter.
        torch.set_num_threads(threads)


@torch.no_grad()
def _on_one_thread(job: Callable[[], T]) -> T:
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    return job()


@lru_cache(maxsize=1)
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="roots")


os.register_at_fork(after_in_child=_workers.cache_clear)  # a child process has none of the threads


def regularization(factor_KNN: Tensor, epsilon: float | None, relative_epsilon: float) -> Tensor:
    """Returns the number to add to the diagonal of each factor matrix, [K].

    If given, `epsilon` for all. Otherwise `relative_epsilon` times the factor's mean eigenvalue, which makes the
    damping independent of the gradient's scale; a zero matrix gets 1, so that its root is the identity.
    """
    if epsilon is not None:
        return factor_KNN.new_full((factor_KNN.shape[0],), epsilon)
    mean_K = factor_KNN.diagonal(dim1=-2, dim2=-1).mean(-1)
    return torch.where(mean_K == 0, torch.ones_like(mean_K), mean_K * relative_epsilon)


def damped(factor_KNN: Tensor, epsilon_K: Tensor) -> Tensor:
    """Returns a copy with epsilon added to the diagonal: `F + epsilon I`."""
    damped_KNN = factor_KNN.clone()
    damped_KNN.diagonal(dim1=-2, dim2=-1).add_(epsilon_K[:, None])
    return damped_KNN


def trace_scaled(factor_KNN: Tensor, floor: float) -> Tensor:
    """Divides each matrix by the square root of its trace, or of `floor` if that is larger.

    Source: Eschenhagen et al., arXiv:2506.03595: as if both sides of a block shared one scale.
    """
    trace_K = factor_KNN.diagonal(dim1=-2, dim2=-1).sum(-1)
    return factor_KNN * trace_K.clamp_min(max(floor, torch.finfo(factor_KNN.dtype).tiny)).rsqrt()[:, None, None]


def inverse_root(factor_KNN: Tensor, exponent: float, epsilon_K: Tensor, config: RootInverse) -> Tensor:
    """Computes `(F + epsilon I) ** -exponent` of each symmetric positive semidefinite matrix of the stack.

    Args:
        factor_KNN: float32 or float64.
        exponent: > 0; 1 / (2 * order of the block) in Shampoo.
        epsilon_K: from `regularization`; the pseudo-inverse does not use it.

    Returns:
        [K, N, N] of the same type; NaN where a matrix could not be decomposed.
    """
    order = config.order if config.method == "higher_order" else None
    if config.rel_epsilon:
        largest_K = torch.linalg.matrix_norm(factor_KNN, torch.inf)
        epsilon_K = torch.maximum(epsilon_K, config.rel_epsilon * largest_K)
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
    """Returns eigenvalues [K, N] of `F + epsilon I`, made positive, and the eigenvectors in columns.

    If rounding made an eigenvalue smaller than epsilon, the whole spectrum is shifted up until the smallest is epsilon.
    The pseudo-inverse adds nothing; eigenvalues that it drops are infinite, so that their inverse is 0.
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
    # A matrix of zeros has seen no gradient: its root is the identity.
    return torch.where(largest_K1 <= 0, torch.ones_like(kept_KN), kept_KN), vectors_KNN


def lifted(values_KN: Tensor, epsilon_K: Tensor) -> Tensor:
    """Shifts every spectrum whose smallest value is below its epsilon up to it."""
    smallest_K = values_KN.amin(-1)
    shift_K = torch.where(smallest_K < epsilon_K, epsilon_K - smallest_K, torch.zeros_like(smallest_K))
    return values_KN + shift_K[:, None]


def root_of(values_KN: Tensor, vectors_KNN: Tensor, exponent: float) -> Tensor:
    """Returns the inverse root from eigenvalues and eigenvectors: `Q diag(l ** -exponent) Q^T`."""
    return (vectors_KNN * values_KN.pow(-exponent)[:, None, :]) @ vectors_KNN.mT


def turned_basis(
    factor_KNN: Tensor, basis_KNN: Tensor, *, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Rotates each basis towards the eigenvectors of its factor matrix by QR iterations.

    With `B = Q^T F Q`, one iteration is `B = Q' R'`, `B <- R' Q'`, `Q <- Q Q'`. A matrix stops once the part of B off
    the diagonal is at most `tolerance` of it (Frobenius norms).

    Returns:
        The diagonal of B in ascending order, [K, N], and the columns of the basis in that order, [K, N, N].
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
    """Returns eigenvalues (ascending) and eigenvectors; after a failure it tries each matrix again in float64."""
    try:
        return torch.linalg.eigh(matrix_KNN)
    except RuntimeError:  # LinAlgError, or a backend's own error: one bad matrix fails the whole stack
        results = [_eigh_float64(matrix_NN) for matrix_NN in matrix_KNN]
        return torch.stack([values for values, _ in results]), torch.stack([vectors for _, vectors in results])


def _eigh_float64(matrix_NN: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values_N, vectors_NN = torch.linalg.eigh(matrix_NN.double())
    except RuntimeError:
        return matrix_NN.new_full(matrix_NN.shape[:1], torch.nan), torch.full_like(matrix_NN, torch.nan)
    return values_N.to(matrix_NN.dtype), vectors_NN.to(matrix_NN.dtype)


def iterable_exponent(exponent: float, *, order: int | None) -> Fraction | None:
    """Returns the exponent as a fraction that the iterations support, or None. Newton (`order` None) needs 1 / p."""
    fraction = Fraction(exponent).limit_denominator(_LARGEST_POWER)
    if abs(fraction - Fraction(exponent)) > 1e-9 or not 1 <= fraction.numerator <= _LARGEST_POWER:
        return None
    return fraction if order is not None or fraction.numerator == 1 else None


def coupled_inverse_root(
    matrix_KNN: Tensor, exponent: Fraction, *, order: int | None, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Computes `A ** -exponent` of each symmetric positive definite matrix by iteration.

    Args:
        matrix_KNN: K matrices of N x N, float32 or float64.
        exponent: q / p from `iterable_exponent`; the iteration finds `A ** (-1/p)`, whose q-th power is returned.
        order: None for Newton's method, started from the Frobenius norm; an integer >= 2 for the series with that many
            terms, started from the trace, after a Newton step, which brings M close enough.
        max_iterations: >= 1.
        tolerance: a matrix is finished when the largest entry of `M - I` is at most this, or no longer falls.

    Returns:
        The roots [K, N, N], and which of them are valid [K], bool; the others may hold any values, including NaN.
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
    # A GPU is waited for to ask whether all matrices are finished; one that is does not change any more.
    ask_every = 1 if matrix_KNN.device.type == "cpu" else _ITERATIONS_PER_WAIT
    for iteration in range(max_iterations):
        if iteration % ask_every == 0 and not going_K.any():
            break
        terms = 2 if order is None or iteration == 0 else order
        turn_KNN = _series(eye_NN - near_KNN, eye_NN, p, terms)
        new_root_KNN, new_near_KNN = root_KNN @ turn_KNN, torch.linalg.matrix_power(turn_KNN, p) @ near_KNN
        new_error_K = _largest(new_near_KNN - eye_NN)
        # Far from the identity the error may stall for many steps; near it, a stall is the end.
        worse_K = ~(new_error_K <= _DIVERGED * error_K) | ((new_error_K >= error_K) & (error_K < 1e-3))
        taken_K11 = (going_K & ~worse_K)[:, None, None]
        root_KNN = torch.where(taken_K11, new_root_KNN, root_KNN)
        near_KNN = torch.where(taken_K11, new_near_KNN, near_KNN)
        going_K = going_K & ~worse_K & (new_error_K > tolerance)
        error_K = torch.where(taken_K11[:, 0, 0], new_error_K, error_K)
    residual_K = _largest(torch.linalg.matrix_power(root_KNN, p) @ matrix_KNN - eye_NN)
    root_KNN = torch.linalg.matrix_power(root_KNN, q)
    right_K = (residual_K <= _ACCEPTED_RESIDUAL) & root_KNN.isfinite().all(-1).all(-1)
    return (root_KNN + root_KNN.mT) / 2, right_K  # rounding breaks the symmetry of products


def _series(away_KNN: Tensor, eye_NN: Tensor, p: int, terms: int) -> Tensor:
    """Sums the first `terms` of `(I - E) ** (-1/p) = sum_i b_i E^i`, by Horner's rule."""
    coefficients = [1.0]
    for i in range(1, terms):
        coefficients.append(coefficients[-1] * (1 + (i - 1) * p) / (i * p))
    total_KNN = coefficients[-1] * away_KNN + coefficients[-2] * eye_NN
    for coefficient in reversed(coefficients[:-2]):
        total_KNN = total_KNN @ away_KNN + coefficient * eye_NN
    return total_KNN


def _largest(matrix_KNN: Tensor) -> Tensor:
    return matrix_KNN.abs().amax(dim=(-2, -1))
