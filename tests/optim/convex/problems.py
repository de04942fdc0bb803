"""Small logistic regressions that the tests of all solvers share."""

import torch
from torch import Tensor

from dlrmctl.optim.convex.objective import LogisticRegression, RowRanks
from dlrmctl.optim.convex.rows import DenseRows, LabelledRows, RowsInMemory, SparseRows


def labels_of(logits: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.rand(len(logits), generator=generator, dtype=torch.float64) < logits.sigmoid()).double()


def dense_examples(num_rows: int, num_features: int, *, spread: float = 1.0, seed: int = 0) -> LabelledRows:
    """Gaussian features with scales from 1 down to `spread`, and labels of a linear teacher."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, torch.tensor(spread).log10().item(), num_features, dtype=torch.float64)
    matrix = torch.randn(num_rows, num_features, generator=generator, dtype=torch.float64) * scales
    teacher = torch.randn(num_features, generator=generator, dtype=torch.float64)
    logits = matrix @ teacher * (2.0 / teacher.norm()) - 1.0
    return LabelledRows(DenseRows(matrix), labels_of(logits, generator))


def one_hot_examples(num_rows: int, tables: int, height: int, *, seed: int = 0) -> LabelledRows:
    """One id of each table a row, small ids often, as categories are."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_rows, tables, generator=generator, dtype=torch.float64)
    ids = (uniform**3 * height).long() + torch.arange(tables) * height
    teacher = torch.randn(tables * height, generator=generator, dtype=torch.float64)
    logits = teacher[ids].sum(1) / tables**0.5 - 1.0
    return LabelledRows(SparseRows.one_hot(ids.int(), tables * height), labels_of(logits, generator))


def regression(
    examples: LabelledRows, l2: float, *, batch_rows: int = 1000, ranks: RowRanks | None = None
) -> LogisticRegression:
    return LogisticRegression(RowsInMemory(examples, batch_rows), l2=l2, ranks=ranks)
