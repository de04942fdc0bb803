"""Starting a training from an earlier run (`--init-from`): its tensors, and tables that grow with the vocabularies.

Partitions are those of the first day: in every table the rows of known ids stay, and rows of new ids follow them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor

from dlrmctl.assembly.compressed import is_compressed, open_artifact, read_parts
from dlrmctl.assembly.inputs import PREFIX, DenseInputs, fitted_inputs, inputs_like
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.assembly.wide import EDGES
from dlrmctl.console.text import counted
from dlrmctl.data.errors import DataError
from dlrmctl.data.features.extension import check_extends, rows_of_others
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.source import Source
from dlrmctl.datasets.open import open_source
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.embeddings.wide import wide_features
from dlrmctl.errors import UserError
from dlrmctl.models.inputs import NormalizedInputs
from dlrmctl.ranks.group import Ranks, process_group
from dlrmctl.rundir.checkpoint import Checkpoints, load, read_state
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import find_checkpoint, run_features
from dlrmctl.rundir.state import same_shape
from dlrmctl.rundir.tensor_files import read_rows, read_tensor, stored_tensors
from dlrmctl.settings.config import Config, resolve

# Optimizer states have another meaning or another shape if one of these changes.
_STATE_OF = ("dense_optimizer", "grafting", "shampoo_block", "shampoo_sides", "momentum", "beta1")


class _OfCheckpoint:
    """Reads the tensors of a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path, self._stored = path, stored_tensors(path)

    def network(self) -> dict[str, Tensor]:
        """The dense weights by name."""
        return {
            name.removeprefix("network."): read_tensor(self.path, stored)
            for name, stored in self._stored.items()
            if name.startswith("network.")
        }

    def rows(self, name: str, first: int, last: int) -> Tensor | None:
        """The rows from `first` of a tensor such as "tables.cat_3/weight" or "wide.cat_3/sum", at most to `last`; None
        if the run does not have it.
        """
        stored = self._stored.get(name)
        return None if stored is None else read_rows(self.path, stored, first, max(first, min(last, stored.size[0])))


class _OfCompressed:
    """Reads the tensors of a compressed model, as `_OfCheckpoint`; it has no states of optimizers."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self._tables, self._network, self._wide = read_parts(open_artifact(path), names)

    def network(self) -> dict[str, Tensor]:
        return self._network

    def edges(self) -> Tensor:
        return self._wide[EDGES]

    def rows(self, name: str, first: int, last: int) -> Tensor | None:
        part, _, tensor = name.partition(".")
        table, _, kind = tensor.rpartition("/")
        if kind != "weight":
            return None
        if part == "wide":
            return None if tensor not in self._wide else self._wide[tensor][first:last]
        whole: Compressed = self._tables[table]
        return whole.expand(first, max(first, min(last, whole.num_rows)))


def stored_inputs(checkpoint: Path, features: FeatureSpace) -> DenseInputs:
    """The transform of dense features that fits the weights of a checkpoint."""
    return inputs_like(features, _OfCheckpoint(checkpoint).network())


@dataclass(frozen=True)
class WarmStart:
    """The run that a training starts from.

    Attributes:
        run: its directory, or that of a compressed model.
        config: its settings.
        features: of the data that it was trained on.
        weights: its best checkpoint, or the compressed tables.
        settings: of the checkpoint.
        steps: of this run and those that it started from.
        refit: whether dense features are normalized by the new data.
    """

    run: Path
    config: Config
    features: FeatureSpace
    weights: _OfCheckpoint | _OfCompressed
    settings: dict[str, Any]
    steps: int
    refit: bool

    @classmethod
    def open(cls, path: Path, ranks: Ranks, *, refit: bool) -> "WarmStart":
        """Opens the run in a directory.

        Raises:
            UserError, DataError: if it is not a run with a checkpoint or a compressed model, or is damaged.
        """
        run = RunDirectory(path, writes=False)
        config = resolve(run.settings(), {}, file_name=str(run.settings_file))
        if config.baseline is not None:
            raise UserError(f"{path} is a baseline, which has no tables to start from", "give a run of `dlrmctl train`")
        features = run_features(config, run)
        if is_compressed(path):
            tables = [t.name for f in feature_tables(config, features.schema) for t in f.tables(config.embeddings.dim)]
            return cls(path, config, features, _OfCompressed(path, tables), config.to_dict(), 0, refit)
        checkpoint = ranks.broadcast(find_checkpoint(Checkpoints(run.checkpoints, ranks), run, "best"))
        state = read_state(checkpoint)
        steps = state.progress.steps_before + state.progress.step
        return cls(path, config, features, _OfCheckpoint(checkpoint), state.settings, steps, refit)

    def grown(self, config: Config, source: Source) -> Config:
        """The settings with the rows of earlier days, for data whose vocabularies may have more values.

        Raises:
            UserError: if the settings describe another model, or the data is not an extension of the run's.
        """
        same_shape(config, self.settings, self.weights.path, sections=("model", "embeddings"))
        try:
            check_extends(source.features, self.features)
        except DataError as problem:
            raise UserError(f"cannot start from {self.run}: {problem.message}", problem.hint) from None
        ours, theirs = source.features.dense_transform, self.features.dense_transform
        if not self.refit and ours and theirs and (ours.formula, ours.columns) != (theirs.formula, theirs.columns):
            raise UserError(
                f"cannot start from {self.run}: dense values were transformed differently for it",
                "prepare the data with the same transforms, or use --refit-dense",
            )
        grown = dict(self.config.grown)
        days = zip(feature_tables(self.config, self.features.schema), source.schema.sparse, strict=True)
        for before, now in days:
            if now.rows > before.rows:
                known = before.before if before.before and before.embedding != "head" else (*before.before, before.rows)
                grown[before.table or before.name] = known  # only heads depend on more than the first day
        config = replace(config, grown=grown)
        feature_tables(config, source.schema)  # raises if one cannot grow
        return config

    @cached_property
    def _network(self) -> dict[str, Tensor]:
        return self.weights.network()

    def inputs(self, config: Config, features: FeatureSpace) -> DenseInputs:
        """The transform of dense features: that of the run, or one fitted to new data."""
        before = inputs_like(features, self._network)
        if not (self.refit and isinstance(before, NormalizedInputs)):
            return before
        indicated = self._network[f"{PREFIX}indicated_I"].bool().tolist()  # decide the width of the first layer
        own = replace(features, dense=features.own_dense or features.dense)
        return fitted_inputs(config, own, indicated=indicated)

    @torch.no_grad()
    def fill_tables(self, tensors: Mapping[str, Mapping[str, Any]], config: Config, features: FeatureSpace) -> "Filled":
        """Copies the rows of the run into this rank's tables, and the states of their optimizer.

        Args:
            tensors: "tables", and "wide" for a model with first-order weights; see `Trainer`.
            config, features: of this training.

        Raises:
            UserError: if a table is missing in the run, or has other columns.
        """
        added = anew = 0
        reused, sharing = _reused_rows(config, features, self.features)
        for part in ("tables", "wide"):
            for name, tensor in tensors.get(part, {}).items():
                if not isinstance(tensor, ShardedTensor):
                    continue
                own = reused.get((part, name.rpartition("/")[0]), torch.empty(0, dtype=torch.int64))
                counts = [self._fill(shard, f"{part}.{name}", own) for shard in tensor.local_shards()]
                if name.endswith("/weight") and part == "tables":
                    added += sum(new for new, _ in counts)
                    anew += sum(other for _, other in counts)
        return Filled(added, anew, sharing)

    def _fill(self, shard: Shard, name: str, reused_R: Tensor) -> tuple[int, int]:
        """Copies the rows of the run into a shard of a table, but not those that belong to other values now.

        Returns the number of rows that the run does not have, and of those that were not copied.
        """
        first, live = shard.metadata.shard_offsets[0], shard.tensor
        kept_R = reused_R[(reused_R >= first) & (reused_R < first + len(live))] - first
        initial = live[kept_R].clone()
        found = self.weights.rows(name, first, first + len(live))
        if found is None and name.endswith("/sum"):
            return 0, 0
        if found is None or found.shape[1:].numel() > live.shape[1:].numel():
            raise UserError(f"{self.weights.path} does not fit this model: {name} is missing or has other columns")
        if len(found):
            columns = found.view(len(found), -1)
            live.view(len(live), -1)[: len(found), : columns.shape[1]].copy_(columns)
        live[kept_R] = initial
        return len(live) - len(found), len(kept_R)

    @torch.no_grad()
    def fill_dense(self, tensors: Mapping[str, dict[str, Any]], config: Config, ranks: Ranks) -> list[str]:
        """Loads the dense weights, and the states of optimizer and averaging if their settings are the same.

        Args:
            tensors: "network", "optimizer", and "averaging" if there is one; see `Trainer`.

        Returns:
            Messages about states that start anew.
        """
        network = {n: t for n, t in tensors["network"].items() if not (self.refit and n.startswith(PREFIX))}
        averaging = dict(tensors.get("averaging", {}))
        edges = {"wide": {EDGES: tensors["wide"][EDGES]}} if "wide" in tensors else {}
        before, now, messages = self.config.optim, config.optim, []
        if not isinstance(self.weights, _OfCompressed):
            wanted = {"network": network} | edges
            changed = [name for name in _STATE_OF if getattr(before, name) != getattr(now, name)]
            if changed:
                values = f"{changed[0]} is {getattr(now, changed[0])}, not {getattr(before, changed[0])}"
                messages.append(f"the state of the dense optimizer starts anew: {values}")
            else:
                wanted["optimizer"] = tensors["optimizer"]
                if averaging and before.averaging == now.averaging:
                    wanted["averaging"], averaging = averaging, {}
            load(self.weights.path, wanted, ranks)
        else:
            for name, live in network.items():
                live.copy_(self._network[name])
            if edges:
                edges["wide"][EDGES].copy_(self.weights.edges())
            messages.append("a compressed model has no optimizer states: they start anew")
        for name, live in averaging.items():
            if name.endswith("/z"):  # an average that starts anew starts at the weights
                live.copy_(network[name.removesuffix("/z")])
        return messages

    def about(self, filled: "Sequence[Filled]") -> list[str]:
        """Lines for people: where the training starts, and what happens to rows.

        Args:
            filled: of each rank.
        """
        added, anew = (sum(numbers) for numbers in zip(*((each.added, each.anew) for each in filled), strict=True))
        growth = f", with {counted(added, 'new row')} in its tables" if added else ""
        growth += f", and {counted(anew, 'row')} of new values in place of forgotten ones" if anew else ""
        lines = [f"starts from {self.weights.path}{growth}"]
        if sharing := filled[0].sharing:
            what = "new values in place of forgotten ones share rows with other values: these rows keep their weights"
            lines.append(f"{sharing:,} {what}")
        return lines


@dataclass(frozen=True)
class Filled:
    """What was copied into the tables of a rank.

    Attributes:
        added: rows of this rank that the run does not have.
        anew: rows of this rank that belong to other values now, and keep their initial values.
        sharing: ids of all tables that belong to other values now, and share their rows, which were copied.
    """

    added: int
    anew: int
    sharing: int


def grown_settings(config: Config) -> Config:
    """The settings of a training that starts from a run, with the rows of earlier days; for a single process.

    Raises:
        UserError, DataError: as `WarmStart.open` and `WarmStart.grown`.
    """
    with process_group("cpu") as ranks:
        start = WarmStart.open(Path(str(config.train.init_from)), ranks, refit=config.train.refit_dense)
    return start.grown(config, open_source(config.data, verify=()))


def _reused_rows(config: Config, new: FeatureSpace, old: FeatureSpace) -> tuple[dict[tuple[str, str], Tensor], int]:
    """Returns the rows that belong to single values, other ones than before, by "tables" or "wide" and the table.

    Rows that several ids share keep their weights. The number of ids in such rows, of other values than before, is the
    second result.
    """
    others = rows_of_others(new, old)
    found: dict[tuple[str, str], Tensor] = {}
    sharing: dict[str, int] = {}
    described = feature_tables(config, new.schema)
    for part, features in (("tables", described), ("wide", wide_features(described, ()))):
        for feature in features:
            if feature.name not in others:
                continue
            ids = torch.from_numpy(others[feature.name])
            own = feature.own_rows(ids)
            if own is not None:
                table, rows = own
                found[part, table] = rows
            if part == "tables":
                sharing[feature.table or feature.name] = len(ids) - (0 if own is None else len(own[1]))
    return found, sum(sharing.values())
