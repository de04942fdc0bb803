"""Products of stacked blocks with matrices, one dimension at a time.

Shapes: K blocks of shape S = (n_1, ..., n_o), stacked: [K, *S]; a matrix per block: [K, n, n]. The unfolding of a block
along a dimension is the matrix whose rows run over that dimension.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


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


def multiply(
    tensor_KS: Tensor, dims: Sequence[int], matrices: Sequence[Tensor], *, out: Tensor, scratch: Tensor
) -> Tensor:
    """Multiplies each of `dims` by its matrix, into `out`; neither buffer may be the tensor itself."""
    if not dims:
        return out.copy_(tensor_KS)
    for i, (dim, matrix_KNN) in enumerate(zip(dims, matrices, strict=True)):
        last = (len(dims) - i) % 2 == 1  # the buffers take turns so that the last product lands in `out`
        tensor_KS = mode_product(tensor_KS, matrix_KNN, dim, out=out if last else scratch)
    return tensor_KS
