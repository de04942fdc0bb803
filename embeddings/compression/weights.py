"""How much each row of a table matters.

Rows that are looked up often deserve the bytes: with equal importance the same code costs several times the loss. The
state of row-wise AdaGrad is as good a measure as counts, and every checkpoint carries it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("adagrad", "counts", "uniform")
# A row that was never looked up counts as a tenth of one that was, so that it keeps a sensible value.
FLOOR = 0.1


@dataclass(frozen=True)
class Importance:
    """How much the rows of one table matter.

    Attributes:
        weights: float32 [rows], above 0, mean 1.
        scale: what a weight of 1 is in the source's unit; makes weighted errors comparable between tables.
        kind: "adagrad", "counts" or "uniform".
    """

    weights: Tensor
    scale: float
    kind: str


def importance(kind: str, rows: int, source: Tensor | None = None, *, name: str = "table") -> Importance:
    """Importance of the rows of a table.

    Args:
        kind: "adagrad" (sums of squared gradients), "counts" (times a row was looked up) or "uniform".
        rows: of the table.
        source: [rows], the sums or counts, >= 0; None for "uniform".

    Returns:
        Weights raised to a floor of a tenth of one count, or of a tenth of the middle of the sums above 0, and then
        divided by their mean. If all are 0, all are equal.

    Raises:
        ValueError: for another kind, or sums that do not fit, are negative, or are not finite.
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
