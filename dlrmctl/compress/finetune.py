"""Fine-tunes a compressed model on fresh data, and the uncompressed model on the same batches as a control.

Fresh examples improve any model, so the effect on the compression is the difference from the control.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlrmctl.assembly.optimizers import build_dense_optimizer, dense_state
from dlrmctl.compress.request import FineTuneRequest
from dlrmctl.compress.trial import Trial
from dlrmctl.console.console import print_table, warn
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import with_error
from dlrmctl.data.batch import Batch
from dlrmctl.data.reader import Reader
from dlrmctl.data.source import Source
from dlrmctl.data.store.store import Store
from dlrmctl.datasets.open import open_reader
from dlrmctl.embeddings.compression.adagrad import RowwiseAdagrad, Trained, shared_state
from dlrmctl.embeddings.compression.latent import LatentCodes, latent_state, with_latent_rows
from dlrmctl.embeddings.compression.rules.pack import stored_like
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.embeddings.module import FeatureEmbeddings
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.checkpoint import load
from dlrmctl.rundir.state import SavedState
from dlrmctl.settings.config import Config
from dlrmctl.settings.stores import store_place

_MOST_GROWTH = 10  # factor of the loss since the first step above which training diverges
Sums = Callable[[str], Tensor | None]
Compose = Callable[[Mapping[str, Compressed]], FeatureEmbeddings]


@dataclass(frozen=True)
class FineTuning:
    """Data and settings of a fine-tuning.

    Attributes:
        reader: of fresh data, with shuffled full batches.
        steps: at most one pass.
        lr_factor: factor of the run's learning rates at the first step; it decays linearly to 0.
        mlps: whether to train the dense network.
        codes: whether to train the codes of rows, and not their codebooks alone.
        rounded: whether to compute with rows of few bits as they are stored.
        fresh: whether the model was not trained on this data.
    """

    reader: Reader
    steps: int
    lr_factor: float
    mlps: bool
    codes: bool
    rounded: bool
    fresh: bool


@dataclass(frozen=True)
class Tuned:
    """A model after fine-tuning.

    Attributes:
        tables: all tables, as stored.
        network: the dense parameters.
        fixed: names of the tables that could not be trained.
        loss: mean log loss of the last tenth of the steps.
    """

    tables: dict[str, Compressed]
    network: nn.Module
    fixed: tuple[str, ...]
    loss: float


def open_fresh(request: FineTuneRequest, config: Config, trained_on: SavedState, ranks: Ranks) -> FineTuning:
    """Opens the data to fine-tune on.

    Args:
        trained_on: the state of the run's checkpoint.

    Raises:
        UserError, DataError: if it is missing, has other ids, or too few examples.
    """
    source: Source = Store(store_place(request.data, config.data))
    if source.vocabulary_fingerprint() != trained_on.vocabulary:
        raise UserError(
            f"--finetune-data {request.data} has other ids than the training data of the run",
            "prepare it with the same vocabulary: dlrmctl prepare criteo NEW_FILES --vocabulary-from STORE -o DIR",
        )
    fresh = source.fingerprint() != trained_on.data
    if not fresh:
        warn(
            f"--finetune-data {request.data} is the training data of the model. A second pass makes these "
            "models worse, including the uncompressed control; use fresh data"
        )
    examples, batch_size = source.num_examples("train"), config.train.batch_size
    if examples < batch_size:
        raise UserError(
            f"--finetune-data {request.data} has {examples:,} training examples, less than one batch of {batch_size:,}",
            "use more data or a smaller --batch-size",
        )
    reader = open_reader(config, source, "train", ranks, training=True)
    steps = reader.num_batches if request.steps is None else request.steps
    if steps > reader.num_batches:
        raise UserError(
            f"--finetune-steps {steps:,}: {request.data} has {reader.num_batches:,} batches of {reader.batch_size:,}",
            "use fewer steps or a smaller --batch-size; examples are not repeated",
        )
    return FineTuning(reader, steps, request.lr_factor, request.mlps, request.codes, request.rounded, fresh)


class Tuner:
    """Fine-tunes models of one run.

    Args:
        compose: returns the embedding module of tables by name.
        original: all tables of the trained model.
        sums: state of row-wise AdaGrad by table.
        network: the trained dense network; copied.
        wide: the first-order part, which is not trained; None if the model has none.
        config: of the run.
        checkpoint: with the state of the dense optimizer.
    """

    def __init__(
        self,
        compose: Compose,
        original: Mapping[str, Compressed],
        sums: Sums,
        network: nn.Module,
        wide: nn.Module | None,
        config: Config,
        checkpoint: Path,
        ranks: Ranks,
    ) -> None:
        self._compose, self._sums, self._network, self._wide = compose, sums, network, wide
        self._original, self._config, self._checkpoint, self._ranks = original, config, checkpoint, ranks

    def tune(
        self, models: Mapping[str, Mapping[str, Compressed]], how: FineTuning, progress: BarDisplay
    ) -> dict[str, Tuned]:
        """Trains models on the same batches; each is given by name as all its tables.

        Raises:
            UserError: if training diverges, or trained values cannot be stored.
        """
        students = {name: self._student(tables, how) for name, tables in models.items()}
        last = max(1, how.steps // 10)
        progress.begin("fine-tuning", how.steps)
        with closing(how.reader.batches(epoch=0)) as batches:  # type: ignore[type-var]
            for step, batch in zip(range(how.steps), batches, strict=False):
                for name, student in students.items():
                    student.step(batch, 1 - step / how.steps)
                    first, loss = student.losses[0], student.losses[-1]
                    if not loss <= min(_MOST_GROWTH * first, torch.finfo().max):  # also false for NaN
                        raise UserError(
                            f"--finetune-lr {how.lr_factor:g}: training diverges, the {name} model's log loss went "
                            f"from {first:.4g} to {loss:.4g} at step {step + 1:,}",
                            "use a lower --finetune-lr",
                        )
                losses = ", ".join(f"{name} {student.mean_loss(last):.4f}" for name, student in students.items())
                progress.advance(about=f"log loss {losses}")
        return {name: student.finish(last) for name, student in students.items()}

    def _student(self, tables: Mapping[str, Compressed], how: FineTuning) -> "_Student":
        twins: dict[str, Compressed] = {}
        trained: list[Trained] = []
        fixed: list[str] = []
        optim = self._config.optim
        qr_tables = self._compose(tables).combined_tables
        for name, table in tables.items():
            sums = self._sums(name)
            assert sums is not None, "checkpoints of runs have sums"
            if not table.can_train:
                twins[name] = table
                fixed.append(name)
                continue
            twin = twins[name] = table.trainable(sparse=True, rounded=how.rounded)
            lr = how.lr_factor * (optim.qr_lr if name in qr_tables else optim.sparse_lr)
            states = shared_state(table, sums)
            trained += [Trained(value, states[key], lr) for key, value in twin.named_parameters()]
            if how.codes:
                twin = twins[name] = with_latent_rows(twin, self._original[name])
                for codes in twin.modules():
                    if isinstance(codes, LatentCodes):
                        state = latent_state(twin, sums)
                        trained.append(Trained(codes.latent, state, lr, codes.code_again))
        network = copy.deepcopy(self._network).train()
        optimizer = None
        if how.mlps:
            optimizer = build_dense_optimizer(optim, network, self._ranks.group)
            load(self._checkpoint, {"optimizer": dense_state(optimizer, network)}, self._ranks)
        model = DLRM(self._compose(twins), network, self._wide)
        rows = RowwiseAdagrad(trained, eps=optim.sparse_eps)
        return _Student(dict(tables), twins, tuple(fixed), model, rows, optimizer, how.lr_factor * optim.dense_lr)


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
        logits_B = self.model(batch.dense_BI, batch)
        if batch.weights_B is None:
            loss = functional.binary_cross_entropy_with_logits(logits_B, batch.labels_B)
        else:
            losses_B = functional.binary_cross_entropy_with_logits(logits_B, batch.labels_B, reduction="none")
            loss = batch.weights_B @ losses_B / batch.weights_B.sum().clamp(min=torch.finfo(torch.float32).tiny)
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
        """Returns the tables in their original format."""
        stored = {}
        for name, table in self.tables.items():
            try:
                stored[name] = table if name in self.fixed else stored_like(self.twins[name], table)
            except ValueError as problem:
                raise UserError(f"table {name}: {problem}", "use a lower --finetune-lr") from None
        return Tuned(stored, self.model.dense.eval(), self.fixed, self.mean_loss(last))


def fine_tune(
    tuner: Tuner,
    how: FineTuning,
    trials: Mapping[str, Trial],
    original: Mapping[str, Compressed],
    replaced: Mapping[str, Compressed],
    report: dict[str, Any],
    progress: BarDisplay,
) -> Tuned:
    """Trains the compressed model and the control, and updates the report to the fine-tuned model.

    Args:
        original: all tables of the trained model.
        replaced: the compressed tables.
        report: of the compression; its splits are moved to "finetune", "before".
    """
    models = {"compressed": {**original, **replaced}, "control": original}
    tuned = tuner.tune(models, how, progress)
    student, control = tuned["compressed"], tuned["control"]
    part: dict[str, Any] = {
        "steps": how.steps,
        "batch_size": how.reader.batch_size,
        "lr_factor": how.lr_factor,
        "mlps": how.mlps,
        "codes": how.codes,
        "rounded": how.rounded,
        "fresh": how.fresh,
        "fixed": list(student.fixed),
        "log_loss": {name: model.loss for name, model in tuned.items()},
    }
    for split, trial in trials.items():
        after, beside = (trial.logits(model.tables, model.network) for model in (student, control))
        part[split] = {
            "before": report[split],
            "control": trial.compare(beside),
            "against_control": trial.compare(after, beside),
        }
        report[split] = trial.compare(after)
    report["finetune"] = part
    return student


def show_finetuning(report: Mapping[str, Any]) -> None:
    """Prints the increase of NE over the trained model before and after fine-tuning, and of the control."""
    part, rows = report["finetune"], []
    for split in ("validation", "test"):
        if split in part:
            found = part[split]
            columns = (found["before"], report[split], found["control"], found["against_control"])
            rows.append(
                [split, *(f"{with_error(c['ne_increase'], c['ne_increase_se'], '+.4f', scale=100)} %" for c in columns)]
            )
    examples = "fresh examples" if part["fresh"] else "examples of the training data"
    title = f"NE after {part['steps']:,} steps of {part['batch_size']:,} {examples}"
    if not part["mlps"]:
        title += ", MLPs fixed"
    if part["codes"]:
        title += ", codes trained"
    if part["rounded"]:
        title += ", rows rounded"
    if part["fixed"]:
        title += f"; not trained: {', '.join(part['fixed'])}"
    print_table(title, ["", "compressed", "fine-tuned", "control", "fine-tuned to control"], rows)
