"""Estimates the errors of methods on samples of a table's rows, before any method is fitted to the table.

Codebooks are shared: the first level of a sum is the same for every number of codes, and the rows outside a head start
from the codebooks of all rows. Dimensions: n rows of a sample, D columns.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.fits.codebook import Codebooks, coding_error
from dlrmctl.embeddings.compression.fits.kmeans import fit_centers, nearest
from dlrmctl.embeddings.compression.fits.methods import Method, head_rows
from dlrmctl.embeddings.compression.fits.sampling import sample_ids
from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.compression.rules.headed import choose_head

_SAMPLE_ROWS = 8192
_SWEEPS = 2
# Steps of Lloyd's algorithm from a new start and from that of all rows.
_STEPS, _MORE_STEPS = 10, 5


class Estimates:
    """Estimates for one table. Keeps two samples of its rows, not the table.

    Args:
        table: all rows.
        methods: those that will be asked for.
        sample_rows: rows of each sample.

    Raises:
        NonFiniteValueError: if a value is not finite.
    """

    def __init__(
        self, table: TableRows, methods: Iterable[Method], *, sample_rows: int = _SAMPLE_ROWS, seed: int = 0
    ) -> None:
        table.largest()
        self._generator = torch.Generator().manual_seed(seed)
        self._samples = [_Sample.of(table, sample_rows, self._generator)]
        if table.num_rows > sample_rows:
            self._samples.append(_Sample.of(table, sample_rows, self._generator))
        self._levels: dict[int, _Levels] = {}
        self._needs_bitmap: dict[float, bool] = {}
        for share in {method.head_share for method in methods}:
            if heads := head_rows(share, table.num_rows):
                chosen = choose_head(table.weights, heads)
                self._needs_bitmap[share] = chosen is not None
                for sample in self._samples:
                    sample.divide(share, heads, chosen)

    def needs_bitmap(self, method: Method) -> bool:
        """Whether the method's head needs a bitmap of its ids."""
        return self._needs_bitmap.get(method.head_share, False)

    def weighted_error(self, method: Method) -> float:
        """Estimates `quality.Quality.weighted_error` of the table fitted with a method.

        Codebooks are fitted to one sample. Their error there is too low for the table, which has more rows, and that on
        another sample too high, since the table's codebooks are fitted to more rows; the estimate is the mean.

        Raises:
            ValueError: if the method does not fit the table's columns.
        """
        if method.head_share not in self._needs_bitmap:
            return self._error(method, [sample.rows for sample in self._samples])
        head = self._samples[0].heads.get(method.head_share)
        tails = [sample.tails[method.head_share] for sample in self._samples if method.head_share in sample.tails]
        error = _fitted_error(Method("rows", method.head_bits), head) if head else 0.0
        return error + (self._error(method.without_head(), tails, is_tail=True) if tails else 0.0)

    def _error(self, method: Method, samples: list[TableRows], *, is_tail: bool = False) -> float:
        rows = samples[0]
        if method.kind != "rq":
            return _fitted_error(method, rows)
        codebooks = self._shared(method)
        if is_tail:
            codebooks = _fit_levels(rows, codebooks[:, : rows.num_rows], self._generator)
        model = Codebooks(codebooks.clone(), "sum")
        error = model.improve(rows, _SWEEPS if method.num_codes > 1 else 0)
        others = [coding_error(model, sample) for sample in samples[1:]]
        return sum((error, *others)) / (1 + len(others))

    def _shared(self, method: Method) -> Tensor:
        """The codebooks of all rows for a method of kind "rq", float32 [L, K, D]."""
        size = min(method.size, self._samples[0].rows.num_rows)
        if size not in self._levels:
            self._levels[size] = _Levels(self._samples[0].rows, size, self._generator)
        return self._levels[size].first(method.num_codes)


@dataclass
class _Sample:
    """A sample of rows, with weights that keep sums unbiased; by share of a head, the rows inside and outside it."""

    ids: Tensor
    rows: TableRows
    heads: dict[float, TableRows]
    tails: dict[float, TableRows]

    @classmethod
    def of(cls, table: TableRows, size: int, generator: torch.Generator) -> "_Sample":
        ids, weights = sample_ids(table, size, generator)
        return cls(ids, TableRows(table.take(ids)[0], weights, name=table.name), {}, {})

    def divide(self, share: float, heads: int, chosen: Tensor | None) -> None:
        """Adds a share, whose head is the ids in `chosen`, or the first `heads`."""
        inside = self.ids < heads if chosen is None else torch.isin(self.ids, chosen, assume_unique=True)
        for found, flags in ((self.heads, inside), (self.tails, ~inside)):
            if flags.any():
                found[share] = TableRows(self.rows.weight[flags], self.rows.weights[flags], name=self.rows.name)


class _Levels:
    """Codebooks fitted one after the other, each to the residuals of those before it, as many as needed."""

    def __init__(self, rows: TableRows, size: int, generator: torch.Generator) -> None:
        self._left, self._weights, self._size, self._generator = rows.weight.clone(), rows.weights, size, generator
        self._found: list[Tensor] = []

    def first(self, count: int) -> Tensor:
        """The first codebooks, float32 [count, K, D]."""
        while len(self._found) < count:
            centers = fit_centers(self._left, self._weights, self._size, self._generator, steps=_STEPS)
            self._left -= centers[nearest(self._left, centers)]
            self._found.append(centers)
        return torch.stack(self._found[:count])


def _fit_levels(rows: TableRows, starts: Tensor, generator: torch.Generator) -> Tensor:
    """Codebooks fitted one after the other, from given ones."""
    left, found = rows.weight.clone(), []
    for start in starts:
        centers = fit_centers(left, rows.weights, len(start), generator, start=start, steps=_MORE_STEPS)
        left -= centers[nearest(left, centers)]
        found.append(centers)
    return torch.stack(found)


def _fitted_error(method: Method, rows: TableRows) -> float:
    """The weighted error of a method fitted to these rows alone."""
    fitted, error = method.fit(rows), 0.0
    for part, values, weights in rows.chunks("measure"):
        squares = (fitted.expand(part.start, part.stop) - values).square_().sum(1)
        error += float((squares * weights).sum(dtype=torch.float64))
    return error
