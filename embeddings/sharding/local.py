"""Lookups of one rank that holds every table: TorchRec's kernels without the exchange."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from torch import Tensor, nn
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag

from dlrmctl.embeddings.combine import Columns
from dlrmctl.embeddings.ids import SparseIds
from dlrmctl.embeddings.parts import segment_sum
from dlrmctl.embeddings.wide import WIDTH


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
        kernels: kernels with the names of their tables; together, their tables have `keys`.
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
        for kernel, _ in kernels:
            tables = kernel.config.embedding_tables
            names = [key for table in tables for key in table.feature_names]
            first = keys.index(names[0])
            if keys[first : first + len(names)] != names:
                raise ValueError(f"the kernel with keys {names} needs them in this order, next to each other: {keys}")
            widths = [table.embedding_dim for table in tables for _ in table.feature_names]
            if kernel.emb_module.current_device.type == "cpu":  # `IdCheck` has seen the ids
                kernel.emb_module.bounds_check_mode_int = BoundsCheckMode.NONE.value
            self._kernels.append(_Kernel(kernel.emb_module, first, names, widths))
        self._counting: Tensor | None = None

    def __call__(self, rows: SparseIds) -> list[Columns]:
        values, batch_size = rows.values.long(), rows.batch_size
        one_hot, weights = rows.lengths_KB is None, rows.weights
        offsets = self._count_to(values.numel(), values.device) if one_hot else self._offsets(rows)
        per_key = rows.values_per_key() if len(self._kernels) > 1 else []
        results = []
        for kernel in self._kernels:
            start, end = kernel.first * batch_size, (kernel.first + len(kernel.keys)) * batch_size
            if one_hot:
                mine = None if weights is None else weights[start:end]
                pooled = kernel.module(values[start:end], offsets[: end - start + 1], mine)
            elif len(self._kernels) == 1:
                pooled = kernel.module(values, offsets, weights)
            else:
                begin = sum(per_key[: kernel.first])
                stop = begin + sum(per_key[kernel.first : kernel.first + len(kernel.keys)])
                mine = None if weights is None else weights[begin:stop]
                pooled = kernel.module(values[begin:stop], offsets[start : end + 1] - begin, mine)
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


class LocalWeights:
    """Sums the first-order weights of every example, in the memory of FBGEMM's kernel on CPU and by its formula.

    Dimensions: N weights that are looked up, R rows of all tables.

    Args:
        kernels: one kernel of `WideTables` with the names of its tables.
        keys: the keys of batches, in order.
    """

    def __init__(self, kernels: Sequence[tuple[BatchedFusedEmbeddingBag, list[str]]], keys: list[str]) -> None:
        ((self._kernel, names),) = kernels
        assert names == keys
        rows = torch.tensor([table.num_embeddings for table in self._kernel.config.embedding_tables])
        self._firsts_K = rows.cumsum(0) - rows
        self._grads_R = torch.zeros(int(rows.sum()))  # 0 between steps

    def __call__(self, rows: SparseIds) -> list[Columns]:
        lengths_KB = rows.lengths_KB
        if lengths_KB is None:
            places_N = (rows.values.view(len(rows.keys), -1) + self._firsts_K.unsqueeze(1)).view(-1)
        else:
            places_N = rows.values + self._firsts_K.repeat_interleave(lengths_KB.sum(1), output_size=len(rows.values))
        weights = self._kernel.emb_module.weights_host
        sums_B = _SumWeights.apply(weights, self, places_N, lengths_KB, rows.batch_size, rows.weights)
        return [Columns(sums_B.unsqueeze(1), ["sum"], [1])]

    def update(self, places_N: Tensor, grads_N: Tensor) -> None:
        """Takes a step of row-wise AdaGrad; a place that occurs several times has the sum of its gradients."""
        module: Any = self._kernel.emb_module
        weights_R, sums_R, grads_R = first_column(module.weights_host.detach()), module.momentum1_host, self._grads_R
        grads_R.scatter_add_(0, places_N, grads_N)
        # From here on, all occurrences of a place compute and write the same numbers.
        grads_N = grads_R.index_select(0, places_N)
        grads_R.index_fill_(0, places_N, 0.0)
        sums_N = sums_R.index_select(0, places_N).addcmul_(grads_N, grads_N, value=1 / WIDTH)
        sums_R.scatter_(0, places_N, sums_N)
        lr = self._kernel.fused_optimizer.param_groups[0]["lr"]
        steps_N = grads_N.mul_(lr).div_(sums_N.sqrt_().add_(module.optimizer_args.eps))
        weights_R.scatter_(0, places_N, weights_R.index_select(0, places_N).sub_(steps_N))


def first_column(weights: Tensor) -> Tensor:
    """Returns a view of the weights in the memory of a kernel, [R]."""
    return weights.view(-1, WIDTH)[:, 0]


class _SumWeights(torch.autograd.Function):
    """Sums weights per example; its backward updates them, as that of FBGEMM's kernels does."""

    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        local: LocalWeights,
        places_N: Tensor,
        lengths_KB: Tensor | None,
        batch_size: int,
        factors_N: Tensor | None,
    ) -> Tensor:
        ctx.local, ctx.places_N, ctx.lengths_KB, ctx.factors_N = local, places_N, lengths_KB, factors_N
        found_N = first_column(weights).index_select(0, places_N)
        if factors_N is not None:
            found_N = found_N * factors_N
        sums = found_N if lengths_KB is None else segment_sum(found_N, lengths_KB.reshape(-1))
        return sums.view(-1, batch_size).sum(0, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        grad_B, lengths_KB = grads[0].float(), ctx.lengths_KB
        if lengths_KB is None:
            grads_N = grad_B.repeat(len(ctx.places_N) // len(grad_B))
        else:
            grads_N = grad_B.repeat(len(lengths_KB)).repeat_interleave(lengths_KB.reshape(-1))
        ctx.local.update(ctx.places_N, grads_N if ctx.factors_N is None else grads_N * ctx.factors_N)
        return None, None, None, None, None, None
