"""Compressed tables written back as plain ones: whole rows, or the short rows of near-isometric maps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dlrmctl.compress.model import REPORT, is_compressed, open_artifact
from dlrmctl.compress.request import check_output
from dlrmctl.console import output
from dlrmctl.errors import UserError
from embeddings.compression.artifact import Artifact
from embeddings.compression.isometric import Isometric
from embeddings.compression.rules import Compressed

_ROWS = 1 << 18


def expand(source: Path, out: Path) -> None:
    """Writes the tables of a compressed directory as plain float32 ones, "TABLE.weight", a file each.

    Raises:
        UserError: if `source` is not compressed or `out` exists.
    """
    artifact = _open(source, out)

    def write(directory: Path) -> None:
        for name in artifact.tables:
            save_file({f"{name}.weight": _whole(artifact.read(name))}, directory / f"{name}.safetensors")

    _write_directory(out, write)
    output.print(f"{out}: {len(artifact.tables)} plain tables")


def export_vectors(source: Path, out: Path) -> None:
    """Writes the coordinates of near-isometric tables for a search of nearest neighbours, a file for each table.

    TABLE.safetensors   "vectors" float32 [rows, R]; and for rows that are not in the table, which become
                        (row - mean) @ projection.T: "projection" [R, D] and "mean" [D]
    report.json         certificate of each: how far squared distances of vectors are from those of the rows

    Raises:
        UserError: if `source` is not compressed, holds no such tables, or `out` exists.
    """
    artifact = _open(source, out)
    names = [name for name, entry in artifact.tables.items() if entry["rule"] == Isometric.rule]
    if not names:
        raise UserError(
            f"{source}: holds no near-isometric tables",
            "compress-embeddings RUN -o DIR --method near-isometric12 makes them",
        )

    def write(directory: Path) -> None:
        certificates: dict[str, Any] = {}
        for name in names:
            table = artifact.read(name)
            assert isinstance(table, Isometric)
            tensors = {"vectors": _whole(table.coordinates), "projection": table.projection, "mean": table.mean}
            save_file(tensors, directory / f"{name}.safetensors")
            certificates[name] = {"rows": table.num_rows, "dim": table.coordinates.dim, **table.certificate}
        (directory / REPORT).write_text(json.dumps({"source": str(source), "tables": certificates}, indent=1) + "\n")

    _write_directory(out, write)
    output.print(f"{out}: the vectors of {len(names)} tables, with what they keep of distances in {REPORT}")


def _open(source: Path, out: Path) -> Artifact:
    check_output(out)
    if not is_compressed(source):
        raise UserError(f"{source}: holds no compressed tables", "compress-embeddings makes them")
    return open_artifact(source)


def _write_directory(out: Path, write: Callable[[Path], None]) -> None:
    """A whole directory or none."""
    partial = out.with_name(out.name + ".partial")
    try:
        partial.mkdir()
        write(partial)
        partial.rename(out)
    except OSError as problem:
        raise UserError(f"{out}: cannot be written: {problem.strerror or problem}") from None


def _whole(table: Compressed) -> Tensor:
    whole = torch.empty(table.num_rows, table.dim)
    for start in range(0, table.num_rows, _ROWS):
        whole[start : start + _ROWS] = table.expand(start, start + _ROWS)
    return whole
