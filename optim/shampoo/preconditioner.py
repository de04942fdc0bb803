"""The factor matrices of K blocks of one shape, stacked so that one call serves all of them.

Shapes: K blocks of shape S = (n_1, ..., n_o); the factors of dimension k are one tensor [K, n_k, n_k].
For a gradient G: `F_k <- decay F_k + weight G_(k) G_(k)^T`; the direction is `H x_1 R_1 ... x_o R_o`, where
`R_k = F_k ** -1/(2 o)`. Source: Gupta et al., arXiv:1802.09568.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from optim.shampoo.blocks import Shape
from optim.shampoo.roots import inverse_root, regularization

ExponentOverride = float | Mapping[int, float | Mapping[int, float]]

# What a block's `root_status` says.
NEVER_REFRESHED, GOOD, FAILED = 0, 1, 2


@dataclass(frozen=True)
class RefreshSettings:
    """How roots are made of factors; `correction` is `1 - beta2^t` or 1."""

    correction: float
    epsilon: float | None
    relative_epsilon: float
    exponent_override: ExponentOverride | None


def gram(tensor_KS: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Two views A [K, n, m] and A^T of the unfolding along dimension `dim` of S, so that A @ A^T is its Gram matrix."""
    K, n = tensor_KS.shape[0], tensor_KS.shape[1 + dim]
    before = math.prod(tensor_KS.shape[1 : 1 + dim])
    if 1 + dim == tensor_KS.dim() - 1:
        unfolded = tensor_KS.reshape(K, before, n).mT
    else:
        unfolded = tensor_KS.reshape(K, before, n, -1).transpose(1, 2).reshape(K, n, -1)
    return unfolded, unfolded.mT


def mode_product(tensor_KS: Tensor, matrix_KNN: Tensor, dim: int) -> Tensor:
    """Multiplies dimension `dim` of S by a matrix per block: `out[.., i, ..] = sum_j M[i, j] T[.., j, ..]`."""
    K, n = tensor_KS.shape[0], tensor_KS.shape[1 + dim]
    before = math.prod(tensor_KS.shape[1 : 1 + dim])
    if 1 + dim == tensor_KS.dim() - 1:
        product = torch.bmm(tensor_KS.reshape(K, before, n), matrix_KNN.mT)
    elif dim == 0:
        product = torch.bmm(matrix_KNN, tensor_KS.reshape(K, n, -1))
    else:
        product = matrix_KNN[:, None] @ tensor_KS.reshape(K, before, n, -1)
    return product.view(tensor_KS.shape)


def exponent_of(order: int, dim: int, override: ExponentOverride | None) -> float:
    """`1 / (2 * order)`, or what the override says for blocks of this order (and this dimension)."""
    exponent: float | Mapping[int, float] | None = override.get(order) if isinstance(override, Mapping) else override
    if isinstance(exponent, Mapping):
        exponent = exponent.get(dim)
    return 1 / (2 * order) if exponent is None else exponent


class RootStack:
    """Factor matrices and their root inverses."""

    def __init__(self, num_blocks: int, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        self.factors = [torch.zeros(num_blocks, n, n, dtype=dtype, device=device) for n in shape]
        self.roots = [torch.eye(n, dtype=dtype, device=device).repeat(num_blocks, 1, 1) for n in shape]
        self.root_status = torch.full((num_blocks,), NEVER_REFRESHED, dtype=torch.int64)

    def accumulate(self, grad_KS: Tensor, *, decay: float, weight: float) -> None:
        for dim, factor_KNN in enumerate(self.factors):
            factor_KNN.baddbmm_(*gram(grad_KS, dim), beta=decay, alpha=weight)

    def refresh(self, rows: list[int], settings: RefreshSettings) -> int:
        """Renews the root inverses of the blocks in `rows`; returns how many could not be and kept their old ones."""
        everything = len(rows) == self.num_blocks
        index = torch.tensor(rows, device=self.factors[0].device)
        roots = []
        for dim, factor_KNN in enumerate(self.factors):
            chosen_KNN = (factor_KNN if everything else factor_KNN[index]) / settings.correction
            epsilon_K = regularization(chosen_KNN, epsilon=settings.epsilon, relative_epsilon=settings.relative_epsilon)
            exponent = exponent_of(len(self.shape), dim, settings.exponent_override)
            roots.append(inverse_root(chosen_KNN, exponent, epsilon_K))
        good_K = torch.stack([root_KNN.isfinite().all(-1).all(-1) for root_KNN in roots]).all(0)
        for old_KNN, new_KNN in zip(self.roots, roots, strict=True):
            old_KNN[index] = torch.where(good_K[:, None, None], new_KNN, old_KNN[index])
        return self._note_status(torch.tensor(rows), good_K.cpu())

    def _note_status(self, rows: Tensor, good: Tensor) -> int:
        before = self.root_status[rows]
        failed = torch.where(before == NEVER_REFRESHED, FAILED, before)
        self.root_status[rows] = torch.where(good, GOOD, failed)
        return int((~good).sum())

    def direction(self, filtered_KS: Tensor) -> Tensor:
        for dim, root_KNN in enumerate(self.roots):
            filtered_KS = mode_product(filtered_KS, root_KNN, dim)
        return filtered_KS

    def block_state(self, row: int) -> dict[str, Tensor]:
        """Live views of one block's state."""
        state = {f"factor_{dim}": factor_KNN[row] for dim, factor_KNN in enumerate(self.factors)}
        state |= {f"root_{dim}": root_KNN[row] for dim, root_KNN in enumerate(self.roots)}
        return state | {"root_status": self.root_status[row]}
