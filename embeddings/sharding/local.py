"""Lookups of one rank that holds every table: TorchRec's kernels without the exchange."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag

from dlrmctl.embeddings.combine import Columns
from dlrmctl.embeddings.ids import SparseIds


@dataclass(frozen=True)
class _Kernel:
    module: nn.Module  # an FBGEMM kernel, which updates its tables in backward
    first: int
    keys: list[str]
    widths: list[int]


class LocalBags:
    """Looks up and sums the rows of every key.

    Distributing a batch over one rank copies and wraps it several times, which for a batch of 128 takes longer than the
    lookups. State dicts and optimizers remain with the sharded module that owns the kernels.

    Args:
        kernels: kernels with the names of their tables, which are their keys; together they have `keys`.
        keys: the keys of batches, in order.

    Raises:
        ValueError: if the keys of a kernel are not adjacent in `keys`.
    """

    def __init__(
        self,
        kernels: Sequence[tuple[BatchedFusedEmbeddingBag, list[str]]],
        keys: list[str],
    ) -> None:
        self._kernels: list[_Kernel] = []
        for kernel, names in kernels:
            first = keys.index(names[0])
            if keys[first : first + len(names)] != names:
                raise ValueError(f"the kernel with keys {names} needs them in this order, next to each other: {keys}")
            widths = [table.embedding_dim for table in kernel.config.embedding_tables]
            self._kernels.append(_Kernel(kernel.emb_module, first, names, widths))
        self._counting: Tensor | None = None

    def __call__(self, rows: SparseIds) -> list[Columns]:
        values, batch_size = rows.values.long(), rows.batch_size
        one_hot = rows.lengths_KB is None
        offsets = self._count_to(values.numel(), values.device) if one_hot else self._offsets(rows)
        per_key = rows.values_per_key() if len(self._kernels) > 1 else []
        results = []
        for kernel in self._kernels:
            start, end = kernel.first * batch_size, (kernel.first + len(kernel.keys)) * batch_size
            if one_hot:
                pooled = kernel.module(values[start:end], offsets[: end - start + 1])
            elif len(self._kernels) == 1:
                pooled = kernel.module(values, offsets)
            else:
                begin = sum(per_key[: kernel.first])
                stop = begin + sum(per_key[kernel.first : kernel.first + len(kernel.keys)])
                pooled = kernel.module(values[begin:stop], offsets[start : end + 1] - begin)
            results.append(Columns(pooled, kernel.keys, kernel.widths))
        return results

    @staticmethod
    def _offsets(rows: SparseIds) -> Tensor:
        """Returns the start of each bag's values, and the end of the last; int64 [K x B + 1]."""
        assert rows.lengths_KB is not None
        return nn.functional.pad(rows.lengths_KB.reshape(-1).cumsum(0), (1, 0))

    def _count_to(self, total: int, device: torch.device) -> Tensor:
        """Returns 0, 1, ..., total: the offsets of bags of one value."""
        if self._counting is None or self._counting.numel() != total + 1 or self._counting.device != device:
            self._counting = torch.arange(total + 1, device=device)
        return self._counting
