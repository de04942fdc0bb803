"""Path-based composition: a row of one table goes through a small network that a row of another table holds.

The networks are rows of an ordinary table, so they are looked up, sharded and trained like any other row. Each is a
residual MLP of one hidden layer without biases,

    f(x) = x + U relu(V x / sqrt(D)) / sqrt(H),   V: D -> H, U: H -> D,

so that ids which share x, or share the network, start related and can move apart. The paper's networks have no residual
connection; with few hidden units that would squeeze every vector through H dimensions. Dividing by the roots keeps V
and U at scale one, where a step of row-wise AdaGrad, about the learning rate in every column, is as small for f as it
is for the factors of a product.

Dimensions: N vectors, D columns, H hidden units.

Source: Shi et al., arXiv:1909.02107, section 4.1, "path-based compositional embeddings".
"""

import math

import torch
from torch import Tensor

HIDDEN = 8
# What the hidden layer adds to the variance of x at the start, as a share of it.
PATH_NOISE = 0.5
# The bound w of weights U(-w, w) that do so: with v = w^2 / 3 the variance of a weight, V x / sqrt(D) has variance
# v Var(x), relu halves its mean square, and U / sqrt(H) multiplies by v again: v^2 / 2 times Var(x), for x of mean 0.
PATH_HALF_WIDTH = math.sqrt(3 * math.sqrt(2 * PATH_NOISE))


def map_width(dim: int) -> int:
    """Columns of the table that holds the networks: V and U, row by row of H."""
    return 2 * HIDDEN * dim


def follow_path(x_ND: Tensor, maps: Tensor) -> Tensor:
    """f(x) for each vector and its own network.

    Args:
        x_ND: [N, D].
        maps: [N, 2 H D].

    Returns:
        [N, D].
    """
    down_NHD, up_NHD = maps.view(len(x_ND), 2, HIDDEN, x_ND.shape[1]).unbind(1)
    hidden_NH = torch.bmm(down_NHD, x_ND.unsqueeze(2)).squeeze(2).relu()
    scale = 1 / math.sqrt(HIDDEN * x_ND.shape[1])  # both roots at once: relu commutes with them
    return torch.baddbmm(x_ND.unsqueeze(1), hidden_NH.unsqueeze(1), up_NHD, alpha=scale).squeeze(1)
