"""Fits learned codes: the codebooks of a table and the codes of every row, by weighted k-means on a sample of its rows.

Dimensions: N rows, D columns, L codes per row, K rows (centers) of each codebook; W columns of a codebook, D for "sum"
and D / L for "concat".
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.fits.cores import map_in_order
from dlrmctl.embeddings.compression.fits.kmeans import fit_centers, means, nearest
from dlrmctl.embeddings.compression.fits.sampling import weighted_sample
from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.compression.rules.sharing import code_dtype

# 64 rows for each of 256 centers; twice as many take half as long again and lower the error by 1 %.
SAMPLE_ROWS = 16_384
# Keeps the equations solvable: a constant moved from one codebook to another changes no sum.
_RIDGE = 1e-6
# Rows of all codebooks of a sum, the height of the matrix of their equations; 128 MB at this limit.
_MOST_EQUATIONS = 4096
_SAMPLE_SWEEPS = 5
_LLOYD_STEPS = 25
_LEVEL_STEPS = 15  # for each codebook of a sum, which is improved together with the others afterwards


@dataclass(frozen=True)
class FittedCodes:
    """Codes and codebooks.

    Attributes:
        codes: uint8 or int16 [N, L].
        codebooks: float32 [L, K, W].
        losses: weighted squared error after each coding of all rows; it never increases, except by rounding.
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
    sample_rows: int = SAMPLE_ROWS,
    passes: int = 2,
) -> FittedCodes:
    """Learns codebooks on a weighted sample, then codes all rows and refits the codebooks to them.

    Coordinate descent in the weighted squared error: on the sample one codebook at a time, its codes and then its rows;
    on all rows the codes of a row one at a time, then all codebooks at once, by least squares.

    Args:
        num_codes: L.
        size: K; fewer where the table has fewer rows.
        operation: "sum" (residual quantization) or "concat" (product quantization).
        sample_rows: rows of the sample.
        passes: passes over the whole table; each codes all rows and refits.

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
    model = Codebooks.start(sample, num_codes, size, operation, generator)
    if operation == "sum" and num_codes > 1:
        model.improve(sample, _SAMPLE_SWEEPS)
    del sample
    codes = torch.empty(table.num_rows, num_codes, dtype=dtype)
    losses = alternate(model, table, codes, passes)
    return FittedCodes(codes, model.codebooks, losses)


def coding_error(model: "Codebooks", table: TableRows) -> float:
    """Returns the weighted squared error of a table's rows coded with given codebooks."""
    error = 0.0
    for _, values, weights in table.chunks("codes"):
        residual = values - model.decode(model.encode(values, None))
        error += float((residual.square().sum(1) * weights).sum(dtype=torch.float64))
    return error


def alternate(model: "Codebooks", table: TableRows, codes: Tensor, passes: int) -> list[float]:
    """Codes all rows (into `codes`) and refits the codebooks, several times.

    Several pieces of the table are coded at a time.

    Returns:
        The weighted squared error after each coding.
    """
    losses: list[float] = []

    def encode(piece: tuple[slice, Tensor, Tensor]) -> tuple[slice, Tensor, Tensor, Tensor]:
        part, values, weights = piece
        chosen = model.encode(values, None if not losses else codes[part].long())
        return part, chosen, values - model.decode(chosen), weights

    for number in range(passes):
        sums = _Sums(model)
        loss = torch.zeros((), dtype=torch.float64)
        for part, chosen, residual, weights in map_in_order(
            encode, table.chunks(f"codes, pass {number + 1} of {passes}")
        ):
            loss += (residual.square().sum(1) * weights).sum(dtype=torch.float64)
            sums.add(chosen, residual, weights)
            codes[part] = chosen.to(codes.dtype)
        losses.append(float(loss))
        model.move(sums)
        del sums  # before the next ones take as much memory again
    return losses


class Codebooks:
    """The state of a fit: codebooks, float32 [L, K, W]."""

    def __init__(self, codebooks: Tensor, operation: str) -> None:
        self.codebooks, self.operation = codebooks, operation
        self.num_codes, self.size, self.width = codebooks.shape

    @classmethod
    def start(
        cls, sample: TableRows, num_codes: int, size: int, operation: str, generator: torch.Generator
    ) -> "Codebooks":
        """Fits each codebook to the residuals of those before it."""
        width = sample.dim // num_codes if operation == "concat" else sample.dim
        codebooks = torch.zeros(num_codes, size, width)
        size = min(size, sample.num_rows)
        left = sample.weight.clone()
        steps = _LEVEL_STEPS if operation == "sum" and num_codes > 1 else _LLOYD_STEPS
        for index in range(num_codes):
            columns = slice(index * width, (index + 1) * width) if operation == "concat" else slice(None)
            centers = fit_centers(left[:, columns].contiguous(), sample.weights, size, generator, steps=steps)
            codebooks[index, :size] = centers
            left[:, columns] -= centers[nearest(left[:, columns].contiguous(), centers)]
        return cls(codebooks, operation)

    def improve(self, sample: TableRows, sweeps: int) -> float:
        """Recodes the rows by each codebook of a sum in turn, and moves its rows to the means of what they stand for.

        Returns:
            The weighted squared error.
        """
        left, codes = sample.weight.clone(), []
        for codebook in self.codebooks:
            codes.append(nearest(left, codebook))
            left -= codebook[codes[-1]]
        for index in list(range(self.num_codes)) * sweeps:
            codebook = self.codebooks[index]
            left += codebook[codes[index]]
            codes[index] = nearest(left, codebook)
            codebook.copy_(means(left, sample.weights, codes[index], codebook)[0])
            left -= codebook[codes[index]]
        return float((left.square().sum(1) * sample.weights).sum(dtype=torch.float64))

    def encode(self, values: Tensor, codes: Tensor | None) -> Tensor:
        """Returns codes [n, L]: chosen greedily one after the other, then improved one at a time.

        Args:
            codes: codes to improve instead of choosing them; parts of a concatenation, and single codes, need none.
        """
        if self.operation == "concat" or self.num_codes == 1:
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
            left += codebook[codes[:, index]]
            codes[:, index] = nearest(left, codebook)
            left -= codebook[codes[:, index]]
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        rows = (codebook.index_select(0, codes[:, i]) for i, codebook in enumerate(self.codebooks))
        return torch.cat(list(rows), 1) if self.operation == "concat" else reduce(Tensor.add_, rows)

    def move(self, sums: "_Sums") -> None:
        """Sets the codebooks to the least-squares solution for the codes in `sums`."""
        if sums.together is None:
            step = sums.residual / sums.totals.clamp(min=1e-30)[:, None]
        else:
            sums.together.diagonal().add_(sums.totals + _RIDGE * float(sums.totals.mean()))
            root = torch.linalg.cholesky(sums.together, out=sums.together)  # in place: 32 MiB for 2,048 rows
            step = torch.cholesky_solve(sums.residual, root)
        self.codebooks = (self.codebooks.double() + step.view_as(self.codebooks)).float()


class _Sums:
    """Sums for least squares: weights of codes and of pairs of codes, and the residual of the rows of each code."""

    def __init__(self, model: Codebooks) -> None:
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
