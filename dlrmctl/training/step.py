"""A training step: forward, backward, a check on all ranks, and then the updates.

The backward pass is split at the embeddings, because FBGEMM updates the tables inside their backward: first the
backward of the dense network runs; then the ranks check that loss and gradients are finite; only then the backward of
the tables and the dense optimizer change weights.
"""

import zlib
from collections.abc import Callable
from dataclasses import astuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from dlrmctl.assembly.model import Model
from dlrmctl.data.batch import Batch
from dlrmctl.errors import UserError
from dlrmctl.optim.averaging import PrimalAveraging
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.state import StepSums
from dlrmctl.training.batches import NoiseProbe

_FINE, _BAD_LOSS, _BAD_GRADIENT = 0.0, 1.0, 2.0


class NotFiniteError(UserError):
    """Raised when the loss or a gradient is not finite."""


class TrainingStep:
    """Runs steps of one model.

    Args:
        model: the model to train; the optimizer of the tables is part of their backward.
        optimizer: of the dense network, possibly wrapped in averaging.
        ranks: all of them step together.
        precision: "bf16" runs the dense network under autocast.
        seed: of dropout, with the step and the rank.
        sparse_weight_decay: adds this multiple of an example's embeddings to their gradient.
        compress_after: number of steps before the exchange of embeddings is compressed, if it is.

    Attributes:
        lap: called with the name of each part at its end; for measurements.
        probe: estimates the noise of gradients at some steps; None for no estimates.
        table_scale: multiplies the gradients of tables. Their AdaGrad sums hold gradients of means over batches, so a
            batch that has grown c times, in which an example counts 1 / c as much, needs a scale of c to go with them.
    """

    def __init__(
        self,
        model: Model,
        optimizer: torch.optim.Optimizer | PrimalAveraging,
        ranks: Ranks,
        precision: str,
        *,
        seed: int = 0,
        sparse_weight_decay: float = 0.0,
        compress_after: int = 0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.ranks = ranks
        self.autocast = torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
        self.parameters = list(model.network.parameters())
        self.seed, self.sparse_weight_decay, self.compress_after = seed, sparse_weight_decay, compress_after
        self.lap: Callable[[str], None] = lambda part: None
        self.probe: NoiseProbe | None = None
        self.table_scale = 1.0

    def __call__(self, batch: Batch, step: int, *, stop: bool) -> tuple[StepSums, bool]:
        """Runs a step on this rank's part of the global batch.

        Args:
            step: counted from 1.
            stop: whether this rank was asked to stop.

        Returns:
            The sums of the step over all ranks, and whether any rank was asked to stop; the same on each rank.

        Raises:
            NotFiniteError: on every rank, before any weight is changed, if a loss or gradient is not finite.
        """
        exchange = self.model.sharded.exchange
        if exchange is not None:
            exchange.active = step > self.compress_after
        embeddings_BFD = self.model.embeddings(batch)
        cut_BFD = embeddings_BFD.detach().requires_grad_()
        wide = self.model.wide
        wide_B = None if wide is None else wide.module(batch.dense_BI, batch)
        self.lap("lookup")
        # Every step and rank has its own seed, so that a resumed run drops what a whole one does.
        dropped = zlib.crc32(f"dropout:{self.seed}:{step}:{self.ranks.rank}".encode())
        with self.autocast, self.model.network.dropping(dropped):
            logits_B = self.model.replicated(batch.dense_BI, cut_BFD)
        logits_B = logits_B.float()
        if wide_B is not None:
            cut_B = wide_B.detach().requires_grad_()
            logits_B = logits_B + cut_B
        whole = None if batch.weights_B is None else self._mean_weight_of_ranks(batch.weights_B)
        loss = _mean_loss(logits_B, batch, whole)
        self.lap("dense forward")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.lap("dense backward")
        assert cut_BFD.grad is not None
        if self.sparse_weight_decay:
            decayed = embeddings_BFD.detach()
            if batch.weights_B is not None and whole is not None:
                decayed = decayed * (batch.weights_B * (len(batch) / whole))[:, None, None]
            cut_BFD.grad.add_(decayed, alpha=self.sparse_weight_decay / len(batch))
        agreed = self._agree(loss.detach(), logits_B.detach(), batch, whole, cut_BFD.grad, step, stop)
        self.lap("check")
        if self.probe is not None and self.probe.is_due(step):
            shares_B = None
            if batch.weights_B is not None and whole is not None:
                shares_B = batch.weights_B * (len(batch) / whole)
            self.probe.take(batch, embeddings_BFD, wide_B, self.autocast, shares_B)
        if self.table_scale != 1:
            cut_BFD.grad.mul_(self.table_scale)
        embeddings_BFD.backward(cut_BFD.grad)
        if exchange is not None:
            exchange.active = False  # until the next step: scoring is exact
        if wide_B is not None:
            assert cut_B.grad is not None
            wide_B.backward(cut_B.grad.mul_(self.table_scale))
        self.lap("table update")
        self.optimizer.step()
        self.lap("dense update")
        return agreed

    def _mean_weight_of_ranks(self, weights_B: Tensor) -> Tensor:
        """The sum of the weights of the global batch over the number of ranks, whose gradients are averaged."""
        total = weights_B.sum(dtype=torch.float64)
        if self.ranks.world_size > 1:
            dist.all_reduce(total, group=self.ranks.group)
        # A batch without any weight has no gradient.
        return (total / self.ranks.world_size).clamp(min=torch.finfo(torch.float32).tiny).float()

    def _agree(
        self,
        loss: Tensor,
        logits_B: Tensor,
        batch: Batch,
        whole: Tensor | None,
        grad_BFD: Tensor,
        step: int,
        stop: bool,
    ) -> tuple[StepSums, bool]:
        """Sums over the ranks with one all-reduce, and raises on every rank if a loss or gradient is not finite."""
        ranks = self.ranks
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        # Euclidean norms, because torch has no fast maximum norm on CPU. They overflow for gradients above 2e19.
        gradient_size = torch.stack([*torch._foreach_norm(gradients), grad_BFD.sum()]).abs().sum()
        predicted_B, labels_B, examples = logits_B.sigmoid(), batch.labels_B, float(len(batch))
        parts = [loss, gradient_size, predicted_B.sum(), labels_B.sum()]
        if batch.weights_B is not None and whole is not None:
            w_B = batch.weights_B
            parts = [loss, gradient_size, w_B @ predicted_B, w_B @ labels_B, w_B.sum(), whole]
        on_device = torch.stack(parts).double()
        mean_loss, size, predicted, positives, *weights = on_device.tolist()  # waits for the device once
        weight, counted = weights or (examples, examples)
        sums = StepSums(
            examples=examples, loss=mean_loss * counted, positives=positives, predicted=predicted, weight=weight
        )
        troubles = [_FINE] * ranks.world_size
        if not abs(mean_loss) < torch.inf:
            troubles[ranks.rank] = _BAD_LOSS
        elif not size < torch.inf:
            troubles[ranks.rank] = _BAD_GRADIENT
        stops = float(stop)
        if ranks.world_size > 1:
            shared = torch.tensor([stops, *astuple(sums), *troubles], dtype=torch.float64, device=ranks.device)
            dist.all_reduce(shared, group=ranks.group)
            stops, *numbers = shared.tolist()
            sums, troubles = StepSums(*numbers[: -ranks.world_size]), numbers[-ranks.world_size :]
        # Averaged gradients spread a bad loss of one rank to all ranks, so losses, which name the rank, come first.
        for trouble, what in ((_BAD_LOSS, "loss"), (_BAD_GRADIENT, "gradient")):
            if trouble in troubles:
                raise NotFiniteError(
                    f"step {step}: the {what} on rank {troubles.index(trouble)} is not finite; "
                    "this step changed no weights",
                    "lower --dense-lr, --sparse-lr or --qr-lr, or add --warmup-steps; --resume continues from the last "
                    "checkpoint",
                )
        return sums, stops > 0


def _mean_loss(logits_B: Tensor, batch: Batch, whole: Tensor | None) -> Tensor:
    """The mean log loss of this rank's examples; with weights their weighted sum over `whole`."""
    if batch.weights_B is None or whole is None:
        return functional.binary_cross_entropy_with_logits(logits_B, batch.labels_B)
    losses_B = functional.binary_cross_entropy_with_logits(logits_B, batch.labels_B, reduction="none")
    return batch.weights_B @ losses_B / whole
