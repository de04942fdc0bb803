"""Estimates Shampoo's memory and work on each of any number of ranks, by shards on "meta"."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlrmctl.optim.shampoo.blocks import ParameterBlock, squeeze_shape
from dlrmctl.optim.shampoo.costs import StepCost, step_cost
from dlrmctl.optim.shampoo.memory import Layout
from dlrmctl.optim.shampoo.plan import mean_refreshes, num_statistics, plan_group, preconditioning
from dlrmctl.optim.shampoo.shard import Shard

_MOST_BLOCKS = 50_000  # blocks up to which they are assigned one by one


@dataclass(frozen=True)
class ShampooShare:
    """The memory and work of Shampoo on one rank.

    Attributes:
        state: bytes as counted by `DistributedShampoo.costs`: second moments, averages, factor matrices and their
            roots.
        scratch: bytes of kept buffers and of all padding, without directions.
        buffer: bytes of its part of the buffer of directions.
        cost: multiplications per step, with roots and statistics at their final intervals.
    """

    state: int = 0
    scratch: int = 0
    buffer: int = 0
    cost: StepCost = field(default_factory=StepCost)

    def __add__(self, other: "ShampooShare") -> "ShampooShare":
        state, scratch = self.state + other.state, self.scratch + other.scratch
        return ShampooShare(state, scratch, self.buffer + other.buffer, self.cost + other.cost)

    def products(self, settings: dict[str, Any], steps: int) -> float:
        """Returns the mean multiplications per step over the first `steps` steps of training with these settings."""
        roots = settings["precondition_frequency"] * mean_refreshes(steps, settings) / steps
        statistics = settings["statistics_frequency"] * num_statistics(steps, settings) / steps
        cost = self.cost
        return cost.statistics * statistics + cost.roots * roots + cost.application + cost.elementwise


def shampoo_shares(parameters: Iterable[Tensor], settings: dict[str, Any], world_size: int) -> list[ShampooShare]:
    """Returns the share of each of `world_size` ranks.

    Args:
        parameters: only their shapes are used; they may be on "meta".
        settings: a parameter group of the optimizer; its own parameters are ignored.
    """
    group = settings | {"params": list(parameters)}
    limit = group["max_preconditioner_dim"]
    if sum(math.prod(-(-size // limit) for size in p.shape) for p in group["params"]) > _MOST_BLOCKS:
        return [_even_share(group, world_size)] * world_size
    shares = [ShampooShare()] * world_size
    for (_, dtype), blocks_of_rank in plan_group(0, group, [0.0] * world_size).blocks_of_rank.items():
        for rank, blocks in enumerate(blocks_of_rank):
            shares[rank] += _share(blocks, group, dtype)
    return shares


def _share(blocks: Sequence[ParameterBlock], group: dict[str, Any], dtype: torch.dtype) -> ShampooShare:
    """Returns the share of a rank that owns these blocks."""
    if not blocks:
        return ShampooShare()
    out_N = torch.empty(Layout(blocks).numel, dtype=dtype, device="meta")
    shard = Shard(list(blocks), [None] * len(blocks), group, dtype=dtype, out_N=out_N)
    every = {name: group[name] for name in ("precondition_frequency", "statistics_frequency")}
    cost = sum((step_cost(block, **every) for block in blocks), StepCost())
    state = shard.state_bytes()
    return ShampooShare(state, shard.allocated_bytes() - state, out_N.nbytes, cost)


def _even_share(group: dict[str, Any], world_size: int) -> ShampooShare:
    """Returns the mean share, for so many blocks that assigning them one by one would take long.

    Each shape is computed once and multiplied by its number of blocks.
    """
    state = scratch = buffer = 0
    cost, limit = StepCost(), group["max_preconditioner_dim"]
    for position, p in enumerate(group["params"]):
        whole = squeeze_shape(tuple(p.shape))
        diagonal, dims = preconditioning(len(whole), group)
        uncut = diagonal and len(whole) == 1
        pieces = [{size: 1} if uncut else {limit: size // limit, size % limit: 1} for size in whole]
        for shape in itertools.product(*pieces):
            count = math.prod(sizes[size] for sizes, size in zip(pieces, shape, strict=True))
            if count and all(shape):
                one = _share([ParameterBlock(0, position, 0, shape, diagonal, dims)], group, torch.float32)
                state, scratch = state + count * one.state, scratch + count * one.scratch
                buffer, cost = buffer + count * one.buffer, cost + one.cost.times(count)
    each = [-(-number // world_size) for number in (state, scratch, buffer)]
    return ShampooShare(each[0], each[1], each[2], cost.times(1 / world_size))
