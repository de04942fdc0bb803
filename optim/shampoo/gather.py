"""Every rank's directions brought to every rank by one all-gather."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from optim.shampoo.blocks import Block
from optim.shampoo.memory import Layout

# The second is its name before torch 2.13.
_all_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


class DirectionBuffer:
    """One flat buffer of directions per rank, and views of all of them by block.

    A rank's part starts with its own blocks; parts are padded to the longest, since an all-gather moves equal parts.
    Every rank takes part in every exchange, whether or not it has anything to say. On one rank nothing moves.

    Args:
        blocks_of_rank: the blocks of every rank, in the order they lie in its part.
        communication_dtype: what travels; None for `dtype` itself. Then every rank, the owner included, uses the
            rounded value, so that replicas stay equal.
    """

    def __init__(
        self,
        blocks_of_rank: Sequence[Sequence[Block]],
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
        self.views: dict[Block, Tensor] = {}
        for part, layout in zip(self._received, layouts, strict=True):
            self.views |= dict(zip(layout.blocks, layout.views(part), strict=True))

    def exchange(self) -> None:
        """Fills `views` with the directions of all ranks."""
        if self._process_group is None:
            return
        sent = self._part.to(self._received.dtype)
        # As bytes: nothing is added up, and not every backend knows every type.
        _all_gather(self._received.view(-1).view(torch.uint8), sent.view(torch.uint8), group=self._process_group)
