"""What an optimizer can say about itself in words and numbers."""

from collections.abc import Sequence
from typing import Any

from optim.shampoo.costs import ParameterCost, StepCost
from optim.shampoo.division import Division
from optim.shampoo.factors import FAILED
from optim.shampoo.gradients import parameter_name

_NUM_NAMED = 3  # blocks that a report of failures names


def num_failed_roots(division: Division) -> int:
    return sum(shard.failures.total() for shard in division.shards.values())


def failed_roots(division: Division, groups: Sequence[dict[str, Any]]) -> str:
    """Which blocks of this rank failed, one line; the worst first."""
    items: list[tuple[int, int, str]] = []
    for (g, _), shard in division.shards.items():
        for index, times in shard.failures.items():
            block = shard.blocks[index]
            alone = int(shard.block_state(index)["root_status"]) == FAILED
            # Without grafting and without roots the direction is the gradient itself.
            instead = "kept the last good one" if not alone else "takes the grafted step"
            if alone and groups[g]["grafting_config"] is None:
                instead = "takes the gradient itself"
            often = f"{times} times, " if times > 1 else ""
            name = parameter_name(groups[g], block.position, g)
            items.append((-times, len(items), f"{name} block {block.number} ({often}{instead})"))
    if not items:
        return ""
    total = num_failed_roots(division)
    named = ", ".join(text for _, _, text in sorted(items)[:_NUM_NAMED])
    more = f" and {len(items) - _NUM_NAMED} more blocks" if len(items) > _NUM_NAMED else ""
    return f"{total} root inverse{'s' if total > 1 else ''} failed: {named}{more}"


def parameter_costs(division: Division, groups: Sequence[dict[str, Any]]) -> list[ParameterCost]:
    """Costs over all ranks, bytes on this one."""
    costs = []
    for g, group in enumerate(groups):
        state_bytes: dict[int, int] = {}
        for block, tensors in division.block_states(g):
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            state_bytes[block.position] = state_bytes.get(block.position, 0) + size
        for i, p in enumerate(group["params"]):
            blocks = [cost for block, cost in division.costs.items() if (block.group, block.position) == (g, i)]
            total = sum(blocks, StepCost())
            name = parameter_name(group, i, g)
            costs.append(ParameterCost(name, tuple(p.shape), len(blocks), total, state_bytes.get(i, 0)))
    return costs
