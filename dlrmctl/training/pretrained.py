"""Starts rows of tables with vectors from a file, by the values that the rows belong to (`--init-embeddings`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from dlrmctl.assembly.tables import feature_tables
from dlrmctl.console.text import counted
from dlrmctl.data.features.space import GENERATED, FeatureSpace
from dlrmctl.data.formats.table_values import words
from dlrmctl.data.schema import RESERVED_ROWS
from dlrmctl.errors import UserError
from dlrmctl.settings.config import Config

_COLUMNS = ("feature", "value", "vector")
_VALUES = ".values"


class PretrainedVectors:
    """The vectors of a file, as rows of tables.

    Args:
        path: a Parquet file with the columns feature (name), value and vector (a list of `dim` numbers); or a
            safetensors file with a tensor [K, `dim`] for each feature, by its name, whose K values are a tensor of
            integers named FEATURE.values, or a JSON list in the metadata entry FEATURE.
        config: settings of the tables; features in the file must have full ones.
        features: of the data.

    Raises:
        UserError: if the file cannot be read, or does not fit the tables.
    """

    def __init__(self, path: Path, config: Config, features: FeatureSpace) -> None:
        self.path, dim = path, config.embeddings.dim
        given = _of_safetensors(path) if path.suffix == ".safetensors" else _of_parquet(path, dim)
        tables = {table.name: table for table in feature_tables(config, features.schema)}
        # table -> rows and vectors, of each feature in the file
        self._vectors: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.num_values, self.num_unknown = sum(len(values) for values, _ in given.values()), 0
        for name, (values, vectors) in given.items():
            table = tables.get(name)
            if table is None:
                raise UserError(f"{path}: {name!r} is not a sparse feature of the data")
            if table.embedding != "full":
                raise UserError(
                    f"{path}: {name} has {table.embedding} tables, where ids share rows, so vectors have no place",
                    f'set embedding = "full" under [embeddings.tables.{name}]',
                )
            if vectors.shape != (len(values), dim):
                shape = "x".join(map(str, vectors.shape))
                raise UserError(f"{path}: {name} has vectors of shape {shape}, expected {len(values)}x{dim} (--dim)")
            if not np.isfinite(vectors).all():
                raise UserError(f"{path}: a vector of {name} has a number that is missing or not finite")
            rows = _rows(path, features, table.name, values)
            known = rows >= RESERVED_ROWS
            self.num_unknown += int(np.count_nonzero(~known))
            (key,) = table.table_names
            self._vectors.setdefault(key, []).append((torch.from_numpy(rows[known]), torch.from_numpy(vectors[known])))

    @torch.no_grad()
    def fill(self, tables: Mapping[str, Any]) -> None:
        """Copies the vectors into this rank's tables: "TABLE/weight" -> tensor, see `sharding.shard.sparse_state`."""
        for name, rows, vectors in ((name, *some) for name, each in self._vectors.items() for some in each):
            tensor = tables.get(f"{name}/weight")
            for shard in tensor.local_shards() if isinstance(tensor, ShardedTensor) else ():
                first = shard.metadata.shard_offsets[0]
                mine = (rows >= first) & (rows < first + len(shard.tensor))
                shard.tensor[rows[mine] - first] = vectors[mine].to(shard.tensor)

    def about(self) -> str:
        """One line for people."""
        unknown = f"; {self.num_unknown:,} have no row of their own in the data" if self.num_unknown else ""
        return f"vectors of {counted(self.num_values, 'value')} from {self.path}{unknown}"


def _of_parquet(path: Path, dim: int) -> dict[str, tuple[pl.Series, np.ndarray]]:
    """The values and vectors of each feature."""
    groups = _read(path).group_by("feature", maintain_order=True)
    return {str(name): (part["value"], _matrix(path, str(name), part["vector"], dim)) for (name,), part in groups}


def _of_safetensors(path: Path) -> dict[str, tuple[pl.Series, np.ndarray]]:
    """The values and vectors of each feature."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{path}: cannot read as safetensors: {str(problem).splitlines()[0]}") from None
    found = {}
    for name, vectors in tensors.items():
        feature = name.removesuffix(_VALUES)
        if feature != name and feature in tensors:
            continue
        if (values := tensors.get(name + _VALUES)) is not None and values.ndim == 1 and not values.is_floating_point():
            series = pl.Series(values.numpy())
        elif name in metadata:
            series = _listed(path, name, metadata[name])
        else:
            raise UserError(
                f"{path}: the values of {name} are missing",
                f"add a tensor of integers {name}{_VALUES}, or a JSON list of them as the metadata entry {name}",
            )
        found[name] = series, vectors.float().numpy()
    return found


def _listed(path: Path, name: str, text: str) -> pl.Series:
    try:
        values = json.loads(text)
        if not isinstance(values, list):
            raise ValueError
        return pl.Series(values, strict=True)
    except (ValueError, TypeError, pl.exceptions.PolarsError):
        raise UserError(f"{path}: the metadata entry {name} is not a JSON list of values of one type") from None


def _read(path: Path) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise UserError(f"{path}: cannot read as Parquet: {reason}") from None
    if missing := [name for name in _COLUMNS if name not in frame.columns]:
        raise UserError(f"{path} lacks the column {missing[0]}", f"its columns must be {', '.join(_COLUMNS)}")
    return frame


def _matrix(path: Path, name: str, series: pl.Series, dim: int) -> np.ndarray:
    """The vectors as float32 [K, D]."""
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    if not isinstance(series.dtype, pl.List) or not series.dtype.inner.is_numeric():
        raise UserError(f"{path}: vector is of type {series.dtype}, expected lists of numbers")
    lengths = series.list.len()
    if wrong := next((length for length in lengths.to_list() if length != dim), None):
        raise UserError(f"{path}: a vector of {name} has {wrong} numbers, expected --dim {dim}")
    flat = series.explode().cast(pl.Float32).to_numpy()
    if len(flat) != len(series) * dim:
        raise UserError(f"{path}: a vector of {name} is missing")
    return np.ascontiguousarray(flat).reshape(len(series), dim)


def _rows(path: Path, features: FeatureSpace, name: str, values: pl.Series) -> np.ndarray:
    """The rows (int64) of values; reserved ones for values that the data does not have."""
    column, encoder = next((c for c in features.columns if c.name == name), None), features.encoder(name)
    if column is None or encoder is None or column.scheme not in ("vocabulary", "rows") or features.input == GENERATED:
        raise UserError(f"{path}: the ids of {name} were not made from values, so vectors have no place")
    if features.table_schema is not None:
        sparse = next(c for c in features.table_schema.sparse if c.name == name)
        found, there, _ = words(features.table_schema, sparse, values)
    else:
        base = 16 if features.input == "criteo" and values.dtype == pl.String else 10
        numbers = values.str.to_integer(base=base, strict=False) if values.dtype == pl.String else values
        unsigned = numbers.cast(pl.UInt64, strict=False)
        there = unsigned.is_not_null().to_numpy()
        found = unsigned.fill_null(0).to_numpy()
    if column.scheme == "rows":
        there &= found < column.rows
        return np.where(there, found, 0).astype(np.int64)
    dtype = column.files[0].dtype
    there &= found <= np.iinfo(dtype).max
    return encoder.encode(np.where(there, found, 0).astype(dtype), there).astype(np.int64)
