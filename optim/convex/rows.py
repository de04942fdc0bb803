"""Rows of features, sparse or dense, and where an objective reads them from: memory or any stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """A matrix of examples in rows and features in columns; all products are float64."""

    @property
    def num_rows(self) -> int: ...

    @property
    def num_features(self) -> int: ...

    def problem(self) -> str | None:
        """What is wrong with the entries, for an error message; None if nothing is."""
        ...

    def times(self, columns_DK: Tensor) -> Tensor:
        """The product with a matrix `[num_features, K]`, as `[num_rows, K]`."""
        ...

    def transposed_times(self, values_N: Tensor) -> Tensor:
        """The product of the transposed matrix with a vector `[num_rows]`, as `[num_features]`."""
        ...

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Rows:
        """The same rows with a function of every entry, one that keeps 0 and 1."""
        ...

    def squared_norms(self) -> Tensor:
        """The sum of the squared entries of every row, `[num_rows]`."""
        ...

    def gram(self, weights_N: Tensor) -> Tensor:
        """`X^T diag(weights) X`, `[num_features, num_features]`."""
        ...

    def dense(self) -> Tensor:
        """The matrix itself, `[num_rows, num_features]`."""
        ...

    def narrow(self, start: int, stop: int) -> Rows:
        """Rows `start` up to and without `stop`."""
        ...

    def take(self, index_M: Tensor) -> Rows:
        """The named rows, in the order named."""
        ...


@dataclass(frozen=True)
class DenseRows:
    """Rows as a plain matrix `[num_rows, num_features]`, float64."""

    matrix_ND: Tensor

    @property
    def num_rows(self) -> int:
        return self.matrix_ND.shape[0]

    @property
    def num_features(self) -> int:
        return self.matrix_ND.shape[1]

    def problem(self) -> str | None:
        return None if self.matrix_ND.isfinite().all() else "features must be finite"

    def times(self, columns_DK: Tensor) -> Tensor:
        return self.matrix_ND @ columns_DK

    def transposed_times(self, values_N: Tensor) -> Tensor:
        return self.matrix_ND.T @ values_N

    def mapped(self, function: Callable[[Tensor], Tensor]) -> DenseRows:
        return DenseRows(function(self.matrix_ND))

    @cached_property
    def _squared_norms(self) -> Tensor:
        return self.matrix_ND.square().sum(1)

    def squared_norms(self) -> Tensor:
        return self._squared_norms

    def gram(self, weights_N: Tensor) -> Tensor:
        return self.matrix_ND.T @ (weights_N[:, None] * self.matrix_ND)

    def dense(self) -> Tensor:
        return self.matrix_ND

    def narrow(self, start: int, stop: int) -> DenseRows:
        return DenseRows(self.matrix_ND[start:stop])

    def take(self, index_M: Tensor) -> DenseRows:
        return DenseRows(self.matrix_ND[index_M])


@dataclass(frozen=True)
class SparseRows:
    """Rows of a few entries each: the ids of row i are `ids[offsets[i] : offsets[i + 1]]`.

    Attributes:
        ids: int32 or int64, `[num_entries]`, each from 0 up to and without `num_features`. An id that a row names
            twice counts twice.
        offsets: int32 or int64, `[num_rows + 1]`, where each row's entries begin; the first is 0.
        num_features: how many columns there are.
        values: float64, `[num_entries]`, or None where every entry is 1.
    """

    ids: Tensor
    offsets: Tensor
    num_features: int
    values: Tensor | None = None

    @staticmethod
    def one_hot(ids_NF: Tensor, num_features: int) -> SparseRows:
        """Rows that name `F` features each, with value 1; `ids_NF` is `[num_rows, F]`."""
        num_rows, per_row = ids_NF.shape
        offsets = torch.arange(0, num_rows * per_row + 1, per_row) if per_row else torch.zeros(num_rows + 1).long()
        return SparseRows(ids_NF.reshape(-1), offsets, num_features)

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def _ones_or_values(self) -> Tensor:
        return torch.ones(len(self.ids), dtype=torch.float64) if self.values is None else self.values

    @cached_property
    def _row_of_entry(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(self.num_rows), self.offsets.diff())

    @cached_property
    def _matrix(self) -> Tensor:
        shape = (self.num_rows, self.num_features)
        fits = max(len(self.ids), self.num_features) < 2**31
        index = (self.offsets.int(), self.ids.int()) if fits else (self.offsets.long(), self.ids.long())
        return torch.sparse_csr_tensor(*index, self._ones_or_values, shape, check_invariants=False)

    def problem(self) -> str | None:
        if len(self.ids) and not 0 <= int(self.ids.min()) <= int(self.ids.max()) < self.num_features:
            return f"ids must be from 0 up to and without the number of features, {self.num_features:,}"
        if int(self.offsets[0]) or int(self.offsets[-1]) != len(self.ids) or bool((self.offsets.diff() < 0).any()):
            return "offsets must begin with 0, not decrease, and end with the number of ids"
        return None if self.values is None or self.values.isfinite().all() else "features must be finite"

    def times(self, columns_DK: Tensor) -> Tensor:
        return self._matrix @ columns_DK

    def transposed_times(self, values_N: Tensor) -> Tensor:
        entries = values_N.repeat_interleave(self.offsets.diff())
        if self.values is not None:
            entries = entries * self.values
        return values_N.new_zeros(self.num_features).index_add_(0, self.ids, entries)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> SparseRows:
        """An id that a row names twice is two entries."""
        return self if self.values is None else replace(self, values=function(self.values))

    @cached_property
    def _squared_norms(self) -> Tensor:
        if self.values is None:
            return self.offsets.diff().double()
        return torch.zeros(self.num_rows, dtype=torch.float64).index_add_(0, self._row_of_entry, self.values.square())

    def squared_norms(self) -> Tensor:
        return self._squared_norms

    @cached_property
    def _padded(self) -> tuple[Tensor, Tensor | None]:
        """Ids `[longest row, num_rows]`, filled up with the id `num_features`, and values likewise, None for ones."""
        lengths = self.offsets.diff()
        longest = int(lengths.max()) if self.num_rows else 0
        # Positions in a Hessian with one more column; 32 bits are faster where they suffice.
        dtype = torch.int32 if (self.num_features + 1) ** 2 < 2**31 else torch.int64
        filled = torch.arange(longest) < lengths[:, None]
        ids = torch.full(filled.shape, self.num_features, dtype=dtype).masked_scatter_(filled, self.ids.to(dtype))
        if self.values is None:
            return ids.T.contiguous(), None
        values = torch.zeros(filled.shape, dtype=torch.float64).masked_scatter_(filled, self.values)
        return ids.T.contiguous(), values.T.contiguous()

    def gram(self, weights_N: Tensor) -> Tensor:
        """Adds up the products of all pairs of entries in each row, or multiplies dense matrices if that is faster."""
        ids_LN, values_LN = self._padded
        longest, width = len(ids_LN), self.num_features + 1
        if self.num_features <= 8 * longest:  # measured where the two take the same time
            return self._gram_of_dense(weights_N)
        total = torch.zeros(width * width, dtype=torch.float64)  # with a column for what rows are filled up with
        twice = torch.zeros(width, dtype=torch.float64)  # pairs of an entry with itself, which both triangles have
        for entry in range(longest):
            places = ids_LN[entry] * width + ids_LN[entry:]
            if values_LN is None:
                products = weights_N.expand_as(places)
            else:
                products = weights_N * values_LN[entry] * values_LN[entry:]
            total.index_add_(0, places.view(-1), products.reshape(-1))
            twice.index_add_(0, ids_LN[entry], products[0])
        half = total.view(width, width)[:-1, :-1]
        return half + half.T - twice[:-1].diag()

    def _gram_of_dense(self, weights_N: Tensor) -> Tensor:
        total = torch.zeros(self.num_features, self.num_features, dtype=torch.float64)
        piece = max(1, 2**22 // self.num_features)  # 32 MiB as a dense matrix
        for start in range(0, self.num_rows, piece):
            stop = min(start + piece, self.num_rows)
            total += DenseRows(self.narrow(start, stop).dense()).gram(weights_N[start:stop])
        return total

    def dense(self) -> Tensor:
        flat = torch.zeros(self.num_rows * self.num_features, dtype=torch.float64)
        flat.index_add_(0, self._row_of_entry * self.num_features + self.ids, self._ones_or_values)
        return flat.view(self.num_rows, self.num_features)

    def narrow(self, start: int, stop: int) -> SparseRows:
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        values = None if self.values is None else self.values[first:last]
        return SparseRows(self.ids[first:last], self.offsets[start : stop + 1] - first, self.num_features, values)

    def take(self, index_M: Tensor) -> SparseRows:
        lengths = self.offsets.diff()[index_M]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        within = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
        entries = self.offsets[:-1][index_M].repeat_interleave(lengths) + within
        values = None if self.values is None else self.values[entries]
        return SparseRows(self.ids[entries], offsets, self.num_features, values)


@dataclass(frozen=True)
class LabelledRows:
    """A batch of labelled rows.

    Attributes:
        rows: the features.
        labels: float64, `[num_rows]`, 0 or 1, or a share between them.
        weights: float64, `[num_rows]`, how much each row counts, not negative; None: all count 1.
    """

    rows: Rows
    labels: Tensor
    weights: Tensor | None = None


class RowSource(Protocol):
    """Where an objective reads this rank's examples, any number of times.

    Rows must come in an order that has nothing to do with their labels (shuffled once, always the same): solvers that
    sample take consecutive rows, so that a stream is read in order.
    """

    num_rows: int  # of this rank
    num_features: int  # the same on all ranks

    def read(self, start: int, stop: int) -> Iterator[LabelledRows]:
        """Rows `start` up to and without `stop`, in order, in batches of any size that fit into memory."""
        ...


@dataclass(frozen=True)
class RowsInMemory:
    """A source whose examples are in memory; batches are views of at most `batch_rows` rows."""

    examples: LabelledRows
    batch_rows: int = 65_536

    def __post_init__(self) -> None:
        labels, weights = self.examples.labels, self.examples.weights
        if not (len(labels) == self.num_rows == (self.num_rows if weights is None else len(weights))):
            raise ValueError(f"{self.num_rows} rows, {len(labels)} labels, expected as many labels and weights as rows")

    @property
    def num_rows(self) -> int:
        return self.examples.rows.num_rows

    @property
    def num_features(self) -> int:
        return self.examples.rows.num_features

    def shuffled(self, seed: int) -> RowsInMemory:
        """The same examples in a random order."""
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(seed))
        rows, labels, weights = self.examples.rows, self.examples.labels, self.examples.weights
        taken = LabelledRows(rows.take(order), labels[order], None if weights is None else weights[order])
        return RowsInMemory(taken, self.batch_rows)

    @cached_property
    def _pieces(self) -> list[LabelledRows]:
        """Batches between fixed borders, made once, so that what rows remember about themselves is kept."""
        borders = range(0, self.num_rows, self.batch_rows)
        return [self._cut(self.examples, start, min(start + self.batch_rows, self.num_rows)) for start in borders]

    @staticmethod
    def _cut(examples: LabelledRows, start: int, stop: int) -> LabelledRows:
        weights = None if examples.weights is None else examples.weights[start:stop]
        return LabelledRows(examples.rows.narrow(start, stop), examples.labels[start:stop], weights)

    def read(self, start: int, stop: int) -> Iterator[LabelledRows]:
        for number in range(start // self.batch_rows, -(-stop // self.batch_rows)):
            piece, begin = self._pieces[number], number * self.batch_rows
            first, last = max(start - begin, 0), min(stop - begin, piece.rows.num_rows)
            whole = first == 0 and last == piece.rows.num_rows
            yield piece if whole else self._cut(piece, first, last)
