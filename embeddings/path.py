"""Path-based composition: a row of one table goes through a small network that a row of another table holds.

The networks are rows of an ordinary table, so they are looked up, sharded and trained like any other row. Each is a
residual MLP of one hidden layer without biases,

    f(x) = x + U relu(V x),   V: D -> H, U: H -> D,

so that ids which share x, or share the network, start related and can move apart. The paper's networks have no residual
connection; with few hidden units that would squeeze every vector through H dimensions.

Dimensions: N vectors, D columns, H hidden units.

Source: Shi et al., arXiv:1909.02107, section 4.1, "path-based compositional embeddings".
"""

import math

import torch
from torch import Tensor

HIDDEN = 8
# What the hidden layer adds to the variance of x at the start, as a share of it.
PATH_NOISE = 0.5


def map_width(dim: int) -> int:
    """Columns of the table that holds the networks: V and U, row by row of H."""
    return 2 * HIDDEN * dim


def path_half_width(dim: int) -> float:
    """The bound w of weights U(-w, w) with which f(x) has variance (1 + PATH_NOISE) Var(x), for x of mean 0.

    With v = w^2 / 3 the variance of a weight: E[(V x)^2] = D v Var(x), relu halves it, and U sums H of them with v
    again, so the hidden layer adds H D v^2 / 2 times Var(x).
    """
    return math.sqrt(3 * math.sqrt(2 * PATH_NOISE / (HIDDEN * dim)))


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
    return x_ND + torch.bmm(hidden_NH.unsqueeze(1), up_NHD).squeeze(1)
