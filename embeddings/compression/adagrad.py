"""Row-wise AdaGrad for compressed tables, continued from the state of the trained tables.

A row that many ids share gets the sum of their gradients, so it begins with the sum of their states. Otherwise the
first steps would be as long as those of a new table, and undo the fit. Dimensions: n ids, D columns.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlrmctl.embeddings.compression.rules.headed import Headed
from dlrmctl.embeddings.compression.rules.quantize import CHUNK_VALUES
from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows
from dlrmctl.embeddings.compression.rules.sharing import Codes, Hashed, LowRank, Paired


def shared_state(table: Compressed, sums: Tensor) -> dict[str, Tensor]:
    """Returns the state of each part that `trainable()` makes a parameter: float32, one number per row.

    For a rule E = f(part), an id with state s adds s times the mean square of the derivative of f.

    Args:
        table: as it is stored, or its trainable copy.
        sums: float32 [rows], the state of the trained table: sums of mean squared gradients.

    Raises:
        ValueError: if there is not one number per row, or the rule is not trainable.
    """
    if sums.shape != (table.num_rows,):
        raise ValueError(f"{sums.numel():,} sums for a table of {table.num_rows:,} rows")
    states: dict[str, Tensor] = {}
    with torch.no_grad():
        for ids in torch.arange(table.num_rows).split(max(1, CHUNK_VALUES // table.dim)):
            _add(states, "", table, ids, sums[ids])
    return states


def _add(states: dict[str, Tensor], prefix: str, table: Compressed, ids: Tensor, sums: Tensor) -> None:
    if isinstance(table, StoredRows):
        _state(states, prefix + "values", table.num_rows).index_add_(0, ids, sums)
    elif isinstance(table, LowRank):
        coordinates = table.coordinates(ids)
        share = table.basis.square().sum() / len(table.basis)
        _add(states, prefix + "coordinates.", table.coordinates, ids, sums * share)
        _state(states, prefix + "basis", len(table.basis)).add_(sums @ coordinates.square())
        _state(states, prefix + "mean", 1).add_(sums.sum())
    elif isinstance(table, Hashed):
        _add(states, prefix + "buckets.", table.buckets, table.partition(ids)[0], sums)
    elif isinstance(table, Paired):
        quotients, remainders = table.partition(ids)
        large, small = sums, sums
        if table.operation == "mult":
            large = sums * table.remainder(remainders).square().mean(1)
            small = sums * table.quotient(quotients).square().mean(1)
        _add(states, prefix + "quotient.", table.quotient, quotients, large)
        _add(states, prefix + "remainder.", table.remainder, remainders, small)
    elif isinstance(table, Codes):
        for number, codes in enumerate(table.codes.index_select(0, ids).long().unbind(1)):
            _add(states, prefix + "codebook.", table.codebook, codes + number * table.size, sums)
    elif isinstance(table, Headed):
        in_head, position = table.place(ids)
        _add(states, prefix + "head.", table.head, position[in_head], sums[in_head])
        _add(states, prefix + "tail.", table.tail, position[~in_head], sums[~in_head])
    else:
        raise ValueError(f"rule {table.rule!r} is not trainable")


def _state(states: dict[str, Tensor], name: str, rows: int) -> Tensor:
    if name not in states:
        states[name] = torch.zeros(rows)
    return states[name]


@dataclass
class Trained:
    """A parameter with its state, one number per row (one for a vector), and its learning rate.

    Attributes:
        moved: called after each step with the rows that had a sparse gradient.
    """

    parameter: nn.Parameter
    state: Tensor
    lr: float
    moved: Callable[[Tensor], None] | None = None


class RowwiseAdagrad:
    """s += mean over columns of g^2; w -= lr g / (sqrt(s) + eps); rows without a gradient do not move.

    Args:
        parameters: with their states, which change.
        eps: added to the root.
    """

    def __init__(self, parameters: Iterable[Trained], *, eps: float = 1e-8) -> None:
        self.parameters, self.eps = list(parameters), eps

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """Takes a step at `factor` times the learning rates, and forgets the gradients."""
        touched: list[tuple[Trained, Tensor]] = []
        for trained in self.parameters:
            weight, grad = trained.parameter, trained.parameter.grad
            if grad is None:
                continue
            weight.grad = None
            if grad.is_sparse:
                grad = grad.coalesce()
                rows, values = grad.indices()[0], grad.values()
                state = trained.state.index_select(0, rows).add_(values.square().mean(1))
                trained.state.index_copy_(0, rows, state)
                step = values / (state.sqrt() + self.eps)[:, None]
                weight.index_add_(0, rows, step, alpha=-factor * trained.lr)
                touched.append((trained, rows))
            else:
                grad, matrix = grad.view(len(trained.state), -1), weight.view(len(trained.state), -1)
                trained.state += grad.square().mean(1)
                matrix -= factor * trained.lr * grad / (trained.state.sqrt() + self.eps)[:, None]
        for trained, rows in touched:
            if trained.moved is not None:
                trained.moved(rows)
