"""Path-based composition: a row of one table goes through a small network whose weights are a row of another table.

The networks are rows of an ordinary table, so they are looked up, sharded and trained like any other row. Each is a
residual MLP of one hidden layer without biases,

    f(x) = x + U relu(V x / sqrt(D)) / sqrt(H),   V: D -> H, U: H -> D,

so that ids which share x, or share the network, start related and can move apart. The paper's networks have no residual
connection, so few hidden units would squeeze every vector through H dimensions. Dividing by the roots keeps V and U at
scale one, where a step of row-wise AdaGrad, about the learning rate in every column, changes f as little as it changes
a product.

Dimensions: D columns, H hidden units.

Source: Shi et al., arXiv:1909.02107, section 4.1, "path-based compositional embeddings".
"""

import math

import torch
from torch import Tensor

HIDDEN = 8
# The variance that the hidden layer adds at the start, as a share of that of x.
PATH_NOISE = 0.5
# The bound w of weights U(-w, w) that do so: with v = w^2 / 3 the variance of a weight, V x / sqrt(D) has variance
# v Var(x), relu halves its mean square, and U / sqrt(H) multiplies by v again: v^2 / 2 times Var(x), for x of mean 0.
PATH_HALF_WIDTH = math.sqrt(3 * math.sqrt(2 * PATH_NOISE))


def map_width(dim: int) -> int:
    """Returns the number of columns of the networks' table: V and U, row by row of H."""
    return 2 * HIDDEN * dim


def follow_path(x: Tensor, maps: Tensor) -> Tensor:
    """f(x) for each vector and its own network.

    Args:
        x: [..., D].
        maps: [..., 2 H D].

    Returns:
        [..., D].
    """
    down_HD, up_HD = _halves(maps)
    # Products and sums: bmm takes three times as long on matrices this small.
    hidden_H = (down_HD * x.unsqueeze(-2)).sum(-1).relu()
    return torch.add(x, (hidden_H.unsqueeze(-1) * up_HD).sum(-2), alpha=_scale(x))


def write_path_gradients(x: Tensor, maps: Tensor, grad: Tensor, *, x_grad: Tensor, maps_grad: Tensor) -> None:
    """Writes the gradients of `follow_path` in place, where autograd would make several copies of them.

    Args:
        x, maps: the inputs of `follow_path`.
        grad: gradient of its result.
        x_grad, maps_grad: written here, of the shapes of `x` and `maps`.
    """
    down_HD, up_HD = _halves(maps)
    down_grad_HD, up_grad_HD = _halves(maps_grad)
    scale = _scale(x)
    before_H = (down_HD * x.unsqueeze(-2)).sum(-1)
    before_grad_H = (up_HD * grad.unsqueeze(-2)).sum(-1).mul_(scale).masked_fill_(before_H <= 0, 0)
    torch.mul(before_H.relu_().mul_(scale).unsqueeze(-1), grad.unsqueeze(-2), out=up_grad_HD)
    torch.mul(before_grad_H.unsqueeze(-1), x.unsqueeze(-2), out=down_grad_HD)
    torch.add(grad, (before_grad_H.unsqueeze(-1) * down_HD).sum(-2), out=x_grad)


def _halves(maps: Tensor) -> tuple[Tensor, Tensor]:
    """V and U, each [..., H, D]."""
    down_HD, up_HD = maps.unflatten(-1, (2, HIDDEN, -1)).unbind(-3)
    return down_HD, up_HD


def _scale(x: Tensor) -> float:
    return 1 / math.sqrt(HIDDEN * x.shape[-1])  # both roots at once: scaling commutes with relu
