"""What becomes of a parameter group: its blocks, their owners and their turns. Equal on every rank."""

from dataclasses import dataclass
from typing import Any

import torch

from optim.shampoo.assignment import spread
from optim.shampoo.blocks import Block, Cut, cut_parameter, flat_order
from optim.shampoo.costs import StepCost, root_cost, step_cost
from optim.shampoo.factors import preconditioned_dims

Kind = tuple[torch.device, torch.dtype]  # where a block's state lives, and its type


@dataclass(frozen=True)
class GroupPlan:
    """`cuts` by position of the parameter; blocks by kind and rank, in the order they lie in the rank's buffers."""

    cuts: list[Cut]
    blocks_of_rank: dict[Kind, list[list[Block]]]
    turn_of: dict[Block, int | None]
    cost_of: dict[Block, StepCost]


def plan_group(group_index: int, group: dict[str, Any], loads: list[float]) -> GroupPlan:
    """Cuts the parameters of a group into blocks and gives every block an owner.

    Args:
        loads: what the ranks carry already, in multiplications per step; the group's blocks are added in place.
    """
    limit, merge = group["max_preconditioner_dim"], group["merge_small_dims"]
    cuts = [cut_parameter(p, limit=limit, merge=merge) for p in group["params"]]
    blocks = []
    for position, cut in enumerate(cuts):
        order, config = len(cut.shape), group["preconditioner_config"]
        diagonal = config is None or (order == 1 and not group["precondition_vectors"])
        dims = () if diagonal else preconditioned_dims(order, config, group["inverse_exponent_override"])
        if diagonal and order == 1:  # nothing is gained by cutting what is elementwise, and biases are many
            cuts[position] = cut = cut_parameter(group["params"][position], limit=max(*cut.shape, 1), merge=False)
        blocks += [
            Block(group_index, position, n, cut.region_shape(n), diagonal, dims) for n in range(len(cut.regions))
        ]

    frequency, every = group["precondition_frequency"], group["statistics_frequency"]
    turns: list[int | None] = [None] * len(blocks)
    if group["stagger_refresh"]:  # by the blocks alone: the same on any number of ranks
        turns = [*spread([root_cost(block) for block in blocks], frequency)]

    costs = [step_cost(block, precondition_frequency=frequency, statistics_frequency=every) for block in blocks]
    owners = spread([cost.total for cost in costs], len(loads), loads)
    blocks_of_rank: dict[Kind, list[list[Block]]] = {}
    for block, owner in zip(blocks, owners, strict=True):
        p = group["params"][block.position]
        kind = (p.device, torch.float64 if p.dtype == torch.float64 else torch.float32)
        blocks_of_rank.setdefault(kind, [[] for _ in loads])[owner].append(block)
    ordered = {kind: [flat_order(members) for members in ranks] for kind, ranks in blocks_of_rank.items()}
    return GroupPlan(cuts, ordered, dict(zip(blocks, turns, strict=True)), dict(zip(blocks, costs, strict=True)))
