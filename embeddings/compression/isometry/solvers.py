"""Two alternating direction methods (ADMM) for a low-rank metric that keeps the lengths of given directions.

Psi is the matrix of the metric: a direction v gets the squared length v^T Psi v, which should be 1. The two problems
are those of Luo, Shapiro, Shi and Yang, arXiv:1601.00062; the splittings are our own. A bound on the rank is not
convex, so both are heuristics, and the caller measures the results.

Dimensions: M directions, N their coordinates (rows and columns of a symmetric matrix), R the rank. L = F^T F stands for
a matrix of rank R.
"""

from functools import lru_cache

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.isometry.secants import extremes

# Up to this N, the N (N + 1) / 2 entries of Psi are solved for by factorization, beyond by conjugate gradients.
MOST_FACTORED = 48
# Weights of the constraints z = A(Psi) - 1 and q = A(Psi).
_NILE_PRO_PENALTY, _FROMAX_PENALTY = 0.1, 0.01
_CHECK_EVERY = 10
_MOST_CG_STEPS = 50
# Of the residual; reaches the same distortion as 1e-8 in less than half the time. 1e-3 is too coarse.
_CG_TOLERANCE = 1e-5


class SquaredLengths:
    """A: Psi -> v_k^T Psi v_k for M directions, and the solution of (A^T A + damping I) Psi = B.

    Args:
        directions_MN: float64, of length 1.
        damping: above 0.
        factored: whether to solve by factorization; default: if N is at most `MOST_FACTORED`.
    """

    def __init__(self, directions_MN: Tensor, damping: float, *, factored: bool | None = None) -> None:
        self.directions, self.damping = directions_MN, damping
        size = directions_MN.shape[1]
        self._inverse: Tensor | None = None
        if size <= MOST_FACTORED if factored is None else factored:
            row, column, scale = triangle(size)
            gram = torch.zeros(len(row), len(row), dtype=torch.float64)
            for part in directions_MN.split(max(1, 2**22 // len(row))):  # 32 MB of rows at a time
                rows = part[:, row] * part[:, column] * scale
                gram.addmm_(rows.T, rows)
            gram.diagonal().add_(damping)
            self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))

    def __call__(self, matrix_NN: Tensor) -> Tensor:
        """A Psi, [M]."""
        return (self.directions @ matrix_NN).mul_(self.directions).sum(1)

    def of_factor(self, factor_RN: Tensor) -> Tensor:
        """A F^T F, [M]."""
        return (self.directions @ factor_RN.T).square_().sum(1)

    def adjoint(self, weights_M: Tensor) -> Tensor:
        """A^T y = sum_k y_k v_k v_k^T, [N, N]."""
        return (self.directions * weights_M[:, None]).T @ self.directions

    def solve(self, right_NN: Tensor, guess_NN: Tensor) -> Tensor:
        """(A^T A + damping I)^-1 B, symmetric [N, N]; conjugate gradients start at `guess`."""
        if self._inverse is not None:
            return smat(self._inverse @ svec(right_NN))
        return self._conjugate_gradients(right_NN, guess_NN)

    def _conjugate_gradients(self, right: Tensor, found: Tensor) -> Tensor:
        residual = right - self.adjoint(self(found)) - self.damping * found
        step, squared = residual, float(residual.square().sum())
        enough = _CG_TOLERANCE**2 * float(right.square().sum())
        for _ in range(_MOST_CG_STEPS):
            if squared <= enough:
                break
            image = self.adjoint(self(step)).add_(step, alpha=self.damping)
            length = squared / float((step * image).sum())
            found, residual = found + length * step, residual - length * image
            before, squared = squared, float(residual.square().sum())
            step = residual + (squared / before) * step
        return found


class _Best:
    """The best factor so far, by distortion of the directions plus the pull towards the anchor."""

    def __init__(self, lengths: SquaredLengths, factor_RN: Tensor, anchor_NN: Tensor, pull: float) -> None:
        self._lengths, self._anchor, self._pull = lengths, anchor_NN, pull
        self._value = torch.inf
        self.consider(factor_RN)

    def consider(self, factor_RN: Tensor) -> float:
        """Takes in a factor and returns its distortion."""
        found = extremes(self._lengths.of_factor(factor_RN))
        scaled = factor_RN * found.scale
        value = found.delta + self._pull / 2 * float((scaled.T @ scaled - self._anchor).square().sum())
        if value < self._value:
            self._value, self.factor = value, scaled
        return found.delta


def nile_pro_steps(
    directions_MN: Tensor,
    start_RN: Tensor,
    iterations: int,
    *,
    anchor_NN: Tensor,
    pull: float,
    damping: float,
) -> Tensor:
    """min |A(Psi) - 1|_inf + pull |Psi - anchor|_F^2 / 2 over positive semidefinite Psi of rank at most R.

    Split as Psi (least squares), z = A(Psi) - 1 (proximal map of the norm) and L = Psi (truncation), with scaled
    duals u and W. The pull is an addition to NILE-Pro: the worst pairs do not determine all of Psi, and the rest should
    not drift.

    Args:
        directions_MN: float64, of length 1.
        start_RN: F of the first L.
        anchor_NN: symmetric.
        pull: at least 0.
        damping: the weight of L = Psi, per direction, relative to the penalty. Smaller values move faster but
            oscillate.

    Returns:
        The best F seen, `start_RN` included, scaled so that the squared lengths are around 1.
    """
    nearness, pulling = damping * len(directions_MN), pull / _NILE_PRO_PENALTY
    lengths = SquaredLengths(directions_MN, nearness + pulling)
    best = _Best(lengths, start_RN, anchor_NN, pull)
    rank, low_rank = start_RN.shape[0], best.factor.T @ best.factor
    matrix, dual = low_rank, torch.zeros_like(low_rank)
    error = lengths(matrix) - 1
    error_dual = torch.zeros_like(error)
    for iteration in range(1, iterations + 1):
        right = lengths.adjoint(1 + error - error_dual) + nearness * (low_rank - dual) + pulling * anchor_NN
        matrix = lengths.solve(right, matrix)
        shifted = lengths(matrix) - 1 + error_dual
        error = prox_infinity_norm(shifted, 1 / _NILE_PRO_PENALTY)
        error_dual = shifted - error
        factor = truncate(matrix + dual, rank)
        low_rank = factor.T @ factor
        dual = dual + matrix - low_rank
        if iteration % _CHECK_EVERY == 0 or iteration == iterations:
            best.consider(factor)
    return best.factor


def fromax_steps(directions_MN: Tensor, start_RN: Tensor, delta: float, iterations: int) -> Tensor:
    """min |Psi - L|_F^2 / 2 over L of rank at most R, both positive semidefinite, with |A(Psi) - 1|_inf <= delta.

    Split as Psi (least squares), q = A(Psi) (clipped to the bounds, scaled dual u) and L (truncation). At distance 0 L
    keeps the bound, and the steps end.

    Args:
        directions_MN: float64, of length 1.
        start_RN: F of the first L.
        delta: the bound, in (0, 1).

    Returns:
        The best F seen, as in `nile_pro_steps`.
    """
    lengths = SquaredLengths(directions_MN, 1 / _FROMAX_PENALTY)
    rank, matrix = start_RN.shape[0], start_RN.T @ start_RN
    best = _Best(lengths, start_RN, matrix, 0.0)
    matrix = low_rank = best.factor.T @ best.factor
    squares = lengths(matrix)
    dual = torch.zeros_like(squares)
    for iteration in range(1, iterations + 1):
        clipped = (squares + dual).clamp_(1 - delta, 1 + delta)
        matrix = lengths.solve(lengths.adjoint(clipped - dual) + low_rank / _FROMAX_PENALTY, matrix)
        squares = lengths(matrix)
        dual = dual + squares - clipped
        factor = truncate(matrix, rank)
        low_rank = factor.T @ factor
        if (iteration % _CHECK_EVERY == 0 or iteration == iterations) and best.consider(factor) <= delta:
            break
    return best.factor


@lru_cache(maxsize=8)
def triangle(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the row and column of each entry of the upper triangle, and the factor of `svec` for it (float64)."""
    row, column = torch.triu_indices(size, size)
    scale = torch.full(row.shape, 2.0, dtype=torch.float64).sqrt_()
    scale[row == column] = 1.0
    return row, column, scale


def svec(matrix_NN: Tensor) -> Tensor:
    """Returns a symmetric matrix as a vector [N (N + 1) / 2] such that svec(A) @ svec(B) = trace(A B)."""
    row, column, scale = triangle(matrix_NN.shape[0])
    return matrix_NN[row, column] * scale


def smat(vector: Tensor) -> Tensor:
    """The inverse of `svec`.

    Raises:
        ValueError: unless the length is N (N + 1) / 2 for a whole N.
    """
    size = int((2 * vector.numel()) ** 0.5)
    if size * (size + 1) != 2 * vector.numel():
        raise ValueError(f"a vector of {vector.numel()} numbers is no symmetric matrix: lengths must be N (N + 1) / 2")
    row, column, scale = triangle(size)
    matrix = vector.new_empty(size, size)
    matrix[row, column] = matrix[column, row] = vector / scale
    return matrix


def project_l1_ball(vector: Tensor, radius: float) -> Tensor:
    """Returns the nearest vector whose absolute values sum to at most `radius`: all shrink by one amount, down to 0.

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
    """Returns a factor of the nearest positive semidefinite matrix of rank at most R, in the Frobenius norm.

    Args:
        matrix_NN: symmetric.
        rank: R, from 1 to N.

    Returns:
        F [R, N] such that F^T F is that matrix: the R largest eigenvalues, negative ones as 0.
    """
    values, vectors = torch.linalg.eigh(matrix_NN)
    return (vectors[:, -rank:] * values[-rank:].clamp(min=0).sqrt()).T
