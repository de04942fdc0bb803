"""Combines the looked-up rows of several tables into one vector per feature, in one pass over memory.

Dimensions: B examples, F vectors (one per feature, or several where each row is a feature of its own), D columns. A
source holds the vectors of several tables side by side, in whatever order the sharding plan left them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from dlrmctl.embeddings.path import follow_path, write_path_gradients


@dataclass(frozen=True)
class VectorPart:
    """Columns [column, column + width) of one vector, and the keys they are made of.

    Attributes:
        operation: "copy" of one key; "mult" or "add" of several; "path" of a vector's key and its network's key.
        keys: the tables whose rows it is made of.
        accumulate: whether it is added to what other parts wrote.
    """

    vector: int
    column: int
    width: int
    operation: str
    keys: tuple[str, ...]
    accumulate: bool = False


@dataclass(frozen=True)
class _Run:
    """Neighbouring vectors that one operation makes from neighbouring columns.

    `places` holds, for each key of the first vector, its source, first column and width.
    """

    operation: str
    accumulate: bool
    vector: int
    count: int
    column: int
    width: int
    places: tuple[tuple[int, int, int], ...]

    def of_output(self, out_BFD: Tensor) -> Tensor:
        return out_BFD[:, self.vector : self.vector + self.count, self.column : self.column + self.width]

    def of(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """The columns of each key, [B, count, width of the key]."""
        return [
            sources[source][:, start : start + self.count * width].view(len(sources[source]), self.count, width)
            for source, start, width in self.places
        ]

    def extended_by(self, other: "_Run") -> "_Run | None":
        """Returns the two as one run if `other` begins where this one ends, else None."""
        after = tuple((source, start + self.count * width, width) for source, start, width in self.places)
        if other != replace(self, vector=self.vector + self.count, count=other.count, places=after):
            return None
        return replace(self, count=self.count + other.count)


@dataclass(frozen=True)
class Columns:
    """Vectors of several tables side by side: values [B, P], and the key and width of each."""

    values: Tensor
    keys: list[str]
    widths: list[int]


class Combiner:
    """Makes [B, F, D] from the columns of one or more sources.

    Args:
        parts: the parts of all vectors; those that can be made together should be in the order of their vectors.
        num_vectors, dim: F and D.
    """

    def __init__(self, parts: Sequence[VectorPart], num_vectors: int, dim: int) -> None:
        self.parts = sorted(
            parts, key=lambda part: (part.accumulate, part.operation, len(part.keys), part.column, part.vector)
        )
        self.num_vectors = num_vectors
        self.dim = dim
        self._runs: tuple[list[list[str]], list[_Run]] | None = None

    def __call__(self, columns: Sequence[Columns]) -> Tensor:
        """Combines the vectors of all tables.

        Args:
            columns: the columns that the parts are made of.

        Returns:
            [B, F, D]; shares memory with a source that already is the result.
        """
        sources, keys = [c.values for c in columns], [c.keys for c in columns]
        if self._runs is None or self._runs[0] != keys:
            self._runs = (keys, self._plan(columns))
        runs = self._runs[1]
        if len(runs) == 1 and runs[0].operation == "copy" and runs[0].width == self.dim and len(sources) == 1:
            return sources[0].unflatten(1, (self.num_vectors, self.dim))
        return _Combine.apply(runs, self.num_vectors, self.dim, *sources)

    def _plan(self, columns: Sequence[Columns]) -> list[_Run]:
        place: dict[str, tuple[int, int, int]] = {}
        for source, vectors in enumerate(columns):
            start = 0
            for name, width in zip(vectors.keys, vectors.widths, strict=True):
                place[name] = (source, start, width)
                start += width
        runs: list[_Run] = []
        for part in self.parts:
            places = tuple(place[key] for key in part.keys)
            run = _Run(part.operation, part.accumulate, part.vector, 1, part.column, part.width, places)
            longer = runs[-1].extended_by(run) if runs else None
            if longer is None:
                runs.append(run)
            else:
                runs[-1] = longer
        return runs


class _Combine(torch.autograd.Function):
    """Writes every run once, forward and backward, where indexing and cat would each copy everything again."""

    @staticmethod
    def forward(ctx: Any, runs: list[_Run], num_vectors: int, dim: int, *sources: Tensor) -> Tensor:
        ctx.runs = runs
        ctx.save_for_backward(*sources)
        out_BFD = sources[0].new_empty(sources[0].shape[0], num_vectors, dim)
        for run in runs:  # parts that accumulate come last
            _write(run, run.of(sources), run.of_output(out_BFD))
        return out_BFD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sources: tuple[Tensor, ...] = ctx.saved_tensors
        # Every column of a source belongs to one part, so every element is written.
        gradients = [torch.empty_like(source) for source in sources]
        for run in ctx.runs:
            _write_gradients(run, sources, run.of_output(grads[0]), run.of(gradients))
        return (None, None, None, *gradients)


def _write(run: _Run, values: list[Tensor], out: Tensor) -> None:
    if run.accumulate:
        out += values[0] if run.operation == "copy" else combined(run.operation, values)
    elif run.operation == "copy":
        out.copy_(values[0])
    elif run.operation == "path":
        out.copy_(combined("path", values))
    else:
        combine = torch.mul if run.operation == "mult" else torch.add
        combine(values[0], values[1], out=out)
        for value in values[2:]:
            combine(out, value, out=out)


def combined(operation: str, values: Sequence[Tensor]) -> Tensor:
    """Combines the rows of an id in several tables into one vector, a new tensor.

    Args:
        operation: "mult", "add", "concat" or "path".
        values: rows of the tables in the order of `operand_keys`, [..., width] each.
    """
    if operation == "path":
        return follow_path(*values)
    if operation == "concat":
        return torch.cat(list(values), dim=-1)
    return reduce(torch.mul if operation == "mult" else torch.add, values)


def _write_gradients(run: _Run, sources: Sequence[Tensor], grad: Tensor, outs: list[Tensor]) -> None:
    if run.operation == "mult":
        values = run.of(sources)
        for index, out in enumerate(outs):
            first, *others = values[:index] + values[index + 1 :]
            torch.mul(grad, first, out=out)
            for other in others:
                out *= other
    elif run.operation == "path":
        x, maps = run.of(sources)
        write_path_gradients(x, maps, grad, x_grad=outs[0], maps_grad=outs[1])
    else:
        for out in outs:
            out.copy_(grad)
