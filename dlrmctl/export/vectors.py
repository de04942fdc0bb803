"""Writes the vectors of a feature's values to a file, for a search of nearest neighbours in another program.

N values, D columns.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from dlrmctl.assembly.tables import feature_tables
from dlrmctl.console.console import output
from dlrmctl.console.text import bytes_text
from dlrmctl.data.files import io_errors, whole_file
from dlrmctl.data.schema import RESERVED_ROWS
from dlrmctl.embeddings.compression.composed import StoredEmbeddings, compose
from dlrmctl.embeddings.module import SparseIds
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import OpenedModel, open_model
from dlrmctl.settings.config import Config
from dlrmctl.settings.synonyms import nearest

SUFFIXES = (".parquet", ".faiss")
_ROWS_AT_ONCE = 1 << 16


def export_vectors(
    config: Config, run: RunDirectory, ranks: Ranks, *, checkpoint: str, feature: str, out: Path
) -> dict[str, Any]:
    """Writes the vectors of all values of a feature that have a row of their own.

    Args:
        config: settings of the run.
        run: directory of a run or of a compressed model.
        checkpoint: "best", "last" or "step-N".
        feature: name of a sparse feature with a vocabulary.
        out: .parquet, with the columns value, row and vector, most frequent values first; or .faiss, an index of
            inner products whose ids are the rows.

    Returns:
        The file, and the numbers of vectors and columns.

    Raises:
        UserError, DataError: if something is missing, or does not fit.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out}: the name of a file of vectors must end in {' or '.join(SUFFIXES)}")
    if out.exists():
        raise UserError(f"{out} already exists", "choose another file, or remove this one")
    faiss = _faiss() if out.suffix == ".faiss" else None
    opened = open_model(config, run, ranks, checkpoint=checkpoint)
    features = opened.features
    if feature not in features.schema.keys:
        close = nearest(feature, features.schema.keys)
        raise UserError(
            f"--vectors {feature}: {run.path} has no such sparse feature", f"did you mean {close!r}?" if close else None
        )
    if not features.sorted_by_frequency(feature):
        raise UserError(f"--vectors {feature}: it has no vocabulary, so its rows have no values")
    rows = next(column.rows for column in features.columns if column.name == feature)
    vectors_ND = np.concatenate(list(_vectors(config, run, opened, feature, rows)))
    ids_N = np.arange(RESERVED_ROWS, rows)
    if faiss is not None:
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors_ND.shape[1]))
        index.add_with_ids(vectors_ND, ids_N)
        with whole_file(out) as file:
            file.write(faiss.serialize_index(index).tobytes())
    else:
        values = features.values_of(feature, ids_N.tolist())
        vectors = pl.Series(vectors_ND, dtype=pl.Array(pl.Float32, vectors_ND.shape[1]))
        frame = pl.DataFrame({"value": pl.Series(values, dtype=pl.String), "row": ids_N, "vector": vectors})
        with whole_file(out) as file:
            frame.write_parquet(file)
    with io_errors(out, "read"):
        size = out.stat().st_size
    return {
        "out": str(out),
        "run": str(run.path),
        "checkpoint": opened.checkpoint.name,
        "feature": feature,
        "vectors": len(vectors_ND),
        "dim": vectors_ND.shape[1],
        "bytes": size,
    }


def show_vectors(result: dict[str, Any]) -> None:
    """Prints the file on standard output."""
    what = f"{result['vectors']:,} vectors of {result['feature']} with {result['dim']} columns"
    output.print(f"wrote {result['out']}: {what}, {bytes_text(result['bytes'])}")


def _vectors(config: Config, run: RunDirectory, opened: OpenedModel, feature: str, rows: int) -> Iterator[np.ndarray]:
    """Yields the vectors of all rows but the reserved ones, float32 [N, D]."""
    model = opened.model
    if not isinstance(model, DLRM) or not isinstance(model.embeddings, StoredEmbeddings):
        raise UserError(f"{run.path} is a baseline, which has no vectors")
    whole = model.embeddings
    names = (*whole.bag_ids.tables, *whole.row_ids.tables)
    tables: dict[str, Any] = dict(zip(names, (*whole.bags, *whole.rows), strict=True))
    described = feature_tables(config, opened.features.schema)
    module = compose([table for table in described if table.name == feature], config.embeddings.dim, tables)
    with torch.no_grad():
        for start in range(RESERVED_ROWS, rows, _ROWS_AT_ONCE):
            ids_N = torch.arange(start, min(start + _ROWS_AT_ONCE, rows))
            yield module(SparseIds((feature,), ids_N, None, len(ids_N))).flatten(1).float().numpy()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("a .faiss file needs faiss", 'pip install "dlrmctl[faiss]"') from None
    return faiss
