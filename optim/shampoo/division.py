"""Divides a step between ranks: every group's blocks and their owners, this rank's shards, and the exchange.

One all-gather brings every rank's directions to every rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dlrmctl.optim.shampoo.blocks import ParameterBlock, ParameterCut, block_views
from dlrmctl.optim.shampoo.costs import StepCost, Timed
from dlrmctl.optim.shampoo.memory import Layout
from dlrmctl.optim.shampoo.plan import Kind, plan_group
from dlrmctl.optim.shampoo.settings import rounded
from dlrmctl.optim.shampoo.shard import Shard

Views = Mapping[tuple[int, int], Tensor]  # blocks of a group's parameters by (position, number)
# The second is the name before torch 2.13.
_all_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


class Division:
    """This rank's part of a step, and the exchange with the other ranks.

    Args:
        process_group: the ranks that share the work; None means this process alone.
        communication_dtype: type in which directions are sent; None means their own.
    """

    def __init__(self, process_group: dist.ProcessGroup | None, communication_dtype: torch.dtype | None) -> None:
        self._process_group = process_group
        self._communication_dtype = communication_dtype
        self._rank = dist.get_rank(process_group) if process_group is not None else 0
        self._world_size = dist.get_world_size(process_group) if process_group is not None else 1
        self._loads = [0.0] * self._world_size
        self._cuts: list[list[ParameterCut]] = []
        self._blocks_of_rank: dict[Kind, list[list[ParameterBlock]]] = {}
        self._buffers: dict[Kind, DirectionBuffer] = {}
        self._moves: list[list[tuple[tuple[int, int], Tensor]]] = []
        self._weights: list[tuple[list[Any], Views]] = []
        self.costs: dict[ParameterBlock, StepCost] = {}
        self.shards: dict[tuple[int, Kind], Shard] = {}

    def add_group(self, group: dict[str, Any]) -> None:
        """Plans a new group and allocates the state of this rank's blocks."""
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

    def block_states(self, g: int) -> Iterator[tuple[ParameterBlock, dict[str, Tensor]]]:
        """Returns this rank's blocks of group `g`, with their live state."""
        for (group_index, _), shard in self.shards.items():
            if group_index == g:
                yield from ((block, shard.block_state(index)) for index, block in enumerate(shard.blocks))

    def compute(self, groups: Sequence[dict[str, Any]], grads: Sequence[Sequence[Tensor | None]], timed: Timed) -> None:
        """Computes the directions of this rank's blocks."""
        grad_blocks = [block_views(cuts, tensors) for cuts, tensors in zip(self._cuts, grads, strict=True)]
        for (g, _), shard in self.shards.items():
            weights, step = self._weight_views(g, groups[g]), int(groups[g]["step"])
            grads_of = [grad_blocks[g].get(place) for place in shard.places]
            shard.compute(step, groups[g], grads_of, [weights[place] for place in shard.places], timed)

    def exchange(self) -> None:
        """Sends every rank's directions to every rank."""
        for buffer in self._buffers.values():
            buffer.exchange()

    def move(self, groups: Sequence[dict[str, Any]]) -> None:
        """Updates all blocks of all ranks: `W <- W - lr P`."""
        for g, group in enumerate(groups):
            if self._moves[g]:
                weights = self._weight_views(g, group)
                blocks, directions = zip(*self._moves[g], strict=True)
                lr = rounded(group["lr"], float32=group["use_float32_scalars"])
                torch._foreach_add_([weights[block] for block in blocks], directions, alpha=-lr)

    def _weight_views(self, g: int, group: dict[str, Any]) -> Views:
        """Returns the blocks of the weights; made again only if a parameter has moved in memory since the last step."""
        places = [(p.data_ptr(), p.stride()) for p in group["params"]]
        if self._weights[g][0] != places:
            self._weights[g] = places, block_views(self._cuts[g], [p.detach() for p in group["params"]])
        return self._weights[g][1]


class DirectionBuffer:
    """One flat buffer of directions per rank, and views of all of them by block.

    A rank's part starts with its own blocks; parts are padded to the longest, since an all-gather moves equal parts.
    Every rank takes part in every exchange, even without blocks. On one rank nothing is sent.

    Args:
        blocks_of_rank: the blocks of every rank, in the order of its part.
        communication_dtype: type in which directions are sent; None means `dtype`. All ranks, the owner included, use
            the rounded value, so that replicas stay equal.
    """

    def __init__(
        self,
        blocks_of_rank: Sequence[Sequence[ParameterBlock]],
        *,
        rank: int,
        process_group: dist.ProcessGroup | None,
        dtype: torch.dtype,
        communication_dtype: torch.dtype | None,
        device: torch.device,
    ) -> None:
        world_size = len(blocks_of_rank)
        self._process_group = process_group if world_size > 1 else None
        layouts = [Layout(blocks) for blocks in blocks_of_rank]
        longest = max(layout.numel for layout in layouts)
        self._part = torch.zeros(longest, dtype=dtype, device=device)
        self.own_N = self._part[: layouts[rank].numel]
        self._received = self._part[None]
        if self._process_group is not None:
            received_dtype = dtype if communication_dtype is None else communication_dtype
            self._received = torch.zeros(world_size, longest, dtype=received_dtype, device=device)
        self.views: dict[ParameterBlock, Tensor] = {}
        for part, layout in zip(self._received, layouts, strict=True):
            self.views |= dict(zip(layout.blocks, layout.views(part), strict=True))

    def exchange(self) -> None:
        """Fills `views` with the directions of all ranks."""
        if self._process_group is None:
            return
        sent = self._part.to(self._received.dtype)
        # As bytes, since not every backend supports every type.
        _all_gather(self._received.view(-1).view(torch.uint8), sent.view(torch.uint8), group=self._process_group)
