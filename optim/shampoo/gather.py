"""Every rank's directions brought to every rank by one all-gather."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from optim.shampoo.blocks import Block


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
        sizes = [sum(block.numel for block in blocks) for blocks in blocks_of_rank]
        self._part = torch.zeros(max(sizes), dtype=dtype, device=device)
        self.own_N = self._part[: sizes[rank]]
        self._received = self._part[None]
        if self._process_group is not None:
            received_dtype = dtype if communication_dtype is None else communication_dtype
            self._received = torch.zeros(world_size, max(sizes), dtype=received_dtype, device=device)
        self.views: dict[Block, Tensor] = {}
        for part, blocks in zip(self._received, blocks_of_rank, strict=True):
            pieces = part[: sum(b.numel for b in blocks)].split([b.numel for b in blocks])
            self.views |= {block: piece.view(block.shape) for block, piece in zip(blocks, pieces, strict=True)}

    def exchange(self) -> None:
        """Fills `views` with the directions of all ranks."""
        if self._process_group is None:
            return
        sent = self._part.to(self._received.dtype)
        # As bytes: nothing is added up, and not every backend knows every type.
        dist.all_gather_into_tensor(
            self._received.view(-1).view(torch.uint8), sent.view(torch.uint8), group=self._process_group
        )
