"""Newton's method with the Hessian of random sparse combinations of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from dlrmctl.optim.convex.effective import effective_dimension
from dlrmctl.optim.convex.newton import Direction, check_memory, descend, solve_positive
from dlrmctl.optim.convex.objective import FiniteSum, RowRanks
from dlrmctl.optim.convex.solution import Record, Solution, Watch

Sketch = Literal["less", "less-uniform", "rows"]
UNEVEN = 10  # times the mean: a leverage above makes uniform sampling fail
_PROJECTIONS = 32  # random directions that leverage is measured in; its relative error is sqrt(2 / 32)
_NONZEROS = 4  # of a column of the sketch that leverage is measured with


def newton_sketch(
    objective: FiniteSum,
    start: Tensor,
    *,
    sketch: Sketch = "less",
    rows: int | None = None,
    nonzeros: int | None = None,
    averages: int = 1,
    seed: int = 0,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
    memory_bytes: int = 4 * 2**30,
    watch: Watch | None = None,
) -> Solution:
    """Minimizes by Newton's method with sketched Hessians; each iteration draws a new one.

    With m rows in the sketch and d parameters, the squared error falls by d / m in every iteration on average, and
    with q sketches averaged by (g - 1) / (g + q - 1), where g = m / (m - d).

    Args:
        objective: with few parameters and many more rows.
        start: where to begin, `[num_parameters]`.
        sketch: "less" combines `nonzeros` rows drawn by their leverage into each row of the sketch; "less-uniform"
            draws them with equal chances; "rows" takes single rows with equal chances.
        rows: m; None for 4 * num_parameters.
        nonzeros: rows of the data in a row of the sketch; None for num_parameters, as in the paper.
        averages: q.
        seed: of all draws; the same on all ranks.
        tolerance: of the gradient's Euclidean norm.
        max_iterations: stop after as many.
        memory_bytes: refuse to use more.
        watch: called after every iteration.

    Raises:
        ValueError: if the sketch has too few rows, or a Hessian takes too much memory.

    Source: Derezinski, Lacotte, Pilanci, Mahoney, arXiv:2107.07480. Here a row that is drawn twice for one row of the
    sketch has two signs, where the paper has one sign and sqrt(2).
    """
    size = objective.num_parameters
    check_memory(size, memory_bytes)
    num_rows = 4 * size if rows is None else rows
    per_row = 1 if sketch == "rows" else (size if nonzeros is None else nonzeros)
    if sketch not in ("less", "less-uniform", "rows"):
        raise ValueError(f'{sketch=} must be "less", "less-uniform" or "rows"')
    if num_rows <= size:
        raise ValueError(f"{rows=} must be above the number of parameters, {size:,}")
    if per_row < 1 or averages < 1:
        raise ValueError(f"{nonzeros=} and {averages=} must be at least 1")
    shared = torch.Generator().manual_seed(seed)
    own = torch.Generator().manual_seed(seed + 1 + objective.ranks.rank)
    record = Record(objective, watch)

    def sketched(point: Tensor, gradient: Tensor) -> Direction:
        def read() -> Iterator[Tensor]:
            return objective.root_rows(point)

        chances_N = _chances(objective, read, own, sketch, record, first=len(record.history) == 1)
        vector = torch.zeros_like(gradient)
        dimension = 0.0
        for _ in range(averages):
            draws = Draws.random(chances_N, num_rows, per_row, objective.ranks, shared, own)
            sketched_MD = objective.ranks.sum(draws.combine(read(), size))
            hessian = sketched_MD.T @ sketched_MD
            vector -= solve_positive(hessian + objective.penalty.diag(), gradient) / averages
            dimension += effective_dimension(hessian, objective.penalty, num_rows) / averages
        return Direction(vector, newton_step(dimension, num_rows, averages))

    return descend(
        objective, start, sketched, tolerance=tolerance, max_iterations=max_iterations, watch=watch, record=record
    )


def newton_step(dimension: float, rows: int, averages: int) -> float:
    """The step that makes the squared error smallest on average, and undoes the sketch's bias."""
    inflation = rows / (rows - dimension)  # of the inverse of a sketched Hessian
    return averages / (inflation * (inflation - 1 + averages))


class Draws:
    """Which of this rank's rows, with which factors, make up each row of a sketch.

    Attributes:
        rows: of the sketch.
        target: row of the sketch, for every draw.
        source: this rank's row, likewise, in increasing order.
        factor: likewise.
    """

    def __init__(self, rows: int, target: Tensor, source: Tensor, factor: Tensor) -> None:
        self.rows, self.target, self.source, self.factor = rows, target, source, factor

    @staticmethod
    def random(
        chances_N: Tensor, rows: int, per_row: int, ranks: RowRanks, shared: torch.Generator, own: torch.Generator
    ) -> Draws:
        """Draws `per_row` rows for each row of the sketch, over all ranks.

        Args:
            chances_N: of this rank's rows; over all ranks they add up to 1.
            rows: of the sketch.
            shared: generator in the same state on all ranks.
            own: generator of this rank.
        """
        masses = torch.zeros(ranks.count, dtype=torch.float64)
        masses[ranks.rank] = chances_N.sum()
        borders = ranks.sum(masses).cumsum(0)
        uniform = torch.rand(rows * per_row, generator=shared, dtype=torch.float64) * borders[-1]
        target = (torch.bucketize(uniform, borders).clamp_(max=ranks.count - 1) == ranks.rank).nonzero()[
            :, 0
        ] // per_row
        within = chances_N.cumsum(0)
        uniform = torch.rand(len(target), generator=own, dtype=torch.float64) * masses[ranks.rank]
        source = torch.bucketize(uniform, within).clamp_(max=len(chances_N) - 1)
        signs = torch.randint(0, 2, (len(target),), generator=own, dtype=torch.float64) * 2 - 1
        factor = signs / (rows * per_row * chances_N[source]).sqrt()
        order = source.argsort()
        return Draws(rows, target[order], source[order], factor[order])

    def combine(self, batches: Iterator[Tensor], size: int) -> Tensor:
        """The sketch of this rank's rows, `[rows, size]`, from all of them in batches `[any, size]`."""
        total = torch.zeros(self.rows, size, dtype=torch.float64)
        begin = 0
        for batch in batches:
            end = begin + len(batch)
            first, last = torch.searchsorted(self.source, torch.tensor([begin, end])).tolist()
            index = torch.stack([self.target[first:last], self.source[first:last] - begin])
            matrix = torch.sparse_coo_tensor(
                index, self.factor[first:last], (self.rows, len(batch)), check_invariants=False
            )
            total += matrix @ batch
            begin = end
        return total


def leverage_scores(
    read: Callable[[], Iterator[Tensor]], penalty: Tensor, ranks: RowRanks, generator: torch.Generator
) -> Tensor:
    """How much each of this rank's rows matters for the Hessian; over all ranks they add up to the effective dimension.

    They are approximate: the Hessian is replaced by that of a sparse sign sketch, and norms by those of random
    projections.

    Args:
        read: makes a new iterator over the rows of the Hessian's root, in batches.
        penalty: `[num_parameters]`.
    """
    size = len(penalty)
    folded = torch.zeros(5 * size, size, dtype=torch.float64)
    for batch in read():
        for _ in range(_NONZEROS):
            target = torch.randint(0, len(folded), (len(batch),), generator=generator)
            signs = torch.randint(0, 2, (len(batch), 1), generator=generator, dtype=torch.float64) * 2 - 1
            folded.index_add_(0, target, batch * signs * _NONZEROS**-0.5)
    folded = ranks.sum(folded)
    gram = folded.T @ folded + penalty.diag()
    gram += 1e-12 * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    factor = torch.linalg.cholesky(gram)
    directions = torch.randn(size, _PROJECTIONS, generator=generator, dtype=torch.float64) / _PROJECTIONS**0.5
    projection = torch.linalg.solve_triangular(factor.T, directions, upper=True)
    return torch.cat([(batch @ projection).square().sum(1) for batch in read()])


def _chances(
    objective: FiniteSum,
    read: Callable[[], Iterator[Tensor]],
    own: torch.Generator,
    sketch: Sketch,
    record: Record,
    *,
    first: bool,
) -> Tensor:
    """Each row's chance to be drawn; notes at first where leverage is too uneven for equal chances."""
    if sketch == "less" or first:
        scores_N = leverage_scores(read, objective.penalty, objective.ranks, own)
        total = float(objective.ranks.sum(scores_N.sum()))
        # A tenth of the draws is uniform, so that no row whose score is guessed too low has a huge factor.
        mixed_N = 0.9 * scores_N / total + 0.1 / objective.num_rows
        if sketch == "less":
            return mixed_N
        highest = torch.zeros(objective.ranks.count, dtype=torch.float64)
        highest[objective.ranks.rank] = scores_N.max()
        uneven = float(objective.ranks.sum(highest).max()) * objective.num_rows / total
        if uneven > UNEVEN:
            record.notes.append(
                f'leverage is uneven, the largest is {uneven:,.0f} times the mean: sketch "{sketch}" may take many '
                'iterations; "less" does not'
            )
    return torch.full((objective.num_local_rows,), 1 / objective.num_rows, dtype=torch.float64)
