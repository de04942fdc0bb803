"""Fits of learned codes: codebooks and the codes of every row.

Dimensions: N rows, D columns, L codes per row, K rows in each codebook; W columns of a codebook, D for "sum" and D / L
for "concat".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from embeddings.compression.kmeans import fit_centers, nearest
from embeddings.compression.sample import weighted_sample
from embeddings.compression.shared import code_dtype
from embeddings.compression.source import TableRows

_SAMPLE_ROWS = 65_536
# Keeps the equations of codebooks solvable: moving one by a constant and another back changes no sum.
_RIDGE = 1e-6
# Rows of all codebooks of a sum: their equations are a matrix of this height, here of 128 MB.
_MOST_EQUATIONS = 4096
_SAMPLE_SWEEPS = 5


@dataclass(frozen=True)
class FittedCodes:
    """Codes and codebooks.

    Attributes:
        codes: uint8 or int16 [N, L].
        codebooks: float32 [L, K, W].
        losses: weighted squared error each time all rows had been coded; but for rounding it never rises.
    """

    codes: Tensor
    codebooks: Tensor
    losses: list[float]


def fit_codes(
    table: TableRows,
    num_codes: int,
    size: int = 256,
    operation: str = "sum",
    *,
    seed: int = 0,
    sample_rows: int = _SAMPLE_ROWS,
    passes: int = 2,
) -> FittedCodes:
    """Learns codebooks on a weighted sample, then codes every row and refits the codebooks to all of them.

    Coordinate descent in the weighted squared error: codes of a row one at a time given the codebooks, then all
    codebooks at once, by least squares, given the codes.

    Args:
        num_codes: L.
        size: K; fewer where the table has fewer rows.
        operation: "sum" (residual quantization) or "concat" (product quantization).
        sample_rows: of the sample.
        passes: over the whole table; each codes all rows and refits.

    Raises:
        ValueError: if "concat" cannot divide the columns by L, or a number is out of bounds.
    """
    if num_codes < 1 or passes < 1:
        raise ValueError(f"{num_codes=} and {passes=} must be at least 1")
    if operation == "concat" and table.dim % num_codes:
        raise ValueError(f"table {table.name}: {table.dim} columns cannot be divided into {num_codes} equal parts")
    size = min(size, table.num_rows)
    dtype = code_dtype(size)
    if operation == "sum" and num_codes > 1 and num_codes * size > _MOST_EQUATIONS:
        raise ValueError(f"{num_codes} codebooks of {size} rows are more than {_MOST_EQUATIONS} rows; use smaller ones")
    generator = torch.Generator().manual_seed(seed)
    sample = TableRows(*weighted_sample(table, sample_rows, generator), name=table.name)
    model = _Codebooks.start(sample, num_codes, size, operation, generator)
    if operation == "sum" and num_codes > 1:
        _alternate(model, sample, torch.empty(sample.num_rows, num_codes, dtype=dtype), _SAMPLE_SWEEPS)
    del sample
    codes = torch.empty(table.num_rows, num_codes, dtype=dtype)
    losses = _alternate(model, table, codes, passes)
    return FittedCodes(codes, model.codebooks, losses)


def _alternate(model: "_Codebooks", table: TableRows, codes: Tensor, passes: int) -> list[float]:
    """Codes all rows (into `codes`) and refits the codebooks, several times; the loss after each coding."""
    losses = []
    for number in range(passes):
        sums = _Sums(model)
        loss = torch.zeros((), dtype=torch.float64)
        for part, values, weights in table.chunks(f"codes, pass {number + 1} of {passes}"):
            chosen = model.encode(values, None if number == 0 else codes[part].long())
            residual = values - model.decode(chosen)
            loss += (residual.square().sum(1) * weights).sum(dtype=torch.float64)
            sums.add(chosen, residual, weights)
            codes[part] = chosen.to(codes.dtype)
        losses.append(float(loss))
        model.move(sums)
    return losses


class _Codebooks:
    def __init__(self, codebooks: Tensor, operation: str) -> None:
        self.codebooks, self.operation = codebooks, operation
        self.num_codes, self.size, self.width = codebooks.shape

    @classmethod
    def start(
        cls, sample: TableRows, num_codes: int, size: int, operation: str, generator: torch.Generator
    ) -> "_Codebooks":
        """Codebook after codebook on what those before leave over."""
        width = sample.dim // num_codes if operation == "concat" else sample.dim
        codebooks = torch.zeros(num_codes, size, width)
        size = min(size, sample.num_rows)
        left = sample.weight.clone()
        for index in range(num_codes):
            columns = slice(index * width, (index + 1) * width) if operation == "concat" else slice(None)
            centers = fit_centers(left[:, columns].contiguous(), sample.weights, size, generator)
            codebooks[index, :size] = centers
            left[:, columns] -= centers[nearest(left[:, columns].contiguous(), centers)]
        return cls(codebooks, operation)

    def encode(self, values: Tensor, codes: Tensor | None) -> Tensor:
        """Codes [n, L]: greedily one after the other, or better than those given, one at a time."""
        if self.operation == "concat":
            parts = values.view(-1, self.num_codes, self.width)
            found = [nearest(parts[:, i].contiguous(), self.codebooks[i]) for i in range(self.num_codes)]
            return torch.stack(found, 1)
        if codes is None:
            left = values.clone()
            codes = torch.empty(len(values), self.num_codes, dtype=torch.int64)
            for index, codebook in enumerate(self.codebooks):
                codes[:, index] = nearest(left, codebook)
                left -= codebook[codes[:, index]]
        else:
            left = values - self.decode(codes)
        for index, codebook in enumerate(self.codebooks):
            if self.num_codes > 1:
                left += codebook[codes[:, index]]
                codes[:, index] = nearest(left, codebook)
                left -= codebook[codes[:, index]]
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        rows = [codebook.index_select(0, codes[:, i]) for i, codebook in enumerate(self.codebooks)]
        return torch.cat(rows, 1) if self.operation == "concat" else torch.stack(rows).sum(0)

    def move(self, sums: "_Sums") -> None:
        """To the least-squares codebooks for the codes that `sums` saw."""
        if sums.together is None:
            step = sums.residual / sums.totals.clamp(min=1e-30)[:, None]
        else:
            sums.together.diagonal().add_(sums.totals + _RIDGE * float(sums.totals.mean()))
            root = torch.linalg.cholesky(sums.together, out=sums.together)  # in place: 32 MiB for 2,048 rows
            step = torch.cholesky_solve(sums.residual, root)
        self.codebooks = (self.codebooks.double() + step.view_as(self.codebooks)).float()


class _Sums:
    """What least squares needs: weights of codes and of pairs of them, and what the rows of each code still lack."""

    def __init__(self, model: _Codebooks) -> None:
        self.model = model
        height = model.num_codes * model.size
        interact = model.operation == "sum" and model.num_codes > 1
        self.together = torch.zeros(height, height, dtype=torch.float64) if interact else None
        self.totals = torch.zeros(height, dtype=torch.float64)
        self.residual = torch.zeros(height, model.width, dtype=torch.float64)

    def add(self, codes: Tensor, residual: Tensor, weights: Tensor) -> None:
        size, width, weights = self.model.size, self.model.width, weights.double()
        lacking = residual.double() * weights[:, None]
        for i in range(self.model.num_codes):
            columns = slice(i * width, (i + 1) * width) if self.model.operation == "concat" else slice(None)
            of_code = slice(i * size, (i + 1) * size)
            self.residual[of_code].index_add_(0, codes[:, i], lacking[:, columns])
            self.totals[of_code].index_add_(0, codes[:, i], weights)
            if self.together is None:
                continue
            for j in range(i):
                pairs = torch.zeros(size * size, dtype=torch.float64)
                pairs.index_add_(0, codes[:, i] * size + codes[:, j], weights)
                self.together[of_code, j * size : (j + 1) * size] += pairs.view(size, size)
                self.together[j * size : (j + 1) * size, of_code] += pairs.view(size, size).T
