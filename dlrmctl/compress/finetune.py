"""Training a compressed model on fresh data, and beside it the trained model itself on the same batches.

Fresh examples improve any model a little. So what fine-tuning repairs is the difference to the uncompressed control.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from data.batch import Batch
from data.reader import Reader
from dlrmctl.build import build_dense_optimizer
from dlrmctl.checkpoint import load
from dlrmctl.compress.progress import Telling
from dlrmctl.config import Config
from dlrmctl.errors import UserError
from dlrmctl.optimstate import dense_state
from dlrmctl.ranks import Ranks
from embeddings.collection import CompositionalEmbeddings
from embeddings.compression.adagrad import RowwiseAdagrad, Trained, shared_state
from embeddings.compression.restore import stored_like
from embeddings.compression.rules import Compressed
from embeddings.fused import qr_table_names
from models import DLRM

_MOST_GROWTH = 10  # of the loss since the first step, before training is called diverging
Sums = Callable[[str], Tensor | None]
Compose = Callable[[Mapping[str, Compressed]], CompositionalEmbeddings]


@dataclass(frozen=True)
class FineTuning:
    """How to fine-tune.

    Attributes:
        reader: of fresh data; shuffled, whole batches.
        steps: at most those of one pass.
        lr_factor: of the run's learning rates at the first step; it falls to 0 in a straight line.
        mlps: whether the dense network is trained too.
        fresh: whether the model has not seen this data.
    """

    reader: Reader
    steps: int
    lr_factor: float
    mlps: bool
    fresh: bool


@dataclass(frozen=True)
class Tuned:
    """A model after fine-tuning.

    Attributes:
        tables: all of them, as they are stored.
        network: the dense half.
        fixed: names of the tables that could not be trained.
        loss: mean log loss of the last tenth of the steps.
    """

    tables: dict[str, Compressed]
    network: nn.Module
    fixed: tuple[str, ...]
    loss: float


class Tuner:
    """Fine-tunes models of one run.

    Args:
        compose: gives the embedding module over tables by name.
        sums: the state of row-wise AdaGrad by table.
        network: the trained dense half; copied.
        config: of the run.
        checkpoint: holds the state of the dense optimizer.
    """

    def __init__(
        self, compose: Compose, sums: Sums, network: nn.Module, config: Config, checkpoint: Path, ranks: Ranks
    ) -> None:
        self._compose, self._sums, self._network = compose, sums, network
        self._config, self._checkpoint, self._ranks = config, checkpoint, ranks

    def tune(self, models: Mapping[str, Mapping[str, Compressed]], how: FineTuning, tell: Telling) -> dict[str, Tuned]:
        """Trains models, given by name as all their tables, on the same batches.

        Raises:
            UserError: if training diverges, or trained numbers cannot be stored.
        """
        students = {name: self._student(tables, how) for name, tables in models.items()}
        last = max(1, how.steps // 10)
        with closing(how.reader.batches(epoch=0)) as batches:  # type: ignore[type-var]
            for step, batch in zip(range(how.steps), batches, strict=False):
                for name, student in students.items():
                    student.step(batch, 1 - step / how.steps)
                    first, loss = student.losses[0], student.losses[-1]
                    if not loss <= min(_MOST_GROWTH * first, torch.finfo().max):  # NaN is not either
                        raise UserError(
                            f"--finetune-lr {how.lr_factor:g}: training diverges, the {name} model's log loss went "
                            f"from {first:.4g} to {loss:.4g} at step {step + 1:,}",
                            "a lower --finetune-lr",
                        )
                if tell.due or step + 1 == how.steps:
                    losses = ", ".join(f"{name} {student.mean_loss(last):.4g}" for name, student in students.items())
                    tell(f"fine-tuned {step + 1:,} of {how.steps:,} steps: log loss {losses}")
        return {name: student.finish(last) for name, student in students.items()}

    def _student(self, tables: Mapping[str, Compressed], how: FineTuning) -> "_Student":
        twins: dict[str, Compressed] = {}
        trained: list[Trained] = []
        fixed: list[str] = []
        optim = self._config.optim
        assert optim.qr_lr is not None
        qr_tables = qr_table_names(self._compose(tables))
        for name, table in tables.items():
            sums = self._sums(name)
            assert sums is not None, "checkpoints of runs have it"
            if not table.can_train:
                twins[name] = table
                fixed.append(name)
                continue
            twins[name] = table.trainable(sparse=True)
            lr = how.lr_factor * (optim.qr_lr if name in qr_tables else optim.sparse_lr)
            states = shared_state(table, sums)
            trained += [Trained(value, states[key], lr) for key, value in twins[name].named_parameters()]
        network = copy.deepcopy(self._network).train()
        optimizer = None
        if how.mlps:
            optimizer = build_dense_optimizer(optim, network, self._ranks)
            load(self._checkpoint, {"optimizer": dense_state(optimizer, network)}, self._ranks)
            assert optim.dense_lr is not None
        model = DLRM(self._compose(twins), network)
        rows = RowwiseAdagrad(trained, eps=optim.sparse_eps)
        return _Student(
            dict(tables), twins, tuple(fixed), model, rows, optimizer, how.lr_factor * (optim.dense_lr or 0)
        )


class _Student:
    """A model in training."""

    def __init__(
        self,
        tables: dict[str, Compressed],
        twins: dict[str, Compressed],
        fixed: tuple[str, ...],
        model: DLRM,
        rows: RowwiseAdagrad,
        optimizer: torch.optim.Optimizer | None,
        dense_lr: float,
    ) -> None:
        self.tables, self.twins, self.fixed, self.model = tables, twins, fixed, model
        self.rows, self.optimizer, self.dense_lr = rows, optimizer, dense_lr
        self.losses: list[float] = []

    def step(self, batch: Batch, factor: float) -> None:
        logits_B = self.model(batch.dense_BI, batch.kjt())
        loss = functional.binary_cross_entropy_with_logits(logits_B, batch.labels_B)
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.rows.step(factor)
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = factor * self.dense_lr
            self.optimizer.step()
        self.losses.append(float(loss.detach()))

    def mean_loss(self, last: int) -> float:
        losses = self.losses[-last:]
        return sum(losses) / len(losses)

    def finish(self, last: int) -> Tuned:
        """The tables in the format they came in."""
        stored = {}
        for name, table in self.tables.items():
            try:
                stored[name] = table if name in self.fixed else stored_like(self.twins[name], table)
            except ValueError as problem:
                raise UserError(f"table {name}: {problem}", "a lower --finetune-lr") from None
        return Tuned(stored, self.model.dense.eval(), self.fixed, self.mean_loss(last))
