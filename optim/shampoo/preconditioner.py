"""The factor matrices of K blocks of one shape, stacked so that one call serves all of them.

Shapes: K blocks of shape S = (n_1, ..., n_o); the factors of dimension k are one tensor [K, n_k, n_k].
For a gradient G: `F_k <- decay F_k + weight G_(k) G_(k)^T`. Two ways to use them:
- root inverses: `H x_1 R_1 ... x_o R_o` with `R_k = F_k ** -1/(2 o)` (Gupta et al., arXiv:1802.09568);
- eigenvalue correction: Adam's update in the eigenbasis of the factors (Vyas et al., arXiv:2409.11321).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optim.shampoo.blocks import Shape
from optim.shampoo.configs import EigenvalueCorrected, Preconditioner
from optim.shampoo.memory import aligned_zeros
from optim.shampoo.roots import damped, eigh, inverse_root, regularization, turned_basis

ExponentOverride = float | Mapping[int, float | Mapping[int, float]]

# What a block's `root_status` says.
NEVER_REFRESHED, GOOD, FAILED = 0, 1, 2

_EIGENVALUE_EPSILON = 1e-8  # beside the root of a second moment, as in Adam; there is no factor to be relative to


@dataclass(frozen=True)
class RootSettings:
    """How factors are used at one step; `correction` is `1 - beta2^t` or 1."""

    correction: float
    epsilon: float | None
    relative_epsilon: float
    exponent_override: ExponentOverride | None


def add_gram(factor_KNN: Tensor, tensor_KS: Tensor, dim: int, *, decay: float, weight: float) -> None:
    """`F <- decay F + weight A A^T`, in place, with A the unfolding of the tensor along dimension `dim` of S."""
    num_blocks, n = factor_KNN.shape[:2]
    before = math.prod(tensor_KS.shape[1 : 1 + dim])
    if before == 1:
        unfolded_KNM = tensor_KS.view(num_blocks, n, -1)
    elif 1 + dim == tensor_KS.dim() - 1:
        unfolded_KNM = tensor_KS.view(num_blocks, before, n).mT
    else:  # only a copy has the shape of a matrix, so block by block, for aligned copies
        for factor_NN, tensor_S in zip(factor_KNN, tensor_KS, strict=True):
            unfolded_NM = tensor_S.movedim(dim, 0).reshape(n, -1)
            factor_NN.addmm_(unfolded_NM, unfolded_NM.T, beta=decay, alpha=weight)
        return
    factor_KNN.baddbmm_(unfolded_KNM, unfolded_KNM.mT, beta=decay, alpha=weight)


def mode_product(tensor_KS: Tensor, matrix_KNN: Tensor, dim: int, *, out: Tensor) -> Tensor:
    """Multiplies dimension `dim` of S by a matrix per block: `out[.., i, ..] = sum_j M[i, j] T[.., j, ..]`."""
    num_blocks, n = matrix_KNN.shape[:2]
    before = math.prod(tensor_KS.shape[1 : 1 + dim])
    if before == 1:
        torch.bmm(matrix_KNN, tensor_KS.view(num_blocks, n, -1), out=out.view(num_blocks, n, -1))
    elif 1 + dim == tensor_KS.dim() - 1:
        torch.bmm(tensor_KS.view(num_blocks, before, n), matrix_KNN.mT, out=out.view(num_blocks, before, n))
    else:
        for matrix_NN, tensor_S, out_S in zip(matrix_KNN, tensor_KS, out, strict=True):
            out_S.view(before, n, -1).copy_(matrix_NN @ tensor_S.view(before, n, -1))
    return out


def multiply_all(tensor_KS: Tensor, matrices: Sequence[Tensor], *, out: Tensor, scratch: Tensor) -> Tensor:
    """Multiplies every dimension by its matrix; neither buffer may be the tensor itself."""
    for dim, matrix_KNN in enumerate(matrices):
        last = (len(matrices) - dim) % 2 == 1  # the buffers take turns so that the last product lands in `out`
        tensor_KS = mode_product(tensor_KS, matrix_KNN, dim, out=out if last else scratch)
    return tensor_KS


def exponent_of(order: int, dim: int, override: ExponentOverride | None, default: float) -> float:
    """What the override says for blocks of this order (and this dimension), else the default."""
    exponent: float | Mapping[int, float] | None = override.get(order) if isinstance(override, Mapping) else override
    if isinstance(exponent, Mapping):
        exponent = exponent.get(dim)
    return default if exponent is None else exponent


class FactorStack(ABC):
    """Factor matrices of K equal blocks and what is made of them now and then, one matrix per dimension."""

    made_name: str  # of those matrices in a state dict

    def __init__(self, num_blocks: int, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> None:
        self.num_blocks = num_blocks
        self.shape = shape
        self.factors = [aligned_zeros(num_blocks, (n, n), dtype=dtype, device=device) for n in shape]
        self.made = [torch.zeros_like(factor_KNN) for factor_KNN in self.factors]
        for made_KNN in self.made:
            made_KNN.diagonal(dim1=-2, dim2=-1).fill_(1)
        self.root_status = torch.full((num_blocks,), NEVER_REFRESHED, dtype=torch.int64)
        self._scratch_KS = aligned_zeros(num_blocks, shape, dtype=dtype, device=device)

    def accumulate(self, grad_KS: Tensor, *, decay: float, weight: float) -> None:
        for dim, factor_KNN in enumerate(self.factors):
            add_gram(factor_KNN, grad_KS, dim, decay=decay, weight=weight)

    def refresh(self, rows: list[int], settings: RootSettings) -> int:
        """Renews the matrices of the blocks in `rows`; returns how many blocks failed and kept their old ones.

        On a CPU block by block: LAPACK does so anyway, and what is left over at the end of a vectorized loop rounds
        differently, which must not depend on the blocks beside it.
        """
        on_cpu = self.factors[0].device.type == "cpu"
        parts = [[row] for row in rows] if on_cpu else [rows]
        return sum(self._refresh_part(part, settings) for part in parts)

    def _refresh_part(self, rows: list[int], settings: RootSettings) -> int:
        index = torch.tensor(rows, device=self.factors[0].device)
        renewed = [self._make(dim, self.factors[dim][index], index, settings) for dim in range(len(self.shape))]
        good_K = torch.stack([new_KNN.isfinite().all(-1).all(-1) for new_KNN in renewed]).all(0)
        for old_KNN, new_KNN in zip(self.made, renewed, strict=True):
            old_KNN[index] = torch.where(good_K[:, None, None], new_KNN, old_KNN[index])
        good_K = good_K.cpu()
        before_K = self.root_status[rows]
        without_K = torch.where(before_K == GOOD, GOOD, FAILED)
        self.root_status[rows] = torch.where(good_K, GOOD, without_K)
        return int((~good_K).sum())

    @abstractmethod
    def _make(self, dim: int, factor_KNN: Tensor, index: Tensor, settings: RootSettings) -> Tensor:
        """New matrices for the blocks at `index`; NaN where one cannot be computed."""

    def observe(self, grad_KS: Tensor, *, beta2: float) -> None:  # noqa: B027 (most have nothing to do)
        """Called every step, after any refresh."""

    @abstractmethod
    def direction(self, filtered_KS: Tensor, settings: RootSettings, *, out: Tensor) -> None:
        """Writes the direction to `out`, aligned and of the shape of `filtered_KS`."""

    def block_state(self, row: int) -> dict[str, Tensor]:
        """Live views of one block's state."""
        state = {f"factor_{dim}": factor_KNN[row] for dim, factor_KNN in enumerate(self.factors)}
        state |= {f"{self.made_name}_{dim}": made_KNN[row] for dim, made_KNN in enumerate(self.made)}
        return state | {"root_status": self.root_status[row]}


class RootStack(FactorStack):
    """Uses the inverse roots of the factor matrices."""

    made_name = "root"

    def _make(self, dim: int, factor_KNN: Tensor, index: Tensor, settings: RootSettings) -> Tensor:
        corrected_KNN = factor_KNN / settings.correction
        order = len(self.shape)
        epsilon_K = regularization(corrected_KNN, settings.epsilon, settings.relative_epsilon)
        return inverse_root(
            corrected_KNN, exponent_of(order, dim, settings.exponent_override, 1 / (2 * order)), epsilon_K
        )

    def direction(self, filtered_KS: Tensor, settings: RootSettings, *, out: Tensor) -> None:
        multiply_all(filtered_KS, self.made, out=out, scratch=self._scratch_KS)


class EigenStack(FactorStack):
    """Uses the eigenbases of the factor matrices, and a second moment of the gradient as seen in them."""

    made_name = "basis"

    def __init__(
        self, num_blocks: int, shape: Shape, config: EigenvalueCorrected, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(num_blocks, shape, dtype=dtype, device=device)
        self.config = config
        self.eigenvalues_KS = torch.zeros_like(self._scratch_KS)
        self._seen_KS = torch.zeros_like(self._scratch_KS)

    def _make(self, dim: int, factor_KNN: Tensor, index: Tensor, settings: RootSettings) -> Tensor:
        # Damped although only the basis is wanted: it settles the directions that no gradient has had yet.
        corrected_KNN = factor_KNN / settings.correction
        epsilon_K = regularization(corrected_KNN, settings.epsilon, settings.relative_epsilon)
        damped_KNN = damped(corrected_KNN, epsilon_K)
        if self.config.method == "eigh":
            return eigh(damped_KNN)[1]
        return turned_basis(
            damped_KNN,
            self.made[dim][index],
            max_iterations=self.config.max_iterations,
            tolerance=self.config.tolerance,
        )

    def _seen(self, tensor_KS: Tensor) -> Tensor:
        """The tensor in the eigenbases; valid until the next call."""
        turned = [basis_KNN.mT for basis_KNN in self.made]
        return multiply_all(tensor_KS, turned, out=self._seen_KS, scratch=self._scratch_KS)

    def observe(self, grad_KS: Tensor, *, beta2: float) -> None:
        seen_KS = self._seen(grad_KS)
        self.eigenvalues_KS.mul_(beta2).addcmul_(seen_KS, seen_KS, value=1.0 if beta2 == 1 else 1 - beta2)

    def direction(self, filtered_KS: Tensor, settings: RootSettings, *, out: Tensor) -> None:
        exponent = exponent_of(len(self.shape), 0, settings.exponent_override, 0.5)
        epsilon = _EIGENVALUE_EPSILON if settings.epsilon is None else settings.epsilon
        scale_KS = (self.eigenvalues_KS / settings.correction).pow_(exponent).add_(epsilon)
        corrected_KS = self._seen(filtered_KS).div_(scale_KS)
        multiply_all(corrected_KS, self.made, out=out, scratch=self._scratch_KS)

    def block_state(self, row: int) -> dict[str, Tensor]:
        return super().block_state(row) | {"eigenvalues": self.eigenvalues_KS[row]}


def make_stack(
    num_blocks: int, shape: Shape, config: Preconditioner, *, dtype: torch.dtype, device: torch.device
) -> FactorStack:
    if isinstance(config, EigenvalueCorrected):
        return EigenStack(num_blocks, shape, config, dtype=dtype, device=device)
    return RootStack(num_blocks, shape, dtype=dtype, device=device)
