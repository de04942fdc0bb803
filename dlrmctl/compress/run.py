"""A compression from its source to the finished directory."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrmctl.compress.budget import Joint, Search, calibrate, realize, within_budget
from dlrmctl.compress.model import DENSE_FILE, REPORT
from dlrmctl.compress.options import TableOptions, fit_options
from dlrmctl.compress.progress import Telling
from dlrmctl.compress.request import Request
from dlrmctl.compress.sources import CheckpointTables, TableShape, TableSource, choose_tables
from dlrmctl.compress.trial import Trial
from dlrmctl.console import finite, warn
from dlrmctl.errors import UserError
from dlrmctl.toml import write_toml
from embeddings.compression.artifact import Artifact, Writer
from embeddings.compression.budget import Choice, Frontier, predicted_options
from embeddings.compression.rules import Compressed, Rows


@dataclass
class Compression:
    """What was decided: an option for each chosen table, and what is known about its cost."""

    request: Request
    source: TableSource
    tables: list[TableOptions]
    kept: list[TableShape]
    choice: Choice
    frontier: Frontier
    search: Search | None = None
    joint: Joint | None = None

    @property
    def bytes_before(self) -> int:
        return sum(table.num_bytes for table in self.source.tables)

    @property
    def bytes_after(self) -> int:
        return self.choice.num_bytes + sum(table.num_bytes for table in self.kept)

    @property
    def ratio(self) -> float:
        return self.bytes_before / self.bytes_after

    def replaced(self) -> dict[str, Compressed]:
        """The compressed tables by name."""
        return realize(self.tables, self.choice)


def compress(
    source: TableSource, request: Request, *, trial: Trial | None, counts: dict[str, Tensor], tell: Telling
) -> Compression:
    """Fits options and chooses among them.

    Args:
        trial: on validation rows; needed for a budget.
        counts: times each row was looked up, for the tables where that is known.

    Raises:
        UserError: if a table cannot be compressed as asked, or the goal is out of reach.
    """
    names = choose_tables(source.tables, request.tables, request.min_rows)
    if not names:
        most = max(table.rows for table in source.tables)
        raise UserError(f"--min-rows {request.min_rows:,}: no table has as many rows", f"the largest has {most:,}")
    tables = _fit_all(source, request, names, counts, tell)
    kept = [table for table in source.tables if table.name not in names]
    sizes = [[fitted.num_bytes for fitted in table.fitted] for table in tables]
    proxies = [[fitted.proxy for fitted in table.fitted] for table in tables]
    frontier = Frontier(predicted_options(sizes, proxies, 1.0))
    fixed, total = sum(table.num_bytes for table in kept), sum(table.num_bytes for table in source.tables)
    if request.goal == "method":
        last = tuple(len(table.fitted) - 1 for table in tables)
        choice = Choice(last, sum(s[i] for s, i in zip(sizes, last, strict=True)), 0.0)
        return Compression(request, source, tables, kept, choice, frontier)
    if request.goal == "ratio":
        assert request.ratio is not None
        try:
            choice = frontier.within_bytes(math.floor(total / request.ratio) - fixed)
        except ValueError:
            best = total / (int(frontier.num_bytes[0]) + fixed)
            raise UserError(
                f"--target-ratio {request.ratio:g}x is out of reach: the smallest tables give {best:.1f}x",
                "lower --min-rows to compress more tables" if fixed else None,
            ) from None
        return Compression(request, source, tables, kept, choice, frontier)
    assert trial is not None
    assert request.budget is not None
    search = calibrate(tables, trial, around=request.budget / 2, tell=tell)
    joint = within_budget(search, trial, request.budget, tell=tell)
    if joint is None:
        least = min(search.joints, key=lambda tried: tried.upper)
        raise UserError(
            f"--max-ne-increase {100 * request.budget:g}% is out of reach: the least rise found is "
            f"{100 * least.measured:.4f} ±{100 * least.se:.4f} %, at {total / (least.choice.num_bytes + fixed):.1f}x",
            f"--max-ne-increase {100 * max(least.upper, 0.0) * 1.05:.2g}%, or more validation rows",
        )
    return Compression(request, source, tables, kept, joint.choice, search.frontier, search, joint)


def _fit_all(
    source: TableSource, request: Request, names: set[str], counts: dict[str, Tensor], tell: Telling
) -> list[TableOptions]:
    """The options of all chosen tables; a table per core at a time."""
    shapes = [table for table in source.tables if table.name in names]
    done = 0

    def fit(shape: TableShape) -> TableOptions:
        nonlocal done
        context = f"{shape.name} ({shape.rows:,} x {shape.dim})"
        found = fit_options(
            source,
            shape.name,
            request.methods(shape.rows, shape.dim),
            weights=request.weights,
            counts=counts.get(shape.name),
            progress=partial(tell.rows, context),
            must_fit=request.goal == "method",
        )
        done += 1
        tell(f"fitted {done} of {len(shapes)}: {context}, {len(found.fitted)} ways")
        return found

    # Large tables first, so that the last one to end is small. Their products are too small for several threads.
    order = sorted(shapes, key=lambda shape: -shape.num_bytes)
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1)) as pool:
        by_name = {table.name: table for table in pool.map(fit, order)}
    tables = [by_name[shape.name] for shape in shapes]
    for table in tables:
        if request.goal == "method" and len(table.fitted) == 1:
            name = request.methods(table.rows, table.dim)[-1].name
            warn(f"{table.name}, {table.rows:,} x {table.dim}: {name} is not smaller; it stays float32")
    if any(table.weights_kind == "uniform" for table in tables) and request.weights != "uniform":
        warn(
            "no AdaGrad state and no counts: every row weighs the same, which costs several times as much NE "
            "at the same size"
        )
    return tables


def write(compression: Compression, out: Path, report: dict[str, Any]) -> Artifact:
    """Writes the directory, whole or not at all; its bytes go into the report.

    Raises:
        UserError: if the disk refuses.
    """
    source = compression.source
    try:
        with Writer(out, source=finite(source.describe())) as writer:
            for table in compression.tables:
                fitted = table.fitted[compression.choice.indices[compression.tables.index(table)]]
                writer.add(table.name, table.table(fitted.method), {"method": fitted.method})
            for shape in compression.kept:
                writer.add(shape.name, as_it_is(source, shape), {"method": "fp32"})
            if isinstance(source, CheckpointTables):
                writer.add_tensors(DENSE_FILE, source.network())
        artifact = Artifact(out, verify=False)
        if isinstance(source, CheckpointTables):
            write_toml(out / "run.toml", source.state["settings"])
        files = artifact.file_bytes
        report["files"] = {"tensors": files.tensors, "headers": files.headers, "manifest": files.manifest}
        (out / REPORT).write_text(json.dumps(finite(report), indent=1) + "\n")
    except OSError as problem:
        raise UserError(
            f"{out}: cannot be written: {problem.strerror or problem}", "free space and try again"
        ) from None
    return artifact


def as_it_is(source: TableSource, shape: TableShape) -> Compressed:
    """A table as float32 rows."""
    return Rows(source.weight(shape.name).float(), shape.dim, 32)
