"""Writes compressed tables as plain tensors: full rows, or the short rows of near-isometric maps."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrmctl.assembly.compressed import REPORT, is_compressed, open_artifact
from dlrmctl.compress.request import check_output
from dlrmctl.console.console import output, print_json
from dlrmctl.console.text import bytes_text
from dlrmctl.data.files import io_errors
from dlrmctl.embeddings.compression.artifact import Artifact, begin_directory, publish, save_tensors
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.embeddings.compression.rules.sharing import Isometric
from dlrmctl.errors import UserError

_ROWS = 1 << 18


@dataclass(frozen=True)
class Target:
    """The output directory, and the format of the report."""

    out: Path
    dry_run: bool = False
    as_json: bool = False


def expand(source: Path, target: Target) -> None:
    """Writes each table of a compressed model to a file, as a float32 tensor "TABLE.weight".

    Raises:
        UserError: if `source` is not compressed, or the output exists.
    """
    artifact = _open(source, target)

    def write(directory: Path) -> None:
        for name in artifact.tables:
            save_tensors({f"{name}.weight": _whole(artifact.read(name))}, directory / f"{name}.safetensors")

    tables = [_plain(name, entry["rows"], entry["dim"]) for name, entry in artifact.tables.items()]
    _finish(source, target, write, tables, "plain tables")


def export_vectors(source: Path, target: Target) -> None:
    """Writes the coordinates of near-isometric tables for nearest-neighbour search, one file per table.

    TABLE.safetensors   "vectors" float32 [rows, R]; and for rows that are not in the table, mapped by
                        (row - mean) @ projection.T: "projection" [R, D] and "mean" [D]
    report.json         certificate of each table: error of squared distances between vectors

    Raises:
        UserError: if `source` is not compressed, has no such tables, or the output exists.
    """
    artifact = _open(source, target)
    names = [name for name, entry in artifact.tables.items() if entry["rule"] == Isometric.rule]
    if not names:
        raise UserError(
            f"{source} contains no near-isometric tables",
            "make them: dlrmctl compress-embeddings RUN -o DIR --method nile-pro12",
        )

    def write(directory: Path) -> None:
        certificates: dict[str, Any] = {}
        for name in names:
            table = artifact.read(name)
            assert isinstance(table, Isometric)
            tensors = {"vectors": _whole(table.coordinates), "projection": table.projection, "mean": table.mean}
            save_tensors(tensors, directory / f"{name}.safetensors")
            certificates[name] = {"rows": table.num_rows, "dim": table.coordinates.dim, **table.certificate}
        (directory / REPORT).write_text(json.dumps({"source": str(source), "tables": certificates}, indent=1) + "\n")

    specs = {name: artifact.tables[name]["spec"]["coordinates"] for name in names}
    tables = [_plain(name, spec["rows"], spec["dim"]) for name, spec in specs.items()]
    _finish(source, target, write, tables, f"tables of vectors, with their distance errors in {REPORT}")


def _open(source: Path, target: Target) -> Artifact:
    if not target.dry_run:
        check_output(target.out)
    if not is_compressed(source):
        raise UserError(f"{source} contains no compressed tables", "make them with dlrmctl compress-embeddings")
    return open_artifact(source)


def _plain(name: str, rows: int, dim: int) -> dict[str, Any]:
    return {"name": name, "rows": rows, "dim": dim, "bytes": 4 * rows * dim}


def _finish(
    source: Path, target: Target, write: Callable[[Path], None], tables: Sequence[dict[str, Any]], what: str
) -> None:
    if not target.dry_run:
        _write_directory(target.out, write)
    num_bytes = sum(table["bytes"] for table in tables)
    if target.as_json:
        print_json({"source": str(source), "bytes": num_bytes, "tables": tables})
    else:
        written = "nothing written" if target.dry_run else f"wrote {target.out}"
        output.print(f"{written}: {len(tables)} {what}, {bytes_text(num_bytes)}")


def _write_directory(out: Path, write: Callable[[Path], None]) -> None:
    """Writes a directory atomically."""
    partial = None
    try:
        with io_errors(out, "write"):
            partial = begin_directory(out)
            write(partial)
            publish(partial, out)
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _whole(table: Compressed) -> Tensor:
    whole = torch.empty(table.num_rows, table.dim)
    for start in range(0, table.num_rows, _ROWS):
        whole[start : start + _ROWS] = table.expand(start, start + _ROWS)
    return whole
