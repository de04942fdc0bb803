"""The division of labour: every group's blocks, their owners, this rank's shards, and the buffers between ranks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from optim.shampoo.blocks import Block, Cut, block_views
from optim.shampoo.costs import StepCost
from optim.shampoo.gather import DirectionBuffer
from optim.shampoo.plan import Kind, plan_group
from optim.shampoo.scalars import rounded
from optim.shampoo.shard import Shard
from optim.shampoo.timing import Timed

Views = Mapping[tuple[int, int], Tensor]  # blocks of a group's parameters by (position, number)


class Division:
    """What this rank does of a step, and how it learns what the others did.

    Args:
        process_group: the ranks that share the work; None for this process alone.
        communication_dtype: type of the directions on the wire, None for their own.
    """

    def __init__(self, process_group: dist.ProcessGroup | None, communication_dtype: torch.dtype | None) -> None:
        self._process_group = process_group
        self._communication_dtype = communication_dtype
        self._rank = dist.get_rank(process_group) if process_group is not None else 0
        self._world_size = dist.get_world_size(process_group) if process_group is not None else 1
        self._loads = [0.0] * self._world_size
        self._cuts: list[list[Cut]] = []
        self._blocks_of_rank: dict[Kind, list[list[Block]]] = {}
        self._buffers: dict[Kind, DirectionBuffer] = {}
        self._moves: list[list[tuple[tuple[int, int], Tensor]]] = []
        self._weights: list[tuple[list[Any], Views]] = []
        self.costs: dict[Block, StepCost] = {}
        self.shards: dict[tuple[int, Kind], Shard] = {}

    def add_group(self, group: dict[str, Any]) -> None:
        """Plans a new group and gives the blocks this rank owns their state."""
        g = len(self._cuts)
        plan = plan_group(g, group, self._loads)
        self._cuts.append(plan.cuts)
        self._weights.append(([], {}))
        self.costs |= plan.cost_of
        for kind, blocks_of_rank in plan.blocks_of_rank.items():
            device, dtype = kind
            everyone = self._blocks_of_rank.setdefault(kind, [[] for _ in range(self._world_size)])
            for blocks, new in zip(everyone, blocks_of_rank, strict=True):
                blocks += new
            self._buffers[kind] = buffer = DirectionBuffer(
                everyone,
                rank=self._rank,
                process_group=self._process_group,
                dtype=dtype,
                communication_dtype=self._communication_dtype,
                device=device,
            )
            mine, start = blocks_of_rank[self._rank], 0
            for (_, shard_kind), shard in self.shards.items():
                if shard_kind == kind:
                    shard.set_out(buffer.own_N[start : start + shard.out_N.numel()])
                    start += shard.out_N.numel()
            if mine:
                turns = [plan.turn_of[block] for block in mine]
                self.shards[g, kind] = Shard(mine, turns, group, dtype=dtype, out_N=buffer.own_N[start:])
        views = [item for buffer in self._buffers.values() for item in buffer.views.items()]
        self._moves = [
            [((b.position, b.number), view) for b, view in views if b.group == i] for i in range(len(self._cuts))
        ]

    def block_states(self, g: int) -> Iterator[tuple[Block, dict[str, Tensor]]]:
        """The blocks of group `g` that this rank owns, with their live state."""
        for (group_index, _), shard in self.shards.items():
            if group_index == g:
                yield from ((block, shard.block_state(index)) for index, block in enumerate(shard.blocks))

    def compute(self, groups: Sequence[dict[str, Any]], grads: Sequence[Sequence[Tensor | None]], timed: Timed) -> None:
        """The directions of this rank's blocks."""
        grad_blocks = [block_views(cuts, tensors) for cuts, tensors in zip(self._cuts, grads, strict=True)]
        for (g, _), shard in self.shards.items():
            weights, step = self._weight_views(g, groups[g]), int(groups[g]["step"])
            grads_of = [grad_blocks[g].get(place) for place in shard.places]
            shard.compute(step, groups[g], grads_of, [weights[place] for place in shard.places], timed)

    def exchange(self) -> None:
        """Every rank's directions to every rank."""
        for buffer in self._buffers.values():
            buffer.exchange()

    def move(self, groups: Sequence[dict[str, Any]]) -> None:
        """`W <- W - lr P` for all blocks of all ranks."""
        for g, group in enumerate(groups):
            if self._moves[g]:
                weights = self._weight_views(g, group)
                blocks, directions = zip(*self._moves[g], strict=True)
                lr = rounded(group["lr"], float32=group["use_float32_scalars"])
                torch._foreach_add_([weights[block] for block in blocks], directions, alpha=-lr)

    def _weight_views(self, g: int, group: dict[str, Any]) -> Views:
        """Blocks of the weights; taken anew only when a parameter lies elsewhere than at the last step."""
        places = [(p.data_ptr(), p.stride()) for p in group["params"]]
        if self._weights[g][0] != places:
            self._weights[g] = places, block_views(self._cuts[g], [p.detach() for p in group["params"]])
        return self._weights[g][1]
