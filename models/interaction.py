"""Interactions of the bottom MLP's output with the embeddings.

Shapes: B examples, F sparse features, N = F + 1 vectors, D columns, P = N (N - 1) / 2 pairs.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dlrmctl.models.mlp import Linear


class _PairwiseDots(torch.autograd.Function):
    """Dot products of all pairs, prefixed by the first vector: one bmm forward, one backward.

    The usual chain (cat, bmm, tril index, cat) writes several intermediates and scatters in its backward;
    here the backward gathers a symmetric matrix and multiplies once.
    """

    @staticmethod
    def forward(ctx: Any, first_BD: Tensor, others_BFD: Tensor, lower_P: Tensor, symmetric_NN: Tensor) -> Tensor:
        vectors_BND = torch.cat([first_BD.unsqueeze(1), others_BFD], dim=1)
        dots_BNN = torch.bmm(vectors_BND, vectors_BND.transpose(1, 2))
        pairs_BP = torch.index_select(dots_BNN.flatten(1), 1, lower_P)
        ctx.save_for_backward(vectors_BND, symmetric_NN)
        return torch.cat([first_BD, pairs_BP], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None, None]:
        vectors_BND, symmetric_NN = ctx.saved_tensors
        B, N, D = vectors_BND.shape
        # Column D of grad_out is the first pair; the diagonal gets a pair's value and is then cleared.
        grad_dots_BNN = torch.index_select(grad_out, 1, symmetric_NN).view(B, N, N)
        grad_dots_BNN.diagonal(dim1=1, dim2=2).zero_()
        grad_BND = torch.bmm(grad_dots_BNN, vectors_BND)
        grad_BND[:, 0] += grad_out[:, :D]
        return grad_BND[:, 0], grad_BND[:, 1:], None, None


class DotInteraction(nn.Module):
    """Concatenates the dense vector and the dot products of all pairs of the N vectors (i > j, row-major).

    Args:
        num_vectors: F, the vectors of the sparse features.
        dim: D, the width of every vector.

    Shapes:
        dense_BD [B, D] and embeddings_BFD [B, F, D] -> [B, D + (F + 1) F / 2].

    Source: Naumov et al., arXiv:1906.00091, section 2.1.3.
    """

    lower_P: Tensor
    symmetric_NN: Tensor

    def __init__(self, num_vectors: int, dim: int) -> None:
        super().__init__()
        N = num_vectors + 1
        rows, columns = torch.tril_indices(N, N, offset=-1)
        P = len(rows)
        self.out_features = dim + P
        symmetric = torch.full((N, N), dim)
        symmetric[rows, columns] = dim + torch.arange(P)
        symmetric[columns, rows] = dim + torch.arange(P)
        self.register_buffer("lower_P", rows * N + columns, persistent=False)
        self.register_buffer("symmetric_NN", symmetric.flatten(), persistent=False)

    def forward(self, dense_BD: Tensor, embeddings_BFD: Tensor) -> Tensor:
        # Under autocast the two may have different types; the products have the dense side's.
        embeddings_BFD = embeddings_BFD.to(dense_BD.dtype)
        return _PairwiseDots.apply(dense_BD, embeddings_BFD, self.lower_P, self.symmetric_NN)


class CatInteraction(nn.Module):
    """Concatenates the dense vector and all embeddings.

    Shapes:
        dense_BD [B, D] and embeddings_BFD [B, F, D] -> [B, (F + 1) D].
    """

    def __init__(self, num_vectors: int, dim: int) -> None:
        super().__init__()
        self.out_features = (num_vectors + 1) * dim

    def forward(self, dense_BD: Tensor, embeddings_BFD: Tensor) -> Tensor:
        return torch.cat([dense_BD, embeddings_BFD.to(dense_BD.dtype).flatten(1)], dim=1)


class _PlusProduct(torch.autograd.Function):
    """torch.addcmul, whose own backward first multiplies both factors by 1, in a pass over memory for each."""

    @staticmethod
    def forward(ctx: Any, x_BM: Tensor, x0_BM: Tensor, y_BM: Tensor) -> Tensor:
        ctx.save_for_backward(x0_BM, y_BM)
        return torch.addcmul(x_BM, x0_BM, y_BM)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x0_BM, y_BM = ctx.saved_tensors
        return grad_BM, grad_BM * y_BM, grad_BM * x0_BM


def _plus_product(x_BM: Tensor, x0_BM: Tensor, y_BM: Tensor) -> Tensor:
    """Returns `x + x_0 * y`."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        sum_BM: Tensor = _PlusProduct.apply(x_BM, x0_BM, y_BM)
        return sum_BM
    return torch.addcmul(x_BM, x0_BM, y_BM)


class CrossInteraction(nn.Module):
    """Cross layers of low rank over all vectors side by side: each multiplies by the input, and so adds a degree.

    x_0 is what `CatInteraction` gives, of width M = (F + 1) D; then, for every layer, with V [R, M] and W [M, R],

        x_{l+1} = x_0 * (W V x_l + b) + x_l

    Matrices start from N(0, 2 / (M + R)), and b from 0.

    Args:
        num_vectors: F.
        dim: D.
        layers: number of layers, >= 1.
        rank: R, >= 1.
        generator: source of the initial values; None uses torch's global generator.

    Shapes:
        dense_BD [B, D] and embeddings_BFD [B, F, D] -> [B, (F + 1) D].

    Source: Wang et al., arXiv:2008.13535 (DCN-v2), equation 2, as in MLPerf's DLRM-DCNv2.
    """

    def __init__(
        self,
        num_vectors: int,
        dim: int,
        *,
        layers: int,
        rank: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.joined = CatInteraction(num_vectors, dim)
        self.out_features = width = self.joined.out_features
        if min(layers, rank) < 1:
            raise ValueError(f"{layers=} and {rank=} of cross layers must be at least 1")
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for _ in range(layers):
            down, up = Linear(width, rank, bias=False), Linear(rank, width)
            for layer in (down, up):
                nn.init.normal_(layer.weight, std=math.sqrt(2 / (width + rank)), generator=generator)
            nn.init.zeros_(up.bias)
            self.down.append(down)
            self.up.append(up)

    def forward(self, dense_BD: Tensor, embeddings_BFD: Tensor) -> Tensor:
        x0_BM = x_BM = self.joined(dense_BD, embeddings_BFD)
        for down, up in zip(self.down, self.up, strict=True):
            x_BM = _plus_product(x_BM, x0_BM, up(down(x_BM)))
        return x_BM


Interaction = DotInteraction | CatInteraction | CrossInteraction
INTERACTIONS = ("dot", "cat", "dcn")
