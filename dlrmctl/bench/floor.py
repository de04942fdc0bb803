"""The floor of a training step: the bare operations that no implementation of it can leave out.

Dimensions: B examples, F vectors of D columns, N = F + 1, R rows of all tables stacked.
"""

import torch
from torch import Tensor

from dlrmctl.bench.timing import Laps
from models import DenseNetwork
from models.interaction import DotInteraction

PARTS = ("products", "interaction", "gather", "scatter")


class Floor:
    """Bare matrix products + the interaction's batched products + a row read and a row written per id.

    The floor of a step is the time of these, run alone at the step's shapes and precision, alternated with the step:
    what the machine does at its best with the arithmetic and the memory traffic that the step must have.

    - products: of every linear layer `x W^T` forward, and backward `g^T x` and, but for the first layer, `g W`;
    - interaction: with "dot", `V V^T` forward and one product of its size with V backward; with "cat", nothing;
    - gather and scatter: one row of D float32 for every id of a real batch, from full tables and back into them,
      whatever tables the variant has.

    Biases, activations, loss, the check, the optimizers' arithmetic, reading the batch and communication count nothing.

    Args:
        network: whose layers set the shapes.
        rows_BF: of the stacked tables, for every example and feature.
        table_RD: the stacked tables; rows are written back as they were read.
        dtype: of the operands of products, bfloat16 under autocast.
    """

    def __init__(self, network: DenseNetwork, rows_BF: Tensor, table_RD: Tensor, dtype: torch.dtype) -> None:
        self.table_RD = table_RD
        self.rows = rows_BF.flatten()
        self.taken_ND = table_RD[self.rows]
        batch, device = len(rows_BF), table_RD.device
        self.operands: list[tuple[Tensor, Tensor, Tensor]] = []
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                shapes = (batch, layer.in_features), layer.weight.shape, (batch, layer.out_features)
                x, weight, grad = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
                self.operands.append((x, weight, grad))
        self.vectors_BND: Tensor | None = None
        self.flop = _flop(self.operands)
        if isinstance(network.interaction, DotInteraction):
            N = network.num_features + 1
            self.vectors_BND = torch.randn(batch, N, table_RD.shape[1], device=device).to(dtype)
            self.dots_BNN = torch.randn(batch, N, N, device=device).to(dtype)

    def __call__(self, laps: Laps) -> None:
        """Runs it once; `laps` hears the parts."""
        laps.start()
        for i, (x, weight, grad) in enumerate(self.operands):
            x @ weight.T
            grad.T @ x
            if i > 0:  # nobody needs the gradient of the dense features
                grad @ weight
        laps.end("products")
        if self.vectors_BND is not None:
            torch.bmm(self.vectors_BND, self.vectors_BND.transpose(1, 2))
            torch.bmm(self.dots_BNN, self.vectors_BND)
        laps.end("interaction")
        torch.index_select(self.table_RD, 0, self.rows, out=self.taken_ND)
        laps.end("gather")
        self.table_RD.index_copy_(0, self.rows, self.taken_ND)
        laps.end("scatter")


def _flop(operands: list[tuple[Tensor, Tensor, Tensor]]) -> int:
    """Multiplications and additions of the linear layers."""
    sizes = [2 * len(x) * weight.numel() for x, weight, _ in operands]
    return 3 * sum(sizes) - sizes[0]
