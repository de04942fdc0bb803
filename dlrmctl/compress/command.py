"""`dlrmctl compress-embeddings` behind its flags."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dlrmctl.compress.model import is_compressed, open_artifact
from dlrmctl.compress.progress import Telling
from dlrmctl.compress.report import draw_frontier, make_report, show_report
from dlrmctl.compress.request import Request, check_output
from dlrmctl.compress.run import compress, write
from dlrmctl.compress.sources import CheckpointTables, TableSource, TensorFiles
from dlrmctl.compress.trial import Trial
from dlrmctl.config import Config, resolve
from dlrmctl.console import output, print_json
from dlrmctl.datasets import open_reader
from dlrmctl.errors import UserError
from dlrmctl.evaluate import open_run
from dlrmctl.plot import check_picture
from dlrmctl.ranks import process_group
from dlrmctl.rundir import RunDirectory

_EXPAND_ROWS = 1 << 18


@dataclass(frozen=True)
class Given:
    """What stands on the command line beside the request."""

    source: Path
    out: Path
    checkpoint: str
    flags: dict[str, str]
    dry_run: bool
    explain: bool
    plot: Path | None
    as_json: bool


def compress_embeddings(given: Given, request: Request) -> None:
    """Compresses, reports, and writes unless it is a dry run.

    Raises:
        UserError, DataError: if something is not there, does not fit, or is out of reach.
    """
    if not given.dry_run:
        check_output(given.out)
    if given.plot is not None:
        check_picture(given.plot)
    run, config = _run_of(given.source, given.flags)
    if run is None or config is None:
        if request.goal == "budget":
            raise UserError(
                f"--max-ne-increase needs the model of a run to evaluate; {given.source} holds tensors alone",
                "--target-ratio or --method need none",
            )
        if is_compressed(given.source):
            raise UserError(f"{given.source}: is compressed already", "--expand writes its plain tables")
        tables = _checkpoint_or_files(given.source, request)
        _finish(given, request, tables, {})
        return
    with process_group("cpu") as ranks:
        opened = open_run(config, run, ranks, checkpoint=_checkpoint_name(given, run), split="validation")
        trials = {"validation": Trial(opened.embeddings, opened.network, opened.reader)}
        reader = open_reader(config, opened.source, "test", ranks, training=False)
        trials["test"] = Trial(opened.embeddings, opened.network, reader)
        _finish(given, request, CheckpointTables(opened.checkpoint), trials)


def _checkpoint_name(given: Given, run: RunDirectory) -> str:
    """The checkpoint of the run that is meant: the source itself may be one."""
    inside = given.source.resolve()
    return inside.name if inside != run.path.resolve() else given.checkpoint


def _finish(given: Given, request: Request, tables: TableSource, trials: dict[str, Trial]) -> None:
    compression = compress(tables, request, trial=trials.get("validation"), counts={}, tell=Telling())
    report = {"source": str(given.source), **make_report(compression, trials)}
    if not given.dry_run:
        write(compression, given.out, report)
    if given.plot is not None:
        draw_frontier(compression, report, given.plot)
    if given.as_json:
        print_json(report)
    else:
        show_report(report, None if given.dry_run else given.out, explain=given.explain)


def _run_of(source: Path, flags: dict[str, str]) -> tuple[RunDirectory | None, Config | None]:
    """The run that `source` is or lies in, with its settings; None for files of tensors."""
    for path in (source, *source.resolve().parents[:2]):
        if (path / "run.toml").is_file() and not is_compressed(path):
            run = RunDirectory(path, writes=False)
            return run, resolve(run.settings(), flags, file_name=str(path / "run.toml"))
    return None, None


def _checkpoint_or_files(source: Path, request: Request) -> TableSource:
    if (source / "complete.json").is_file():
        return CheckpointTables(source)
    return TensorFiles(source, request.tables)


def expand(source: Path, out: Path) -> None:
    """Writes the tables of a compressed directory as plain float32 ones, "TABLE.weight", a file each.

    Raises:
        UserError: if `source` is not compressed or `out` exists.
    """
    check_output(out)
    if not is_compressed(source):
        raise UserError(f"{source}: holds no compressed tables", "compress-embeddings makes them")
    artifact = open_artifact(source)
    partial = out.with_name(out.name + ".partial")
    try:
        partial.mkdir()
        for name in artifact.tables:
            save_file({f"{name}.weight": _expanded(artifact.read(name))}, partial / f"{name}.safetensors")
        partial.rename(out)
    except OSError as problem:
        raise UserError(f"{out}: cannot be written: {problem.strerror or problem}") from None
    output.print(f"{out}: {len(artifact.tables)} plain tables")


def _expanded(table: Any) -> Tensor:
    parts = [table.expand(start, start + _EXPAND_ROWS) for start in range(0, table.num_rows, _EXPAND_ROWS)]
    return torch.cat(parts)
