"""The rows of a trained table, read a piece at a time, and the importance of each row.

With equal importance, the same code costs several times the loss that it does when rows that are looked up often matter
more. The state of row-wise AdaGrad measures that as well as counts do, and every checkpoint has it.
Dimensions: N rows, D columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.isometry.secants import Progress
from dlrmctl.embeddings.compression.rules.quantize import CHUNK_VALUES
from dlrmctl.embeddings.errors import NonFiniteValueError

KINDS = ("adagrad", "counts", "uniform")
# A row that was never looked up counts as a tenth of one that was, so that it keeps a sensible value.
FLOOR = 0.1


def _silent(phase: str, done: int, total: int) -> None:
    pass


class TableRows:
    """A table, or the rows of it in `index`, with an importance for each row.

    Args:
        weight: [rows of the table, D], of a floating dtype; may be memory-mapped.
        importance: float32 [rows of the table], above 0; see `importance`.
        name: name of the table, for messages.
        index: int64 [N], the rows of the table that are used; default: all.
        progress: called on every pass over the rows.

    Raises:
        ValueError: if the shapes do not fit or the table is empty.
    """

    def __init__(
        self,
        weight: Tensor,
        importance: Tensor,
        *,
        name: str = "table",
        index: Tensor | None = None,
        progress: Progress = _silent,
    ) -> None:
        if weight.dim() != 2 or 0 in weight.shape:
            raise ValueError(f"table {name}: shape {tuple(weight.shape)} must be [rows, columns], at least one of each")
        if importance.shape != weight.shape[:1]:
            raise ValueError(f"table {name}: {importance.numel():,} importances for {weight.shape[0]:,} rows")
        self.weight, self.weights = weight, importance
        self.name, self.index, self.progress = name, index, progress
        self.num_rows = weight.shape[0] if index is None else index.numel()
        self.dim = weight.shape[1]
        self._largest: float | None = None

    @property
    def chunk_rows(self) -> int:
        """The number of rows that are read at once."""
        return max(1, CHUNK_VALUES // self.dim)

    def chunks(self, phase: str) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yields all rows in order: their positions, float32 [n, D], and importance float32 [n]."""
        for start in range(0, self.num_rows, self.chunk_rows):
            part = slice(start, min(start + self.chunk_rows, self.num_rows))
            if self.index is None:
                yield part, self.weight[part].float(), self.weights[part]
            else:
                yield part, *self.take(torch.arange(part.start, part.stop))
            self.progress(phase, part.stop, self.num_rows)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns float32 [n, D] and importance [n] of these rows (int64 [n], >= 0); both are 0 past the end."""
        inside = rows < self.num_rows
        all_inside = bool(inside.all())
        rows = rows if all_inside else rows.clamp(max=self.num_rows - 1)
        if self.index is not None:
            rows = self.index[rows]
        values, weights = self.weight.index_select(0, rows).float(), self.weights.index_select(0, rows)
        if not all_inside:
            values, weights = values * inside[:, None], weights * inside
        return values, weights

    def subset(self, index: Tensor) -> "TableRows":
        """Returns the rows at these positions (int64) as a table of their own."""
        index = index if self.index is None else self.index[index]
        return TableRows(self.weight, self.weights, name=self.name, index=index, progress=self.progress)

    def largest(self) -> float:
        """The largest absolute value, computed once.

        Raises:
            NonFiniteValueError: naming the first row that is not finite.
        """
        if self._largest is not None:
            return self._largest
        largest = 0.0
        for part, values, _ in self.chunks("check"):
            low, high = torch.aminmax(values)
            if not bool(torch.isfinite(low) & torch.isfinite(high)):  # aminmax propagates NaN
                row = part.start + int((~torch.isfinite(values)).any(1).nonzero()[0])
                row = row if self.index is None else int(self.index[row])
                raise NonFiniteValueError(
                    f"table {self.name}: row {row:,} holds a value that is not finite; was the training diverging?"
                )
            largest = max(largest, -float(low), float(high))
        self._largest = largest
        return largest


@dataclass(frozen=True)
class Importance:
    """The importance of the rows of one table.

    Attributes:
        weights: float32 [rows], above 0, mean 1.
        scale: a weight of 1 in the source's unit; makes weighted errors comparable between tables.
        kind: "adagrad", "counts" or "uniform".
    """

    weights: Tensor
    scale: float
    kind: str


def importance(kind: str, rows: int, source: Tensor | None = None, *, name: str = "table") -> Importance:
    """Computes the importance of the rows of a table.

    Args:
        kind: "adagrad" (sums of squared gradients), "counts" (times a row was looked up) or "uniform".
        rows: rows of the table.
        source: [rows], the sums or counts, >= 0; None for "uniform".

    Returns:
        Weights raised to at least a tenth of one count, or a tenth of the median of the sums above 0, and then divided
        by their mean. If all are 0, all are equal.

    Raises:
        ValueError: for an unknown kind, or sums that do not fit, are negative, or are not finite.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind=} must be one of {', '.join(KINDS)}")
    if kind == "uniform":
        return Importance(torch.ones(rows), 1.0, kind)
    if source is None or source.shape != (rows,):
        found = "none" if source is None else f"shape {tuple(source.shape)}"
        raise ValueError(f"table {name}: {kind} must have shape ({rows},), found {found}")
    raw = source.float()
    wrong = ~torch.isfinite(raw) | (raw < 0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"table {name}: {kind} of row {row:,} is {float(raw[row])}, must be finite and at least 0")
    above = raw[raw > 0]
    if above.numel() == 0:
        return Importance(torch.ones(rows), 1.0, kind)
    floor = FLOOR * (1.0 if kind == "counts" else float(above.median()))
    raised = raw.clamp(min=floor)
    mean = float(raised.mean(dtype=torch.float64))
    return Importance(raised / mean, mean, kind)
