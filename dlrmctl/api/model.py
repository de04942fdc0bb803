"""A trained model in Python: predictions, metrics, and the vectors of values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlrmctl.api.frames import Frame, FrameEncoder
from dlrmctl.api.training import Run
from dlrmctl.data.new_rows import cut_batches
from dlrmctl.data.schema import RESERVED_ROWS
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import process_group
from dlrmctl.ranks.launch import run_on_ranks
from dlrmctl.ranks.process import configure
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import OpenedModel, open_model, vectors_of
from dlrmctl.settings.config import Config, resolve
from dlrmctl.settings.synonyms import nearest as nearest_name

_ROWS_AT_ONCE = 1 << 16  # of a table whose vectors are compared


@dataclass(frozen=True)
class Neighbor:
    """A value whose vector is near another.

    Attributes:
        value: the value, as text.
        similarity: cosine of the angle between the vectors, from -1 to 1.
    """

    value: str
    similarity: float


def load(
    run: str | Path | Run, *, checkpoint: str = "best", calibrated: bool = False, device: str = "auto"
) -> "TrainedModel":
    """Loads a model for scoring.

    Args:
        run: a run, its directory, or the directory of a compressed model.
        checkpoint: "best", "last" or "step-N".
        calibrated: whether to apply the calibration that `dlrmctl calibrate` fitted.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError, DataError: if there is no such model, or it is damaged.
    """
    configure()
    path = run.path if isinstance(run, Run) else Path(run)
    directory = RunDirectory(path, writes=False)
    config = resolve(directory.settings(), {}, file_name=str(path / "run.toml")).change(device=device).for_scoring()
    with process_group(device) as ranks:
        opened = open_model(config, directory, ranks, checkpoint=checkpoint, calibrated=calibrated)
        return TrainedModel(path, config, opened, checkpoint, calibrated, ranks.device)


class TrainedModel:
    """A trained model; `load` returns it. Its methods can be called from several threads.

    Attributes:
        path: directory of the run or of the compressed model.
        config: its settings.
    """

    def __init__(
        self, path: Path, config: Config, opened: OpenedModel, checkpoint: str, calibrated: bool, device: torch.device
    ) -> None:
        self.path, self.config = path, config
        self._opened, self._checkpoint, self._calibrated, self._device = opened, checkpoint, calibrated, device
        self._indexes: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"TrainedModel({str(self.path)!r}, {self._opened.checkpoint.name})"

    @property
    def dense_features(self) -> tuple[str, ...]:
        """Names of the dense features."""
        return tuple(self._opened.features.schema.dense)

    @property
    def sparse_features(self) -> tuple[str, ...]:
        """Names of the sparse features."""
        return tuple(self._opened.features.schema.keys)

    def predict(self, rows: Frame) -> np.ndarray:
        """Predicts the probability of each row, as `dlrmctl predict` does.

        Args:
            rows: a polars or pandas DataFrame, an Arrow table, a dictionary of columns, or a list of dictionaries, with
                the columns of the training data; other columns are ignored. A value that is None is missing.

        Returns:
            float32 [N].

        Raises:
            UserError, DataError: naming the column that is missing, or the row and its wrong value.
        """
        if isinstance(rows, list | tuple) and not rows:
            return np.empty(0, dtype=np.float32)
        block = self._rows.encode(rows)
        if not len(block):
            return np.empty(0, dtype=np.float32)
        offset = self._opened.features.logit_offset()
        parts = []
        for batch in cut_batches(iter([block]), self.sparse_features, self.config.train.batch_size):
            on_device = batch.to(self._device)
            with torch.no_grad():
                logits_B = self._opened.model(on_device.dense_BI, on_device) + offset
            parts.append(logits_B[: batch.num_valid].float().cpu().sigmoid().numpy())
        return np.concatenate(parts)

    def evaluate(
        self, split: str = "test", *, data: str | Path | None = None, batch_size: int | None = None
    ) -> dict[str, Any]:
        """Computes the metrics of a split, as `dlrmctl evaluate` does.

        Args:
            split: "train", "validation" or "test".
            data: a store to score instead of the one the run was trained on.
            batch_size: rows that are scored at once.

        Returns:
            Metrics by name, such as "log_loss", "ne", "auc" and "calibration"; "log_loss_se" and so on are standard
            errors.

        Raises:
            UserError, DataError: if the data is missing or does not fit the model.
        """
        config = self.config if data is None else self.config.change(path=str(data))
        config = config if batch_size is None else config.change(batch_size=batch_size)
        arguments = {
            "settings": config.to_dict(),
            "run": str(self.path),
            "checkpoint": self._checkpoint,
            "split": split,
            "calibrated": self._calibrated,
            "plot": None,
        }
        result = run_on_ranks("dlrmctl.scoring.evaluate:evaluate_on_rank", arguments, 1)
        metrics: dict[str, Any] = result[split]
        return metrics

    def embedding(self, feature: str, values: Any) -> np.ndarray:
        """Returns the vectors of values of a sparse feature: what the interaction takes of a row with one such value.

        Args:
            feature: name of the feature.
            values: a value, or a sequence of them; one that the model does not know has the vector of rare values.

        Returns:
            float32 [N, D], or [D] for a single value; with `--operation features` a value has the vectors of all its
            tables, one after the other.

        Raises:
            UserError: if there is no such feature, or it is made of several columns.
        """
        single = isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray)
        many = [values] if single else list(values)
        self._check_feature(feature)
        ids_N = self._rows.ids_of(feature, many)
        vectors_ND = self._vectors(feature)(torch.from_numpy(ids_N)).cpu().numpy()
        found: np.ndarray = vectors_ND[0] if single else vectors_ND
        return found

    def nearest(self, feature: str, value: Any, k: int = 10) -> list[Neighbor]:
        """Returns the values whose vectors are nearest to that of a value, by cosine similarity.

        With `faiss` installed, the first call makes an index of all vectors of the feature, which is kept in memory.

        Args:
            feature: name of a feature with a vocabulary.
            value: a value of it, or a vector of D numbers.
            k: number of neighbors.

        Raises:
            UserError: if there is no such feature, it has no vocabulary, or k is below 1.
        """
        self._check_feature(feature)
        features = self._opened.features
        if not features.sorted_by_frequency(feature):
            hashed = any(column.name == feature and column.scheme == "hash" for column in features.columns)
            hint = "prepare with --ids vocabulary" if hashed else None
            raise UserError(f"{feature} has no vocabulary, so its rows have no values", hint)
        if k < 1:
            raise UserError(f"k = {k} must be at least 1")
        rows = features.schema.sparse[self.sparse_features.index(feature)].rows
        own, look_up = -1, self._vectors(feature)
        if isinstance(value, np.ndarray) or (isinstance(value, Sequence) and not isinstance(value, str | bytes)):
            query_D = torch.as_tensor(np.asarray(value, dtype=np.float32), device=self._device)
        else:
            own = int(self._rows.ids_of(feature, [value])[0])
            query_D = look_up(torch.tensor([own]))[0]
        width = look_up(torch.tensor([0])).shape[1]
        if query_D.shape != (width,):
            raise UserError(f"the vector has {query_D.numel()} numbers, those of {feature} have {width}")
        if feature not in self._indexes:
            self._indexes[feature] = _unit_index(look_up, rows)
        index = self._indexes[feature]
        if index is not None:
            near, found = index.search(_unit(query_D[None]).cpu().numpy(), min(k + 1, index.ntotal))
            best, places = torch.from_numpy(near[0]), torch.from_numpy(found[0]) + RESERVED_ROWS
            best, places = best[places != own][:k], places[places != own][:k]
        else:
            best, places = _search(look_up, rows, query_D, own, k)
        values = features.values_of(feature, places.tolist())
        return [Neighbor(str(name), near) for name, near in zip(values, best.tolist(), strict=True)]

    @cached_property
    def _rows(self) -> FrameEncoder:
        return FrameEncoder.of(self._opened.features)

    def _check_feature(self, feature: str) -> None:
        names = self.sparse_features
        if feature not in names:
            close = nearest_name(feature, names)
            some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise UserError(f"no sparse feature {feature!r}", f"did you mean {close!r}?" if close else f"one of {some}")

    def _vectors(self, feature: str) -> Callable[[Tensor], Tensor]:
        """Returns the function from ids, [N], to their vectors, float32 [N, D]."""
        look_up = vectors_of(self._opened, self.path, feature)
        return lambda ids_N: look_up(ids_N.to(self._device))


def _search(look_up: Callable[[Tensor], Tensor], rows: int, query_D: Tensor, own: int, k: int) -> tuple[Tensor, Tensor]:
    """Returns the largest cosines of a vector and those of rows with values, and the rows, without `own`."""
    best, places = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for start in range(RESERVED_ROWS, rows, _ROWS_AT_ONCE):
        ids_N = torch.arange(start, min(start + _ROWS_AT_ONCE, rows))
        near_N = nn.functional.cosine_similarity(look_up(ids_N), query_D[None], dim=1).cpu()
        near_N[ids_N == own] = -torch.inf
        best, order = torch.cat([best, near_N]).topk(min(k, len(best) + len(near_N)))
        places = torch.cat([places, ids_N])[order]
    kept = best > -torch.inf
    return best[kept], places[kept]


def _unit_index(look_up: Callable[[Tensor], Tensor], rows: int) -> Any | None:
    """Returns an index of faiss of the rows with values, scaled to length 1; None without faiss or such rows."""
    if rows <= RESERVED_ROWS:
        return None
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(look_up(torch.tensor([0])).shape[1])
    for ids_N in torch.arange(RESERVED_ROWS, rows).split(_ROWS_AT_ONCE):
        index.add(_unit(look_up(ids_N)).cpu().numpy())
    return index


def _unit(vectors_ND: Tensor) -> Tensor:
    return nn.functional.normalize(vectors_ND.float(), dim=1, eps=1e-8)  # as in `cosine_similarity`
