"""Writes the vectors of a feature's values to a file, for a search of nearest neighbours in another program.

N values, D columns.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from dlrmctl.console.console import output
from dlrmctl.console.text import bytes_text
from dlrmctl.data.files import io_errors, whole_file
from dlrmctl.data.schema import RESERVED_ROWS
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import open_model, vectors_of
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
    look_up, ids_N = vectors_of(opened, run.path, feature), np.arange(RESERVED_ROWS, rows)
    vectors_ND = np.concatenate([look_up(ids).numpy() for ids in torch.from_numpy(ids_N).split(_ROWS_AT_ONCE)])
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


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("a .faiss file needs faiss", 'pip install "dlrmctl[faiss]"') from None
    return faiss
