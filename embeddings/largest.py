"""Rows cut to their largest numbers, as a model has seen them whose ranks exchanged no others."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def keep_largest(values_ND: Tensor, k: int) -> Tensor:
    """Returns the rows with 0 in place of all but their `k` numbers of largest magnitude."""
    columns_NK = values_ND.abs().topk(k, dim=1, sorted=False).indices
    return torch.zeros_like(values_ND).scatter_(1, columns_NK, values_ND.gather(1, columns_NK))


@torch.no_grad()
def cut_rows(tables: Mapping[str, Any], k: int) -> list[tuple[Tensor, Tensor]]:
    """Cuts the rows of this rank's tables in place; returns its shards with what they lost.

    Args:
        tables: see `sharding.shard.sparse_state`; states of optimizers are left alone.
    """
    lost = []
    for name, sharded in tables.items():
        if name.endswith("/weight"):
            for piece in sharded.local_shards():
                cut_RD = keep_largest(piece.tensor, k)
                lost.append((piece.tensor, piece.tensor - cut_RD))
                piece.tensor.copy_(cut_RD)
    return lost


@contextmanager
def rows_cut(tables: Mapping[str, Any], k: int | None) -> Iterator[None]:
    """Context manager in which rows are cut; afterwards they are what they were, to the bit. None cuts nothing."""
    lost = [] if k is None else cut_rows(tables, k)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, rest in lost:  # where one is not 0, the other is
                tensor.add_(rest)
