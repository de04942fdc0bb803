"""Opening a run for scoring: the model of a checkpoint and a split of the data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dlrmctl.assembly.baseline import load_baseline
from dlrmctl.assembly.compressed import is_compressed, load_model, open_artifact
from dlrmctl.assembly.inputs import inputs_like
from dlrmctl.assembly.network import stored_model
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.console.console import say
from dlrmctl.console.text import counted
from dlrmctl.data.errors import DataError
from dlrmctl.data.features.extension import check_extends
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.known_ids import KnownIds
from dlrmctl.data.reader import Reader
from dlrmctl.data.source import Source
from dlrmctl.datasets.open import open_reader, open_source
from dlrmctl.embeddings.compression.composed import StoredEmbeddings
from dlrmctl.embeddings.compression.rules.rows import StoredRows
from dlrmctl.embeddings.ids import SparseIds
from dlrmctl.embeddings.largest import cut_rows
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM
from dlrmctl.ranks.group import Ranks
from dlrmctl.ranks.process import set_precision
from dlrmctl.rundir.calibration import CalibratedModel, read_calibration
from dlrmctl.rundir.checkpoint import Checkpoints, load, read_state
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.state import same_shape
from dlrmctl.rundir.stored_tables import CheckpointTables, model_weights
from dlrmctl.settings.config import Config


@dataclass(frozen=True)
class OpenedModel:
    """The loaded model of a checkpoint.

    Attributes:
        checkpoint: its directory; for a compressed model, that of the model.
        model: returns the logits of dense features and a batch.
        features: how to turn raw rows into examples.
    """

    checkpoint: Path
    model: nn.Module
    features: FeatureSpace


@dataclass(frozen=True)
class OpenedRun(OpenedModel):
    """The loaded model of a checkpoint, and a split of its data."""

    source: Source
    reader: Reader


def open_run(
    config: Config, run: RunDirectory, ranks: Ranks, *, checkpoint: str, split: str, calibrated: bool = False
) -> OpenedRun:
    """Loads a checkpoint of a run and a split of the data that the settings name.

    Args:
        run: directory of a run or of a compressed model.
        checkpoint: "best", "last" or "step-N"; must be "best" for a compressed model.
        calibrated: whether to apply the calibration of the checkpoint, see `calibration`.

    Raises:
        UserError, DataError: if the checkpoint or the data is missing or does not fit.
    """
    source = open_source(config.data, verify=())  # the reader verifies the checksums of what it reads
    source = _as_known(source, run_features(config, run), ranks)
    reader = open_reader(config, source, split, ranks, training=False)
    opened = open_model(config, run, ranks, checkpoint=checkpoint, features=source.features, calibrated=calibrated)
    return OpenedRun(opened.checkpoint, opened.model, opened.features, source, reader)


def _as_known(source: Source, features: FeatureSpace, ranks: Ranks) -> Source:
    """The data as a run with these features sees it: ids that were added since are rare values.

    Data that does not extend the run's is returned unchanged.
    """
    if source.vocabulary_fingerprint() == features.vocabulary_fingerprint() or not features.columns:
        return source
    try:
        check_extends(source.features, features)
    except DataError:
        return source
    added = sum(
        now.rows - before.rows for now, before in zip(source.schema.sparse, features.schema.sparse, strict=True)
    )
    if ranks.is_main:
        say(f"{counted(added, 'id')} of this data are new since the run, and scored as rare values")
    return KnownIds(source, features)


def open_model(
    config: Config,
    run: RunDirectory,
    ranks: Ranks,
    *,
    checkpoint: str,
    features: FeatureSpace | None = None,
    calibrated: bool = False,
) -> OpenedModel:
    """Loads a checkpoint of a run.

    A single rank looks up rows with plain torch. Several ranks shard the tables as in training, so that tables can be
    of any size.

    Args:
        run, checkpoint, calibrated: see `open_run`.
        features: of the data to score; None for those stored in the run.

    Raises:
        UserError, DataError: if the checkpoint or its calibration is missing or does not fit.
    """
    set_precision(config.train.precision)
    features = features or run_features(config, run)
    compressed = is_compressed(run.path)
    if compressed and checkpoint != "best":
        raise other_checkpoint(run, checkpoint)
    path = (
        run.path
        if compressed
        else ranks.broadcast(find_checkpoint(Checkpoints(run.checkpoints, ranks), run, checkpoint))
    )
    calibration = read_calibration(run, path) if calibrated else None  # before the tables, which may take long
    model: nn.Module = (_compressed if compressed else _trained)(config, features, path, ranks)
    return OpenedModel(path, CalibratedModel(model, calibration) if calibration else model, features)


def vectors_of(opened: OpenedModel, run: Path, feature: str) -> Callable[[Tensor], Tensor]:
    """Returns the function from ids of a feature, int64 [N] on the model's device, to their vectors, float32 [N, D].

    Args:
        opened: on a single rank.
        run: its directory, for messages.
        feature: name of a sparse feature.

    Raises:
        UserError: if the model is a baseline.
    """
    model = opened.model.model if isinstance(opened.model, CalibratedModel) else opened.model
    if not isinstance(model, DLRM) or not isinstance(model.embeddings, StoredEmbeddings):
        raise UserError(f"{run} is a baseline, which has no vectors")
    module = model.embeddings.alone(feature)

    @torch.no_grad()
    def look_up(ids_N: Tensor) -> Tensor:
        vectors_N1D: Tensor = module(SparseIds((feature,), ids_N, None, len(ids_N)))
        return vectors_N1D.flatten(1)

    return look_up


def other_checkpoint(run: RunDirectory, checkpoint: str) -> UserError:
    """The error for --checkpoint with a compressed model."""
    return UserError(
        f"--checkpoint {checkpoint}: {run.path} is a compressed model, made from one checkpoint",
        "omit --checkpoint, or use the run that has it",
    )


def run_features(config: Config, run: RunDirectory) -> FeatureSpace:
    """The features stored in a run, which are needed to score raw rows.

    Runs of earlier versions have none; theirs are read from the data.

    Raises:
        UserError, DataError: if they are damaged, or neither the run nor its data has them.
    """
    if run.features.is_dir():
        return FeatureSpace.open(run.features)
    return open_source(config.data, verify=()).features


def _compressed(config: Config, features: FeatureSpace, path: Path, ranks: Ranks) -> DLRM:
    artifact = open_artifact(path)
    same_ids(path, artifact.source.get("vocabulary"), features)
    return load_model(path, artifact, config, features, ranks.device)


def _trained(config: Config, features: FeatureSpace, path: Path, ranks: Ranks) -> DLRM:
    state = read_state(path)
    if config.baseline is not None:
        same_ids(path, state.vocabulary, features)
        return load_baseline(config.baseline, features, model_weights(path), path).to(ranks.device)
    same_shape(config, state.settings, path, sections=("model", "embeddings"))
    same_ids(path, state.vocabulary, features)
    return (_whole if ranks.world_size == 1 else _spread)(config, features, path, ranks)


def _whole(config: Config, features: FeatureSpace, path: Path, ranks: Ranks) -> DLRM:
    """The model in this process, without TorchRec."""
    stored, described = CheckpointTables(path), feature_tables(config, features.schema)
    tables = {shape.name: StoredRows(stored.weight(shape.name), shape.dim, 32) for shape in stored.tables}
    return stored_model(config, features, described, tables, stored.network(), stored.wide(), ranks.device, path)


def _spread(config: Config, features: FeatureSpace, path: Path, ranks: Ranks) -> DLRM:
    """The model with its tables sharded over the ranks. Every rank must call it."""
    from dlrmctl.assembly.model import build_model  # TorchRec takes seconds to load

    stored = CheckpointTables(path)
    inputs = inputs_like(features, stored.network())
    batch_size = config.train.batch_size // ranks.world_size
    model = build_model(config, features, ranks, batch_size=batch_size, inputs=inputs)
    load(path, model.tensors(), ranks)
    if (kept := stored.state.kept_numbers) is not None:
        cut_rows(model.tensors()["tables"], kept)
    return model.inference


def same_ids(path: Path, vocabulary: str | None, features: FeatureSpace) -> None:
    """Checks that ids mean the same in the data and in a model.

    Raises:
        UserError: if they do not.
    """
    if vocabulary != features.vocabulary_fingerprint():
        raise UserError(
            f"{path} was trained with other ids than this data has ({features.vocabulary_fingerprint()})",
            "prepare the data with the vocabulary of the training data, or pass that data with --data",
        )


def find_checkpoint(checkpoints: Checkpoints, run: RunDirectory, wanted: str) -> Path:
    """The checkpoint of a run with the name "best", "last" or "step-N".

    Raises:
        UserError: if there is none.
    """
    newest = checkpoints.newest()
    if newest is None:
        raise UserError(f"{run.path} has no checkpoint yet")
    if wanted == "last":
        return newest
    name = wanted
    if wanted == "best":
        best_step = read_state(newest).progress.best_step
        if best_step is None:  # earlier versions chose none if NE was not defined
            return newest
        name = f"step-{best_step}"
    there = {path.name: path for path in checkpoints.complete()}
    if name not in there:
        raise UserError(
            f"{run.path} has no checkpoint {wanted!r}", f"choose from best, last, {', '.join(sorted(there))}"
        )
    return there[name]
