"""A training step: forward, backward, a check on all ranks, and then the updates.

The backward pass is split at the embeddings, because FBGEMM updates the tables inside their backward: first the
backward of the dense network runs; then the ranks check that loss and gradients are finite; only then the backward of
the tables and the dense optimizer change weights.

The host reads the result of the check before the updates, for which a GPU waits. With late checks the updates are
enqueued at once, change nothing where the check has failed, and the host reads the result some steps later.
"""

import zlib
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from dlrmctl.assembly.model import Model
from dlrmctl.data.batch import Batch
from dlrmctl.errors import UserError
from dlrmctl.optim.averaging import PrimalAveraging
from dlrmctl.optim.guarded import GuardedSteps
from dlrmctl.optim.shampoo import DistributedShampoo
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.state import StepSums
from dlrmctl.training.batches import NoiseProbe
from dlrmctl.training.outcomes import Outcomes
from dlrmctl.training.pipeline import ReadyBatch, ready

_LAG = 2  # steps that a GPU may have before it while their results are not read


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
        late_checks: whether the host reads the results of a step later, and the device keeps all state meanwhile if
            they are not finite.

    Attributes:
        stopping: whether any rank was asked to stop, in the steps whose results were read.
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
        late_checks: bool = False,
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
        self.stopping = False
        base = optimizer.optimizer if isinstance(optimizer, PrimalAveraging) else optimizer
        if isinstance(base, DistributedShampoo):
            base.check_gradients = False  # all gradients are checked here
        self._outcomes = Outcomes(_LAG if late_checks else 0)
        self._guarded = GuardedSteps(optimizer, most_undone=_LAG + 1) if late_checks else None
        self._failed = torch.zeros((), dtype=torch.bool, device=ranks.device)  # in this step or an earlier one
        self._checked = 0  # number of steps
        self._constants: dict[float, Tensor] = {}
        self._sums = StepSums()  # of the steps whose results were read, and not yet returned

    def __call__(
        self,
        batch: Batch | ReadyBatch,
        step: int,
        *,
        stop: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> StepSums:
        """Runs a step on this rank's part of the global batch.

        Args:
            batch: on the device.
            step: counted from 1.
            stop: whether this rank was asked to stop; the next `stopping` tells all ranks.
            meanwhile: called between the parts of the step, the same number of times on every rank; see
                `Pipeline.advance`.

        Returns:
            The sums over all ranks, the same on each rank. They are of this step, or, if results are read later, of
            earlier ones.

        Raises:
            NotFiniteError: on every rank if a loss or gradient is not finite: in this step, or in one before it whose
                result is read now. That step and later ones have changed no weight and no state.
        """
        exchange = self.model.sharded.exchange
        if exchange is not None:
            exchange.active = step > self.compress_after
        now = batch if isinstance(batch, ReadyBatch) else ready(batch, self.model)
        batch, wide = now.batch, self.model.wide
        for rows in now.rows:  # of all before the first is waited for
            rows.begin_lookup()
        embeddings_BFD = self.model.embeddings(now.tables)
        cut_BFD = embeddings_BFD.detach().requires_grad_()
        wide_B = None if wide is None else wide.sharded.dmp(now.wide)
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
        meanwhile()
        self.lap("load")
        for p in self.parameters:
            p.grad = None  # torch's zero_grad takes as long as a layer of a small batch
        loss.backward()
        self.lap("dense backward")
        meanwhile()
        self.lap("load")
        assert cut_BFD.grad is not None
        if self.sparse_weight_decay:
            decayed = embeddings_BFD.detach()
            if batch.weights_B is not None and whole is not None:
                decayed = decayed * (batch.weights_B * (len(batch) / whole))[:, None, None]
            cut_BFD.grad.add_(decayed, alpha=self.sparse_weight_decay / len(batch))
        self._check(loss.detach(), logits_B.detach(), batch, whole, cut_BFD.grad, step, stop)
        self.lap("check")
        if self.probe is not None and self.probe.is_due(step):
            self._read(all_of_them=True)
            shares_B = None
            if batch.weights_B is not None and whole is not None:
                shares_B = batch.weights_B * (len(batch) / whole)
            self.probe.take(batch, embeddings_BFD, wide_B, self.autocast, shares_B)
        if self.table_scale != 1:
            cut_BFD.grad.mul_(self.table_scale)
        embeddings_BFD.backward(self._unless_failed(cut_BFD.grad))
        if exchange is not None:
            exchange.active = False  # until the next step: scoring is exact
        if wide_B is not None:
            assert cut_B.grad is not None
            wide_B.backward(self._unless_failed(cut_B.grad.mul_(self.table_scale)))
        self.lap("table update")
        if self._guarded is None:
            self.optimizer.step()
        else:
            self._guarded.step(self._failed)
            self._read(all_of_them=False)
        self.lap("dense update")
        meanwhile()
        self.lap("load")
        sums, self._sums = self._sums, StepSums()
        return sums

    def finish(self) -> StepSums:
        """Reads the results of all steps so far; every rank must call it. Returns the sums that no step has returned.

        Raises:
            NotFiniteError: as a step.
        """
        self._read(all_of_them=True)
        sums, self._sums = self._sums, StepSums()
        return sums

    def _unless_failed(self, gradient: Tensor) -> Tensor:
        """Returns the gradient of tables; 0 where the step has failed, since row-wise AdaGrad then changes nothing."""
        return gradient if self._guarded is None else gradient.masked_fill_(self._failed, 0.0)

    def _mean_weight_of_ranks(self, weights_B: Tensor) -> Tensor:
        """The sum of the weights of the global batch over the number of ranks, whose gradients are averaged."""
        total = weights_B.sum(dtype=torch.float64)
        if self.ranks.world_size > 1:
            dist.all_reduce(total, group=self.ranks.group)
        # A batch without any weight has no gradient.
        return (total / self.ranks.world_size).clamp(min=torch.finfo(torch.float32).tiny).float()

    def _check(
        self,
        loss: Tensor,
        logits_B: Tensor,
        batch: Batch,
        whole: Tensor | None,
        grad_BFD: Tensor,
        step: int,
        stop: bool,
    ) -> None:
        """Sums over the ranks with one all-reduce, and finds out whether all losses and gradients are finite."""
        ranks = self.ranks
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        # Euclidean norms, because torch has no fast maximum norm on CPU. They overflow for gradients above 2e19.
        gradient_size = torch.stack([*torch._foreach_norm(gradients), grad_BFD.sum()]).abs().sum()
        predicted_B, labels_B, examples = logits_B.sigmoid(), batch.labels_B, float(len(batch))
        parts = [loss, gradient_size, predicted_B.sum(), labels_B.sum()]
        if batch.weights_B is not None and whole is not None:
            w_B = batch.weights_B
            parts = [loss, gradient_size, w_B @ predicted_B, w_B @ labels_B, w_B.sum(), whole]
        mean_loss, size, predicted, positives, *weights = torch.stack(parts).double().unbind()
        weight, counted = weights or (self._constant(examples), examples)
        # What each rank has seen, in places of its own, which name the rank of a trouble.
        seen = [self._constant(0.0)] * (2 * ranks.world_size)
        seen[2 * ranks.rank : 2 * ranks.rank + 2] = mean_loss, size
        sums = [self._constant(examples), mean_loss * counted, positives, predicted, weight]
        shared = torch.stack([self._constant(float(stop)), *sums, *seen])
        if ranks.world_size > 1:
            dist.all_reduce(shared, group=ranks.group)
        self._checked += 1
        self._outcomes.add(step, shared)
        if self._guarded is None:
            self._read(all_of_them=True)
        else:
            self._failed |= ~shared[-2 * ranks.world_size :].sum().isfinite()

    def _read(self, *, all_of_them: bool) -> None:
        """Reads results of steps.

        Raises:
            NotFiniteError: for the first step that failed.
        """
        for step, (stops, *numbers) in self._outcomes.read(all_of_them=all_of_them):
            seen = numbers[-2 * self.ranks.world_size :]
            # Averaged gradients spread a bad loss of one rank to all ranks, so losses, which name the rank, come first.
            for what, values in (("loss", seen[::2]), ("gradient", seen[1::2])):
                for rank, value in enumerate(values):
                    if not abs(value) < torch.inf:
                        self._refuse(step, what, rank)
            self._sums += StepSums(*numbers[: -len(seen)])
            self.stopping |= stops > 0

    def _constant(self, value: float) -> Tensor:
        """float64 on the device, made once."""
        if value not in self._constants:
            self._constants[value] = torch.tensor(value, dtype=torch.float64, device=self.ranks.device)
        return self._constants[value]

    def _refuse(self, step: int, what: str, rank: int) -> None:
        if self._guarded is not None:
            later = len(self._outcomes)  # steps after the failed one
            self._guarded.undo(self._guarded.taken - (self._checked - 1 - later))
            self._failed.zero_()
        self._outcomes.clear()
        raise NotFiniteError(
            f"step {step}: the {what} on rank {rank} is not finite; this step changed no weights",
            "lower --dense-lr, --sparse-lr or --qr-lr, or add --warmup-steps; --resume continues from the last "
            "checkpoint",
        )


def _mean_loss(logits_B: Tensor, batch: Batch, whole: Tensor | None) -> Tensor:
    """The mean log loss of this rank's examples; with weights their weighted sum over `whole`."""
    if batch.weights_B is None or whole is None:
        return functional.binary_cross_entropy_with_logits(logits_B, batch.labels_B)
    losses_B = functional.binary_cross_entropy_with_logits(logits_B, batch.labels_B, reduction="none")
    return batch.weights_B @ losses_B / whole
