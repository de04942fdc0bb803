"""Row-wise AdaGrad inside the backward pass, so that tables need neither gradient tensors nor another optimizer.

For each row in the batch, with g the sum of the gradients of its occurrences:

    s += mean over columns of g^2;   w -= lr g / (sqrt(s) + eps)

This is FBGEMM's EXACT_ROWWISE_ADAGRAD: one float32 of state per row, initially 0. Every backward is a step, so
gradients of tables cannot be accumulated.
"""

from collections.abc import Iterator
from typing import Any

from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import nn
from torchrec.distributed.batched_embedding_kernel import BaseBatchedEmbedding, BaseBatchedEmbeddingBag
from torchrec.distributed.types import ShardedModule
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from dlrmctl.embeddings.collection import CompositionalEmbeddings

# TorchRec groups tables with equal optimizer settings into one kernel, which has one learning rate. It compares this
# key too, but does not pass it to the kernel.
_GROUP_KEY = "_batch_key"
SPARSE, QR = "sparse", "qr"


def attach_rowwise_adagrad(
    embeddings: CompositionalEmbeddings, *, sparse_lr: float, qr_lr: float, eps: float = 1e-8
) -> None:
    """Configures row-wise AdaGrad in backward for every table; call it before sharding.

    Args:
        sparse_lr: learning rate of tables whose rows are used directly: full, hashed, and the head of a "head".
        qr_lr: learning rate of tables whose rows are combined. The two rates stay separate even if they are equal.
        eps: added to the root.

    Raises:
        ValueError: for a learning rate below 0 or an eps that is not above 0.
    """
    for name, value in (("sparse_lr", sparse_lr), ("qr_lr", qr_lr)):
        if not value >= 0:
            raise ValueError(f"{name}={value} must be at least 0")
    if not eps > 0:
        raise ValueError(f"{eps=} must be above 0: a row's first gradient may be 0")
    qr_tables = embeddings.combined_tables
    for name, weight in embeddings.named_parameters():
        is_qr = name.split(".")[-2] in qr_tables
        settings = {"lr": qr_lr if is_qr else sparse_lr, "eps": eps, _GROUP_KEY: QR if is_qr else SPARSE}
        # What TorchRec reads. torch's function that sets them makes an optimizer and a hook for each table as well, and
        # its package takes a quarter of a second to load.
        described: Any = weight
        described._optimizer_classes, described._optimizer_kwargs = [RowWiseAdagrad], [settings]


def kernels(model: nn.Module) -> Iterator[tuple[BaseBatchedEmbedding | BaseBatchedEmbeddingBag, list[str]]]:
    """Yields every lookup kernel of this rank's shards with the names of its tables."""
    for module in model.modules():
        if not isinstance(module, ShardedModule):
            continue
        for lookup in module._lookups:
            for kernel in lookup.modules():
                if isinstance(kernel, BaseBatchedEmbedding | BaseBatchedEmbeddingBag):
                    yield kernel, [table.name for table in kernel.config.embedding_tables]


class LearningRates:
    """Sets the learning rates of this rank's kernels.

    Args:
        model: the sharded model.
        qr_tables: names of the tables that follow `qr_lr`.
    """

    def __init__(self, model: nn.Module, qr_tables: set[str]) -> None:
        self._kernels = []
        for kernel, names in kernels(model):
            groups = {name in qr_tables for name in names}
            assert len(groups) == 1, f"tables with different learning rates share a kernel: {names}"
            assert isinstance(kernel.emb_module, SplitTableBatchedEmbeddingBagsCodegen)
            self._kernels.append((kernel, groups.pop()))
        self._now: tuple[float, float] | None = None

    def set(self, *, sparse_lr: float, qr_lr: float) -> None:
        """Sets the rates from the next backward on."""
        if self._now == (sparse_lr, qr_lr):
            return
        for kernel, is_qr in self._kernels:
            lr = qr_lr if is_qr else sparse_lr
            kernel.emb_module.set_learning_rate(lr)
            # TorchRec writes this into the kernel on every step() or zero_grad().
            for group in kernel.fused_optimizer.param_groups:
                group["lr"] = lr
        self._now = (sparse_lr, qr_lr)
