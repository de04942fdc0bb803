"""Three ways to compute directions from the factor matrices of K blocks of one shape.

- root inverses: `H x_1 R_1 ... x_o R_o` with `R_k = F_k ** -1/(2 o)` (Gupta et al., arXiv:1802.09568);
- the same from kept eigenvectors and eigenvalues (Shi et al., arXiv:2309.06497);
- eigenvalue correction: Adam's update in the eigenbasis of the factors (Vyas et al., arXiv:2409.11321).

The first two may sum up other statistics: those that minimize the Kullback-Leibler divergence between Gaussians with
the covariance of the gradient and with the Kronecker product of the factors (Lin et al., arXiv:2509.03378), where
dimension k sees the gradient after every other dimension's root: `F_k <- decay F_k + weight A A^T`, `A` the unfolding
of `G x_j R_j` over `j != k`; with `R_j = F_j ** -1/2` that is `G_(k) F_j^-1 G_(k)^T` for a matrix. The paper divides by
the number of columns of A.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from dlrmctl.optim.shampoo.blocks import Shape
from dlrmctl.optim.shampoo.configs import Eigendecomposed, EigenvalueCorrected, Preconditioner, RootInverse
from dlrmctl.optim.shampoo.factors import FactorStack, Index, RootSettings, add_gram, all_finite, exponent_of, multiply
from dlrmctl.optim.shampoo.roots import damped, eigendecomposition, eigh, inverse_root, lifted, root_of, turned_basis

Dims = tuple[int, ...]
_EIGENVALUE_EPSILON = 1e-8  # added to the root of a second moment, as in Adam


class _RootedStack(FactorStack):
    """Root inverses, or their eigendecomposed form: the direction is the product with a root of each factor."""

    config: RootInverse | Eigendecomposed

    def __init__(
        self, shape: Shape, dims: Dims, config: Any, *, root_status: Tensor, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape, dims, config, root_status=root_status, dtype=dtype, device=device)
        self.config = config
        self._others_KS = None if config.statistics == "shampoo" else self._buffer()

    def _exponent(self, i: int, settings: RootSettings) -> float:
        order = len(self.shape)
        return exponent_of(order, self.dims[i], settings.exponent_override, 1 / (2 * order))

    def allocated(self) -> list[Tensor]:
        return super().allocated() + ([] if self._others_KS is None else [self._others_KS])

    @abstractmethod
    def _roots(self, settings: RootSettings) -> list[Tensor]:
        """Returns R of every preconditioned dimension."""

    def direction(self, filtered_KS: Tensor, settings: RootSettings, *, out: Tensor) -> None:
        multiply(filtered_KS, self.dims, self._roots(settings), out=out, scratch=self._scratch_KS)

    def accumulate(self, grad_KS: Tensor, settings: RootSettings, *, decay: float, weight: float) -> None:
        if self._others_KS is None:
            super().accumulate(grad_KS, settings, decay=decay, weight=weight)
            return
        roots = self._roots(settings)
        for i, dim in enumerate(self.dims):
            others = [j for j in range(len(self.dims)) if j != i]
            other_dims, other_roots = [self.dims[j] for j in others], [roots[j] for j in others]
            seen_KS = multiply(grad_KS, other_dims, other_roots, out=self._others_KS, scratch=self._scratch_KS)
            columns = math.prod(self.shape) / self.shape[dim] if self.config.statistics == "kl_mean" else 1.0
            add_gram(self.factors[i], seen_KS, dim, decay=decay, weight=weight / columns)


class RootStack(_RootedStack):
    """Uses the inverse roots of the factor matrices."""

    config: RootInverse
    made_name = "root"

    def _roots(self, settings: RootSettings) -> list[Tensor]:
        return self.made

    def _make(
        self, i: int, index: Index, corrected_KNN: Tensor, settings: RootSettings
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        epsilon_K = self._epsilon(corrected_KNN, settings)
        root_KNN = inverse_root(corrected_KNN, self._exponent(i, settings), epsilon_K, self.config)
        return (root_KNN,), all_finite(root_KNN)


class EigendecomposedStack(_RootedStack):
    """Keeps eigenvectors and eigenvalues, and takes the root of them at every use."""

    config: Eigendecomposed
    made_name = "basis"

    def __init__(
        self, shape: Shape, dims: Dims, config: Any, *, root_status: Tensor, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape, dims, config, root_status=root_status, dtype=dtype, device=device)
        self.eigenvalues = [torch.ones_like(basis_KNN[..., 0]) for basis_KNN in self.made]

    def live_tensors(self) -> list[Tensor]:
        return super().live_tensors() + self.eigenvalues

    def _roots(self, settings: RootSettings) -> list[Tensor]:
        pairs = enumerate(zip(self.eigenvalues, self.made, strict=True))
        return [root_of(values_KN, basis_KNN, self._exponent(i, settings)) for i, (values_KN, basis_KNN) in pairs]

    def _kept(self, i: int) -> tuple[Tensor, ...]:
        return self.made[i], self.eigenvalues[i]

    def _make(
        self, i: int, index: Index, corrected_KNN: Tensor, settings: RootSettings
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        epsilon_K = self._epsilon(corrected_KNN, settings)
        if self.config.method == "qr":
            values_KN, basis_KNN = turned_basis(
                damped(corrected_KNN, epsilon_K),
                self.made[i][index].to(corrected_KNN.dtype),
                max_iterations=self.config.max_iterations,
                tolerance=self.config.tolerance,
            )
            values_KN = lifted(values_KN, epsilon_K)
        else:
            values_KN, basis_KNN = eigendecomposition(corrected_KNN, epsilon_K, self.config)
        return (basis_KNN, values_KN), all_finite(basis_KNN) & (values_KN > 0).all(1)

    def block_state(self, row: int) -> dict[str, Tensor]:
        values = {f"eigenvalues_{d}": values_KN[row] for d, values_KN in zip(self.dims, self.eigenvalues, strict=True)}
        return super().block_state(row) | values


class EigenStack(FactorStack):
    """Uses the eigenbases of the factor matrices, and the second moment of the gradient in them."""

    made_name = "basis"

    def __init__(
        self, shape: Shape, dims: Dims, config: Any, *, root_status: Tensor, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape, dims, config, root_status=root_status, dtype=dtype, device=device)
        self.config: EigenvalueCorrected = config
        self.eigenvalues_KS, self._seen_KS = self._buffer(), self._buffer()

    def live_tensors(self) -> list[Tensor]:
        return [*super().live_tensors(), self.eigenvalues_KS]

    def allocated(self) -> list[Tensor]:
        return [*super().allocated(), self._seen_KS]

    def _make(
        self, i: int, index: Index, corrected_KNN: Tensor, settings: RootSettings
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        # Damped although only the basis is used, to determine directions without gradients so far.
        damped_KNN = damped(corrected_KNN, self._epsilon(corrected_KNN, settings))
        if self.config.method == "eigh":
            basis_KNN = eigh(damped_KNN)[1]
        else:
            basis_KNN = turned_basis(
                damped_KNN,
                self.made[i][index].to(corrected_KNN.dtype),
                max_iterations=self.config.max_iterations,
                tolerance=self.config.tolerance,
            )[1]
        return (basis_KNN,), all_finite(basis_KNN)

    def _seen(self, tensor_KS: Tensor) -> Tensor:
        """Returns the tensor in the eigenbases; valid until the next call."""
        turned = [basis_KNN.mT for basis_KNN in self.made]
        return multiply(tensor_KS, self.dims, turned, out=self._seen_KS, scratch=self._scratch_KS)

    def observe(self, grad_KS: Tensor, *, beta2: float) -> None:
        seen_KS = self._seen(grad_KS)
        self.eigenvalues_KS.mul_(beta2).addcmul_(seen_KS, seen_KS, value=1.0 if beta2 == 1 else 1 - beta2)

    def direction(self, filtered_KS: Tensor, settings: RootSettings, *, out: Tensor) -> None:
        exponent = exponent_of(len(self.shape), 0, settings.exponent_override, 0.5)
        epsilon = _EIGENVALUE_EPSILON if settings.epsilon is None else settings.epsilon
        scale_KS = (self.eigenvalues_KS / settings.correction).pow_(exponent).add_(epsilon)
        corrected_KS = self._seen(filtered_KS).div_(scale_KS)
        if exponent == 0.5 and self.config.max_ratio is not None:
            limit = self.config.max_ratio * settings.largest_ratio
            corrected_KS.clamp_(-limit, limit)
        multiply(corrected_KS, self.dims, self.made, out=out, scratch=self._scratch_KS)

    def block_state(self, row: int) -> dict[str, Tensor]:
        return super().block_state(row) | {"eigenvalues": self.eigenvalues_KS[row]}


def make_stack(shape: Shape, dims: Dims, config: Preconditioner, **where: Any) -> FactorStack:
    """Returns the stack for a configuration; `where` holds the other arguments of FactorStack."""
    kinds: dict[type, type[FactorStack]] = {
        RootInverse: RootStack,
        Eigendecomposed: EigendecomposedStack,
        EigenvalueCorrected: EigenStack,
    }
    return kinds[type(config)](shape, dims, config, **where)
