"""What Shampoo holds on every rank, from the shapes of parameters: its own plan deals the blocks out to any number."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dlrmctl.optim.shampoo.blocks import ParameterBlock, squeeze_shape
from dlrmctl.optim.shampoo.costs import step_cost
from dlrmctl.optim.shampoo.factors import preconditioned_dims
from dlrmctl.optim.shampoo.grafting import has_second_moment
from dlrmctl.optim.shampoo.memory import padded
from dlrmctl.optim.shampoo.plan import plan_group

_FLOAT = 4
_STATUS = 8  # an int64 per block with factor matrices
_MOST_BLOCKS = 50_000  # to be dealt out one by one


@dataclass(frozen=True)
class ShampooShare:
    """What one rank holds of Shampoo, in bytes.

    Attributes:
        state: as `DistributedShampoo.costs` counts it: second moments, averages, factor matrices and their roots.
        scratch: kept buffers, and the padding of all of them; without directions.
        buffer: its part of the buffer of directions.
        products: multiplications per step.
    """

    state: int = 0
    scratch: int = 0
    buffer: int = 0
    products: float = 0.0

    def __add__(self, other: "ShampooShare") -> "ShampooShare":
        state, scratch = self.state + other.state, self.scratch + other.scratch
        return ShampooShare(state, scratch, self.buffer + other.buffer, self.products + other.products)


def shampoo_shares(parameters: Iterable[Tensor], settings: dict[str, Any], world_size: int) -> list[ShampooShare]:
    """The share of each of `world_size` ranks.

    Args:
        parameters: their shapes count; they may be on "meta".
        settings: a parameter group of the optimizer, whatever its own parameters are.
    """
    group = settings | {"params": list(parameters)}
    limit = group["max_preconditioner_dim"]
    if sum(math.prod(-(-size // limit) for size in p.shape) for p in group["params"]) > _MOST_BLOCKS:
        return [_even_share(group, world_size)] * world_size
    shares = [ShampooShare()] * world_size
    for blocks_of_rank in plan_group(0, group, [0.0] * world_size).blocks_of_rank.values():
        for rank, blocks in enumerate(blocks_of_rank):
            for block in blocks:
                shares[rank] += _block_share(block, group)
    return shares


def _even_share(group: dict[str, Any], world_size: int) -> ShampooShare:
    """Of so many blocks that dealing them out one by one would take long: every shape once, times how often it is."""
    state = scratch = buffer = 0
    products, limit = 0.0, group["max_preconditioner_dim"]
    override, config = group["inverse_exponent_override"], group["preconditioner_config"]
    for position, p in enumerate(group["params"]):
        whole = squeeze_shape(tuple(p.shape))
        vector = len(whole) == 1 and not group["precondition_vectors"]
        pieces = [{size: 1} if vector else {limit: size // limit, size % limit: 1} for size in whole]
        for shape in itertools.product(*pieces):
            count = math.prod(sizes[size] for sizes, size in zip(pieces, shape, strict=True))
            if count and all(shape):
                dims = () if vector else preconditioned_dims(len(shape), config, override)
                one = _block_share(ParameterBlock(0, position, 0, shape, vector, dims), group)
                state, scratch = state + count * one.state, scratch + count * one.scratch
                buffer, products = buffer + count * one.buffer, products + count * one.products
    each = [-(-number // world_size) for number in (state, scratch, buffer)]
    return ShampooShare(each[0], each[1], each[2], products / world_size)


def _block_share(block: ParameterBlock, group: dict[str, Any]) -> ShampooShare:
    """What one block adds, in the order in which `optim.shampoo.shard` allocates it."""
    grafting, numel = group["grafting_config"], block.numel
    grafted = grafting is not None or block.diagonal
    averages = int(grafted and (grafting is None or has_second_moment(grafting)))
    averages += int(group["betas"][0] > 0) + int(group["momentum"] > 0)
    state = averages * numel
    allocated = (averages + 1 + int(grafted)) * padded(numel)  # + the gradient and the grafted step
    status = 0
    if not block.diagonal:
        sides = [block.shape[dim] ** 2 for dim in block.dims]
        state += 2 * sum(sides)  # a factor and its root
        allocated += 2 * sum(map(padded, sides)) + padded(numel)  # + the scratch of the stack
        status = _STATUS
    every = {name: group[name] for name in ("precondition_frequency", "statistics_frequency")}
    return ShampooShare(
        state=state * _FLOAT + status,
        scratch=(allocated - state) * _FLOAT,
        buffer=padded(numel) * _FLOAT,
        products=step_cost(block, **every).total,
    )
