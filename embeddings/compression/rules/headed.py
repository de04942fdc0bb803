"""The rule with heads: the heaviest rows are stored by one rule, the others by another.

Dimensions: N rows, H of them in the head.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows, expect, from_parts, rows_at, under

# Ids per rank: 4 bytes of ranks for every 32 bytes of bitmap.
BLOCK = 256
_BLOCK_BYTES = BLOCK // 8
# The first H ids, which need no bitmap, replace the H heaviest if they have this share of their weight.
_AS_GOOD = 0.99


class Headed(Compressed):
    """Some ids have their own row in `head`; the others are read from `tail`, in the order of their ids.

    Args:
        head: H rows.
        tail: the other N - H.
        bitmap: uint8 [ceil(N / 256) * 32], bit i (of byte i // 8, lowest first) is set if id i is in the head; None if
            the head is the ids below H.
        ranks: int32 [ceil(N / 256)], ids of the head in all earlier blocks of 256 ids; None without bitmap.
    """

    rule = "head"
    bitmap: Tensor | None
    ranks: Tensor | None

    def __init__(
        self, head: StoredRows, tail: Compressed, bitmap: Tensor | None = None, ranks: Tensor | None = None
    ) -> None:
        super().__init__(head.num_rows + tail.num_rows, head.dim)
        expect(head.dim == tail.dim, f"head of {head.dim} columns, tail of {tail.dim}")
        if bitmap is not None:
            blocks = -(-self.num_rows // BLOCK)
            expect(bitmap.dtype == torch.uint8 and bitmap.shape == (blocks * _BLOCK_BYTES,), "bitmap does not fit")
            expect(ranks is not None and ranks.dtype == torch.int32 and ranks.shape == (blocks,), "ranks do not fit")
            counts = _ones(bitmap).view(blocks, -1).sum(1)
            expect(int(counts.sum()) == head.num_rows, f"bitmap of {int(counts.sum())} ids for {head.num_rows} rows")
            assert ranks is not None
            expect(bool((ranks == counts.cumsum(0) - counts).all()), "ranks do not count the bitmap")
        self.head, self.tail = head, tail
        self.register_buffer("bitmap", bitmap)
        self.register_buffer("ranks", ranks)

    def forward(self, ids: Tensor) -> Tensor:
        in_head, position = self.place(ids)
        rows = self.tail(torch.where(in_head, 0, position))
        chosen = in_head.nonzero().squeeze(1)
        return rows.index_copy(0, chosen, self.head(position[chosen]))

    def place(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns for each id whether it is in the head, and its row there or in the tail."""
        if self.bitmap is None or self.ranks is None:
            in_head = ids < self.head.num_rows
            return in_head, torch.where(in_head, ids, ids - self.head.num_rows)
        block = ids // BLOCK
        bytes_of_block = self.bitmap.view(-1, _BLOCK_BYTES).index_select(0, block)
        place = ids % BLOCK
        # All bits of earlier bytes count, and the lower bits of its own byte.
        below = (place[:, None] - torch.arange(0, BLOCK, 8, device=ids.device)).clamp_(0, 8)
        masks = ((1 << below) - 1).to(torch.uint8)
        before = self.ranks.index_select(0, block).long() + _ones(bytes_of_block & masks).sum(1)
        own = bytes_of_block.gather(1, (place // 8)[:, None]).squeeze(1).long()
        in_head = (own >> (place % 8)) & 1 == 1
        return in_head, torch.where(in_head, before, ids - before)

    def spec(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "bitmap": self.bitmap is not None,
            "head": self.head.spec(),
            "tail": self.tail.spec(),
        }

    @classmethod
    def build(cls, spec: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "Headed":
        inner = spec["head"]
        head = rows_at(spec, parts, "head", rows=inner["rows"], dim=inner["dim"])
        tail = from_parts(spec["tail"], under(parts, "tail"))
        return cls(head, tail, parts["bitmap"], parts["ranks"]) if spec["bitmap"] else cls(head, tail)


def choose_head(weights: Tensor, rows: int) -> Tensor | None:
    """Returns the ids for a head of `rows` rows, or None if the first `rows` ids are as good.

    Args:
        weights: [N], the importance of every row.
        rows: H, 1 <= H < N.

    Returns:
        int64 [H] in increasing order, or None.
    """
    # numpy's partition needs a quarter of the memory of torch's topk.
    lightest = float(np.partition(weights.numpy(), len(weights) - rows)[len(weights) - rows])
    heavier, equal = ((weights > lightest).nonzero().squeeze(1), (weights == lightest).nonzero().squeeze(1))
    heaviest = torch.cat([heavier, equal[: rows - len(heavier)]])
    if float(weights[:rows].sum()) >= _AS_GOOD * float(weights[heaviest].sum()):
        return None
    return heaviest.sort().values


def membership(ids: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Returns the bitmap and ranks of `Headed` for these ids out of `num_rows`."""
    blocks = -(-num_rows // BLOCK)
    flags = torch.zeros(blocks * BLOCK, dtype=torch.uint8)
    flags[ids] = 1
    bits = flags.view(-1, 8)
    bitmap = bits[:, 0].clone()
    for place in range(1, 8):
        bitmap |= bits[:, place] << place
    counts = flags.view(blocks, BLOCK).sum(1)
    return bitmap, (counts.cumsum(0) - counts).to(torch.int32)


def bitmap_bytes(num_rows: int) -> int:
    """Returns the bytes of the bitmap and its ranks."""
    return -(-num_rows // BLOCK) * (_BLOCK_BYTES + 4)


def _ones(values: Tensor) -> Tensor:
    """Returns the number of bits set in each byte."""
    values = values - ((values >> 1) & 0x55)
    values = (values & 0x33) + ((values >> 2) & 0x33)
    return ((values + (values >> 4)) & 0x0F).long()
