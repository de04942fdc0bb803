"""From one vector per table to one vector per feature, in one pass over memory.

Dimensions: B examples, F features, D columns; P columns of a source, which holds the vectors of several tables side by
side, in whatever order the sharding plan left them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embeddings.local import Columns


@dataclass(frozen=True)
class Part:
    """Columns [column, column + width) of one feature's vector, and what they are made of.

    Attributes:
        operation: "copy" of the key `first`, or "mult" or "add" of the keys `first` and `second`.
    """

    feature: int
    column: int
    width: int
    operation: str
    first: str
    second: str | None = None


@dataclass(frozen=True)
class _Run:
    """Neighbouring features whose part is made alike from neighbouring columns of one source: one operation."""

    operation: str
    feature: int
    count: int
    column: int
    width: int
    source: int
    first: int
    second: int | None

    def of_output(self, out_BFD: Tensor) -> Tensor:
        return out_BFD[:, self.feature : self.feature + self.count, self.column : self.column + self.width]

    def of_first(self, sources: Sequence[Tensor]) -> Tensor:
        return self._columns(sources[self.source], self.first)

    def of_second(self, sources: Sequence[Tensor]) -> Tensor:
        assert self.second is not None
        return self._columns(sources[self.source], self.second)

    def _columns(self, source_BP: Tensor, start: int) -> Tensor:
        return source_BP[:, start : start + self.count * self.width].unflatten(1, (self.count, self.width))

    def extended_by(self, other: "_Run") -> "_Run | None":
        """The two as one run, if `other` goes on where this one ends."""
        columns = self.count * self.width
        goes_on = _Run(
            self.operation,
            self.feature + self.count,
            other.count,
            self.column,
            self.width,
            self.source,
            self.first + columns,
            None if self.second is None else self.second + columns,
        )
        if other != goes_on:
            return None
        return _Run(
            self.operation,
            self.feature,
            self.count + other.count,
            self.column,
            self.width,
            self.source,
            self.first,
            self.second,
        )


class Combiner:
    """Makes [B, F, D] from the columns of one or more sources.

    Args:
        parts: of all features; parts that can be made together should stand in the order of their features.
        num_features, dim: F and D.
    """

    def __init__(self, parts: Sequence[Part], num_features: int, dim: int) -> None:
        self.parts = sorted(parts, key=lambda part: (part.operation, part.column, part.width, part.feature))
        self.num_features = num_features
        self.dim = dim
        self._runs: tuple[list[list[str]], list[_Run]] | None = None

    def __call__(self, columns: Sequence[Columns]) -> Tensor:
        """
        Args:
            columns: of all parts; both halves of a pair in the same one.

        Returns:
            [B, F, D]; shares memory with a source that is the result already.
        """
        sources, keys = [c.values for c in columns], [c.keys for c in columns]
        if self._runs is None or self._runs[0] != keys:
            self._runs = (keys, self._plan(columns))
        runs = self._runs[1]
        if len(runs) == 1 and runs[0].operation == "copy" and runs[0].width == self.dim and len(sources) == 1:
            return sources[0].unflatten(1, (self.num_features, self.dim))
        return _Combine.apply(runs, self.num_features, self.dim, *sources)

    def _plan(self, columns: Sequence[Columns]) -> list[_Run]:
        place: dict[str, tuple[int, int]] = {}
        for source, vectors in enumerate(columns):
            start = 0
            for name, width in zip(vectors.keys, vectors.widths, strict=True):
                place[name] = (source, start)
                start += width
        runs: list[_Run] = []
        for part in self.parts:
            source, first = place[part.first]
            second = None if part.second is None else place[part.second][1]
            run = _Run(part.operation, part.feature, 1, part.column, part.width, source, first, second)
            longer = runs[-1].extended_by(run) if runs else None
            if longer is None:
                runs.append(run)
            else:
                runs[-1] = longer
        return runs


class _Combine(torch.autograd.Function):
    """Writes every run once, forward and backward; indexing and cat would each copy everything again."""

    @staticmethod
    def forward(ctx: Any, runs: list[_Run], num_features: int, dim: int, *sources: Tensor) -> Tensor:
        ctx.runs = runs
        ctx.save_for_backward(*sources)
        out_BFD = sources[0].new_empty(sources[0].shape[0], num_features, dim)
        for run in runs:
            out = run.of_output(out_BFD)
            if run.operation == "copy":
                out.copy_(run.of_first(sources))
            elif run.operation == "mult":
                torch.mul(run.of_first(sources), run.of_second(sources), out=out)
            else:
                torch.add(run.of_first(sources), run.of_second(sources), out=out)
        return out_BFD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sources: tuple[Tensor, ...] = ctx.saved_tensors
        # Every column of a source belongs to one part, so every element is written.
        gradients = [torch.empty_like(source) for source in sources]
        for run in ctx.runs:
            grad = run.of_output(grads[0])
            if run.operation == "mult":
                torch.mul(grad, run.of_second(sources), out=run.of_first(gradients))
                torch.mul(grad, run.of_first(sources), out=run.of_second(gradients))
            else:
                run.of_first(gradients).copy_(grad)
                if run.operation == "add":
                    run.of_second(gradients).copy_(grad)
        return (None, None, None, *gradients)
