"""A checkpoint of a run opened to score data: the model loaded, the split of the data found."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dlrmctl.assembly.compressed import is_compressed, load_model, open_artifact
from dlrmctl.assembly.network import stored_model
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.data.reader import Reader
from dlrmctl.data.schema import Schema
from dlrmctl.data.source import Source
from dlrmctl.datasets.open import open_reader, open_source
from dlrmctl.embeddings.compression.rules.rows import StoredRows
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM
from dlrmctl.ranks.process import set_precision
from dlrmctl.ranks.ranks import Ranks
from dlrmctl.rundir.checkpoint import Checkpoints, load, read_state
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.state import same_shape
from dlrmctl.rundir.stored_tables import CheckpointTables
from dlrmctl.settings.config import Config


@dataclass(frozen=True)
class Opened:
    """A checkpoint of a run, loaded and ready to score a split."""

    checkpoint: Path
    source: Source
    reader: Reader
    embeddings: nn.Module
    network: nn.Module

    @property
    def inference(self) -> DLRM:
        """Gives the logits."""
        return DLRM(self.embeddings, self.network)


def open_run(config: Config, run: RunDirectory, ranks: Ranks, *, checkpoint: str, split: str) -> Opened:
    """Loads a checkpoint of a run, and the split of the data that the settings name.

    One rank looks rows up in plain torch. Several spread the tables as in training, so that tables of any size can be
    scored.

    Args:
        run: of a run, or the directory of its compressed model.
        checkpoint: "best", "last" or "step-N"; a compressed model has but one.

    Raises:
        UserError, DataError: if checkpoint or data are not there or do not fit.
    """
    set_precision(config.train.precision)
    source = open_source(config.data)
    reader = open_reader(config, source, split, ranks, training=False)
    if is_compressed(run.path):
        artifact = open_artifact(run.path)
        same_ids(run.path, artifact.source.get("vocabulary"), source)
        small = load_model(run.path, artifact, config, source.schema, ranks.device)
        return Opened(run.path, source, reader, small.embeddings, small.dense)
    path = ranks.broadcast(find_checkpoint(Checkpoints(run.checkpoints, ranks), run, checkpoint))
    state = read_state(path)
    same_shape(config, state["settings"], path, sections=("model", "embeddings"))
    same_ids(path, state["vocabulary"], source)
    loaded = _whole if ranks.world_size == 1 else _spread
    model = loaded(config, source.schema, path, ranks, reader.local_batch_size)
    return Opened(path, source, reader, model.embeddings, model.dense)


def _whole(config: Config, schema: Schema, path: Path, ranks: Ranks, batch_size: int) -> DLRM:
    """The model in this process, without TorchRec."""
    stored, features = CheckpointTables(path), feature_tables(config, schema)
    tables = {shape.name: StoredRows(stored.weight(shape.name), shape.dim, 32) for shape in stored.tables}
    return stored_model(config, schema, features, tables, stored.network(), ranks.device, path)


def _spread(config: Config, schema: Schema, path: Path, ranks: Ranks, batch_size: int) -> DLRM:
    """The model with its tables spread over the ranks. Every rank must call it."""
    from dlrmctl.assembly.model import build_model  # TorchRec takes seconds to load

    model = build_model(config, schema, ranks, batch_size=batch_size)
    load(path, model.tensors(), ranks)
    return model.inference


def same_ids(path: Path, vocabulary: str | None, source: Source) -> None:
    """Check that ids of the data mean what they meant to a model.

    Raises:
        UserError: if they do not.
    """
    if vocabulary != source.vocabulary_fingerprint():
        raise UserError(
            f"{path}: was trained with other ids than this data has ({source.vocabulary_fingerprint()})",
            "prepare the data with the vocabulary of the training data, or name that data with --data",
        )


def find_checkpoint(checkpoints: Checkpoints, run: RunDirectory, wanted: str) -> Path:
    """The checkpoint of a run that is called "best", "last" or "step-N".

    Raises:
        UserError: if there is none.
    """
    newest = checkpoints.newest()
    if newest is None:
        raise UserError(f"{run.path}: has no checkpoint yet")
    if wanted == "last":
        return newest
    name = f"step-{read_state(newest)['progress']['best_step']}" if wanted == "best" else wanted
    there = {path.name: path for path in checkpoints.complete()}
    if name not in there:
        raise UserError(
            f"{run.path}: has no checkpoint {wanted!r}", f"there are: best, last, {', '.join(sorted(there))}"
        )
    return there[name]
