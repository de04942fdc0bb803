"""Pieces of the near-isometric solvers: symmetric matrices as vectors, and the nearest points of three sets.

Dimensions: N rows and columns of a symmetric matrix, R its rank.
"""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=8)
def triangle(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of each entry of the upper triangle, and what `svec` multiplies it by (float64)."""
    row, column = torch.triu_indices(size, size)
    scale = torch.full(row.shape, 2.0, dtype=torch.float64).sqrt_()
    scale[row == column] = 1.0
    return row, column, scale


def svec(matrix_NN: Tensor) -> Tensor:
    """A symmetric matrix as a vector [N (N + 1) / 2] of the same inner products: svec(A) @ svec(B) = trace(A B)."""
    row, column, scale = triangle(matrix_NN.shape[0])
    return matrix_NN[row, column] * scale


def smat(vector: Tensor) -> Tensor:
    """The inverse of `svec`.

    Raises:
        ValueError: unless the length is N (N + 1) / 2 for a whole N.
    """
    size = int((2 * vector.numel()) ** 0.5)
    if size * (size + 1) != 2 * vector.numel():
        raise ValueError(f"a vector of {vector.numel()} numbers is no symmetric matrix: lengths are N (N + 1) / 2")
    row, column, scale = triangle(size)
    matrix = vector.new_empty(size, size)
    matrix[row, column] = matrix[column, row] = vector / scale
    return matrix


def project_l1_ball(vector: Tensor, radius: float) -> Tensor:
    """The nearest vector whose absolute values sum to at most `radius`: all shrink by one amount, down to 0.

    Raises:
        ValueError: if `radius` is below 0.

    Source: Duchi et al., "Efficient projections onto the l1-ball", 2008.
    """
    if radius < 0:
        raise ValueError(f"{radius=} must be at least 0")
    sizes = vector.abs()
    if float(sizes.sum()) <= radius:
        return vector.clone()
    if radius == 0:
        return torch.zeros_like(vector)
    largest_first = sizes.sort(descending=True).values
    excess = largest_first.cumsum(0) - radius
    kept = torch.arange(1, len(sizes) + 1, dtype=vector.dtype)
    last = int((largest_first * kept >= excess).nonzero()[-1])
    return vector.sign() * (sizes - excess[last] / kept[last]).clamp(min=0)


def prox_infinity_norm(vector: Tensor, weight: float) -> Tensor:
    """argmin_z weight max|z| + |z - vector|^2 / 2: what the projection onto the dual norm's ball leaves (Moreau)."""
    return vector - project_l1_ball(vector, weight)


def truncate(matrix_NN: Tensor, rank: int) -> Tensor:
    """The nearest positive semidefinite matrix of rank at most R, in the Frobenius norm, by a factor.

    Args:
        matrix_NN: symmetric.
        rank: R, from 1 to N.

    Returns:
        F [R, N] such that F^T F is that matrix: the R largest eigenvalues, negative ones as 0.
    """
    values, vectors = torch.linalg.eigh(matrix_NN)
    return (vectors[:, -rank:] * values[-rank:].clamp(min=0).sqrt()).T
