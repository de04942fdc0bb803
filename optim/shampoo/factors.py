"""The factor matrices of K blocks of one shape, stacked for batched calls, and products with them.

Shapes: K blocks of shape S = (n_1, ..., n_o), stacked: [K, *S]; the factors of dimension k are one [K, n_k, n_k].
For a gradient G: `F_k <- decay F_k + weight G_(k) G_(k)^T`, where the unfolding G_(k) is the matrix whose rows run over
dimension k. Subclasses (preconditioner.py) define what a refresh computes from the factors, and the direction that
follows from it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dlrmctl.optim.shampoo.blocks import Shape
from dlrmctl.optim.shampoo.configs import EigenvalueCorrected, Preconditioner
from dlrmctl.optim.shampoo.memory import aligned_zeros
from dlrmctl.optim.shampoo.roots import regularization, side_by_side, trace_scaled

Index = Tensor | slice  # of some of K blocks
ExponentOverride = float | Mapping[int, float | Mapping[int, float]]
# The values of a block's `root_status`.
NEVER_REFRESHED, GOOD, FAILED = 0, 1, 2


@dataclass(frozen=True)
class RootSettings:
    """The parameters of one step; `correction` is `1 - beta2^t` or 1, `largest_ratio` is from settings.py."""

    correction: float
    epsilon: float | None
    relative_epsilon: float
    exponent_override: ExponentOverride | None
    largest_ratio: float


def exponent_of(order: int, dim: int, override: ExponentOverride | None, default: float) -> float:
    """Returns the override's exponent for blocks of this order (and this dimension), else the default."""
    exponent: float | Mapping[int, float] | None = override.get(order) if isinstance(override, Mapping) else override
    if isinstance(exponent, Mapping):
        exponent = exponent.get(dim)
    return default if exponent is None else exponent


def preconditioned_dims(
    order: int, config: Preconditioner | None, override: ExponentOverride | None
) -> tuple[int, ...]:
    """Returns the dimensions with a factor matrix: all but those with exponent 0 or an ignored basis."""
    if config is None:
        return ()
    if isinstance(config, EigenvalueCorrected):
        ignored = (config.ignored_basis_change_dims or {}).get(order, ())
        return tuple(dim for dim in range(order) if dim not in ignored)
    return tuple(dim for dim in range(order) if exponent_of(order, dim, override, 1.0) != 0)


class FactorStack(ABC):
    """Factor matrices of K blocks of one shape, one per preconditioned dimension, and what is computed from them.

    Args:
        dims: from `preconditioned_dims`; `factors` and `made` have one entry for each of them.
        root_status: int64 [K] on the CPU, updated in place.
    """

    made_name: str  # names in a state dict of what is computed from a factor

    def __init__(
        self,
        shape: Shape,
        dims: tuple[int, ...],
        config: Preconditioner,
        *,
        root_status: Tensor,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape, self.dims, self.root_status = shape, dims, root_status
        self.num_blocks = num_blocks = len(root_status)
        self._dtype, self._device = dtype, device
        self._trace_scaling = config.trace_scaling
        self.factors = [aligned_zeros(num_blocks, (shape[d], shape[d]), dtype=dtype, device=device) for d in dims]
        self.made = [torch.zeros_like(factor_KNN) for factor_KNN in self.factors]
        for made_KNN in self.made:
            made_KNN.diagonal(dim1=-2, dim2=-1).fill_(1)
        self._scratch_KS = self._buffer()

    def _buffer(self) -> Tensor:
        return aligned_zeros(self.num_blocks, self.shape, dtype=self._dtype, device=self._device)

    def accumulate(self, grad_KS: Tensor, settings: RootSettings, *, decay: float, weight: float) -> None:
        """Adds the gradient to every factor matrix."""
        for dim, factor_KNN in zip(self.dims, self.factors, strict=True):
            add_gram(factor_KNN, grad_KS, dim, decay=decay, weight=weight)

    def refresh(self, rows: list[int], settings: RootSettings) -> list[int]:
        """Refreshes what is computed from the factors of the blocks in `rows`; returns the rows that failed.

        A row that fails keeps its old values. On a CPU blocks are refreshed one at a time, as LAPACK does: the
        remainder of a vectorized loop rounds differently, so results would depend on the neighbouring blocks.
        """
        if not self.dims:
            return []
        if self._device.type != "cpu":
            all_of_them = torch.tensor(rows, device=self._device)
            made_anew = [self._made_anew(i, all_of_them, settings) for i in range(len(self.dims))]
            return self._keep(rows, all_of_them, made_anew)
        failed, together = [], torch.get_num_threads()  # blocks: more would only hold more results in memory
        for start in range(0, len(rows), together):
            slices = {row: slice(row, row + 1) for row in rows[start : start + together]}  # views, not copies
            jobs = [partial(self._made_anew, i, s, settings) for s in slices.values() for i in range(len(self.dims))]
            made = iter(side_by_side(jobs))
            for row, index in slices.items():
                failed += self._keep([row], index, [next(made) for _ in self.dims])
        return failed

    def _made_anew(self, i: int, index: Index, settings: RootSettings) -> tuple[tuple[Tensor, ...], Tensor]:
        return self._make(i, index, self._corrected(self.factors[i][index], settings), settings)

    def _keep(self, rows: list[int], index: Index, made: list[tuple[tuple[Tensor, ...], Tensor]]) -> list[int]:
        """Keeps what is usable of what was made for each dimension; returns the rows where something is not."""
        usable_K = torch.ones(len(rows), dtype=torch.bool, device=self._device)
        renewed: list[tuple[Tensor, Tensor]] = []
        for i, (new, usable_i_K) in enumerate(made):
            usable_K &= usable_i_K
            renewed += zip(self._kept(i), new, strict=True)
        usable = usable_K.tolist()
        for old, new_K in renewed:
            if not all(usable):
                new_K = torch.where(usable_K.view(-1, *[1] * (new_K.dim() - 1)), new_K.to(old.dtype), old[index])
            old[index] = new_K.to(old.dtype)
        for row, good in zip(rows, usable, strict=True):
            if good or self.root_status[row] != GOOD:
                self.root_status[row] = GOOD if good else FAILED
        return [row for row, good in zip(rows, usable, strict=True) if not good]

    def _corrected(self, factor_KNN: Tensor, settings: RootSettings) -> Tensor:
        """Corrects and scales factors; in float64 if the user lets matrix products round to less than float32."""
        if torch.get_float32_matmul_precision() != "highest":
            factor_KNN = factor_KNN.double()
        if settings.correction != 1:
            factor_KNN = factor_KNN / settings.correction
        return trace_scaled(factor_KNN, settings.epsilon or 0.0) if self._trace_scaling else factor_KNN

    @staticmethod
    def _epsilon(corrected_KNN: Tensor, settings: RootSettings) -> Tensor:
        return regularization(corrected_KNN, settings.epsilon, settings.relative_epsilon)

    def _kept(self, i: int) -> tuple[Tensor, ...]:
        """Returns the live tensors that a refresh of dimension `dims[i]` renews, each [K, ...]."""
        return (self.made[i],)

    @abstractmethod
    def _make(
        self, i: int, index: Index, corrected_KNN: Tensor, settings: RootSettings
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Computes what `_kept(i)` should hold for the blocks at `index`, and whether each result is usable, bool."""

    def observe(self, grad_KS: Tensor, *, beta2: float) -> None:  # noqa: B027 (optional for subclasses)
        """Called every step, after any refresh."""

    @abstractmethod
    def direction(self, filtered_KS: Tensor, settings: RootSettings, *, out: Tensor) -> None:
        """Writes the direction to `out`, which is aligned and has the shape of `filtered_KS`."""

    def live_tensors(self) -> list[Tensor]:
        """Returns the state of all blocks, without the root status."""
        return [*self.factors, *self.made]

    def allocated(self) -> list[Tensor]:
        """Returns all tensors that were allocated here."""
        return [*self.live_tensors(), self._scratch_KS]

    def block_state(self, row: int) -> dict[str, Tensor]:
        """Returns live views of one block's state."""
        state = {f"factor_{dim}": factor_KNN[row] for dim, factor_KNN in zip(self.dims, self.factors, strict=True)}
        state |= {f"{self.made_name}_{dim}": made_KNN[row] for dim, made_KNN in zip(self.dims, self.made, strict=True)}
        return state | {"root_status": self.root_status[row]}


def all_finite(tensor_K: Tensor) -> Tensor:
    """Returns which of K tensors have finite values and sums: in one pass, where `isfinite` takes several."""
    return tensor_K.flatten(1).sum(1).isfinite()


def add_gram(factor_KNN: Tensor, tensor_KS: Tensor, dim: int, *, decay: float, weight: float) -> None:
    """Adds `A A^T` in place, `F <- decay F + weight A A^T`; A is the unfolding of the tensor along dimension `dim`."""
    num_blocks, n = factor_KNN.shape[:2]
    before = math.prod(tensor_KS.shape[1 : 1 + dim])
    if before == 1:
        unfolded_KNM = tensor_KS.view(num_blocks, n, -1)
    elif 1 + dim == tensor_KS.dim() - 1:
        unfolded_KNM = tensor_KS.view(num_blocks, before, n).mT
    else:  # only a copy has the shape of a matrix; block by block, so that copies are aligned
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


def multiply(
    tensor_KS: Tensor, dims: Sequence[int], matrices: Sequence[Tensor], *, out: Tensor, scratch: Tensor
) -> Tensor:
    """Multiplies each of `dims` by its matrix, into `out`; neither buffer may be the tensor itself."""
    if not dims:
        return out.copy_(tensor_KS)
    for i, (dim, matrix_KNN) in enumerate(zip(dims, matrices, strict=True)):
        last = (len(dims) - i) % 2 == 1  # the buffers alternate so that the last product is in `out`
        tensor_KS = mode_product(tensor_KS, matrix_KNN, dim, out=out if last else scratch)
    return tensor_KS
