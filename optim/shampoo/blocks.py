"""Cuts parameters and their gradients into blocks.

Blocks are preconditioned separately: a block of shape [n_1, ..., n_o] has `o` factor matrices of n_k x n_k.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]
Region = tuple[slice, ...]


@dataclass(frozen=True)
class ParameterBlock:
    """A block of one parameter.

    `group` and `position` find the parameter (`param_groups[group]["params"][position]`), `number` counts the blocks
    of that parameter. `dims` are the dimensions with a factor matrix. A diagonal block has none and takes the step of
    its grafting method.
    """

    group: int
    position: int
    number: int
    shape: Shape
    diagonal: bool
    dims: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def flat_order(blocks: Sequence[ParameterBlock]) -> list[ParameterBlock]:
    """Sort key: diagonal blocks first, then by shape, then in the order of the parameters."""
    return sorted(blocks, key=lambda b: (b.group, not b.diagonal, () if b.diagonal else b.shape, b.position, b.number))


@dataclass(frozen=True)
class ParameterCut:
    """The shape that a parameter is viewed in, and the regions of that shape that are its blocks (none if empty)."""

    shape: Shape
    limit: int
    regions: tuple[Region, ...]

    def region_shape(self, number: int) -> Shape:
        return tuple(part.stop - part.start for part in self.regions[number])

    def views(self, tensor: Tensor) -> list[Tensor]:
        """Returns the blocks of `tensor` (a parameter or gradient), as views if its strides allow."""
        views = [tensor if tensor.shape == self.shape else tensor.reshape(self.shape)]
        for dim, size in enumerate(self.shape):
            if size > self.limit:  # one split is many times faster than as many slices
                sizes = [min(self.limit, size - start) for start in range(0, size, self.limit)]
                views = [piece for view in views for piece in view.split_with_sizes(sizes, dim)]
        return views


def block_views(cuts: Sequence[ParameterCut], tensors: Sequence[Tensor | None]) -> dict[tuple[int, int], Tensor]:
    """Returns the blocks of a group's parameters or gradients by (position, number), without missing tensors."""
    return {
        (position, number): view
        for position, (cut, tensor) in enumerate(zip(cuts, tensors, strict=True))
        if tensor is not None and cut.regions
        for number, view in enumerate(cut.views(tensor))
    }


def squeeze_shape(shape: Shape) -> Shape:
    """Drops dimensions of size 1; a scalar becomes a vector of one element."""
    return tuple(size for size in shape if size != 1) or (1,)


def merge_shape(shape: Shape, limit: int) -> Shape:
    """Merges neighbouring dimensions, from the last backwards, while their product is at most `limit`.

    (64, 3, 3) with limit 16 becomes (64, 9); with limit 1024 it becomes (576,), one factor matrix for all of it.
    """
    merged = [shape[-1]]
    for size in reversed(shape[:-1]):
        if size * merged[0] <= limit:
            merged[0] *= size
        else:
            merged.insert(0, size)
    return tuple(merged)


def split_shape(shape: Shape, limit: int) -> tuple[Region, ...]:
    """Cuts every dimension into pieces of `limit` (the last is smaller), in row-major order of the pieces."""
    if 0 in shape:
        return ()
    per_dimension = [[slice(i, min(i + limit, size)) for i in range(0, size, limit)] for size in shape]
    return tuple(itertools.product(*per_dimension))


def cut_parameter(parameter: Tensor, *, limit: int, merge: bool) -> ParameterCut:
    """Chooses the blocks of a parameter.

    Args:
        parameter: any shape and strides; dimensions are merged only if they can be viewed as one.
        limit: the largest dimension of a block, >= 1.
        merge: whether small dimensions are merged first.
    """
    shape = squeeze_shape(tuple(parameter.shape))
    if merge and parameter.numel():
        merged = merge_shape(shape, limit)
        try:
            parameter.detach().view(merged)
            shape = merged
        except RuntimeError:  # the strides do not allow merging, and blocks must be views
            pass
    return ParameterCut(shape, limit, split_shape(shape, limit))
