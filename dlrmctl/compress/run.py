"""A compression from its source to the finished directory."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dlrmctl.compress.budget import Joint, Search, calibrate, realize, within_budget
from dlrmctl.compress.finetune import Tuned
from dlrmctl.compress.fitting import fit_all
from dlrmctl.compress.model import DENSE_FILE, REPORT
from dlrmctl.compress.options import Counts, Kept, TableOptions
from dlrmctl.compress.progress import Telling
from dlrmctl.compress.reach import out_of_reach, split_tables
from dlrmctl.compress.request import Request
from dlrmctl.compress.sources import CheckpointTables, TableShape, TableSource
from dlrmctl.compress.trial import Trial
from dlrmctl.console import finite
from dlrmctl.errors import UserError
from dlrmctl.toml import write_toml
from embeddings.compression.artifact import Artifact, Writer
from embeddings.compression.budget import Choice, Frontier, predicted_options
from embeddings.compression.rules import Compressed, Rows

_LEAST_WORKING_BYTES = 32 << 20  # of fitted tables that are kept, and of tables that wait to be written
_MOST_FILE_BYTES = 256 << 20


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

    def results(self) -> Iterator[tuple[str, str, Callable[[], Compressed]]]:
        """Name and method of every table, and what makes it, one after the other."""
        for table, index in zip(self.tables, self.choice.indices, strict=True):
            method = table.fitted[index].method
            yield table.name, method, partial(table.table, method)
        for shape in self.kept:
            yield shape.name, "fp32", partial(as_it_is, self.source, shape)

    def replaced(self) -> dict[str, Compressed]:
        """The compressed tables by name."""
        return realize(self.tables, self.choice)


def compress(
    source: TableSource, request: Request, *, trial: Trial | None, counts: Counts, tell: Telling
) -> Compression:
    """Fits options and chooses among them.

    Args:
        trial: on validation rows; needed for a budget.
        counts: times each row was looked up, where that is known.

    Raises:
        UserError: if a table cannot be compressed as asked, or the goal is out of reach.
    """
    shapes, kept = split_tables(source, request)
    total = sum(table.num_bytes for table in source.tables)
    # A model that is evaluated has all its tables in memory anyway; otherwise the largest alone shall matter.
    working = total if trial is not None else _working_bytes(source)
    tables = fit_all(source, request, shapes, counts, kept=Kept(working), tell=tell)
    sizes = [[fitted.num_bytes for fitted in table.fitted] for table in tables]
    proxies = [[fitted.proxy for fitted in table.fitted] for table in tables]
    frontier = Frontier(predicted_options(sizes, proxies, 1.0))
    fixed = sum(table.num_bytes for table in kept)
    if request.goal == "method":
        last = tuple(len(table.fitted) - 1 for table in tables)
        choice = Choice(last, sum(s[i] for s, i in zip(sizes, last, strict=True)), 0.0)
        return Compression(request, source, tables, kept, choice, frontier)
    if request.goal == "ratio":
        assert request.ratio is not None
        try:
            choice = frontier.within_bytes(math.floor(total / request.ratio) - fixed)
        except ValueError:
            raise out_of_reach(request, total / (int(frontier.num_bytes[0]) + fixed), kept) from None
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


def _working_bytes(source: TableSource) -> int:
    """What may be held beside the table that is worked on."""
    return max(_LEAST_WORKING_BYTES, max(table.num_bytes for table in source.tables) // 4)


def write(compression: Compression, out: Path, report: dict[str, Any], tuned: Tuned | None = None) -> Artifact:
    """Writes the directory, whole or not at all; its bytes go into the report.

    Args:
        tuned: tables and dense network to write in place of the fitted and the trained ones.

    Raises:
        UserError: if the disk refuses.
    """
    source = compression.source
    file_bytes = min(_working_bytes(source), _MOST_FILE_BYTES)
    try:
        with Writer(out, source=finite(source.describe()), file_bytes=file_bytes) as writer:
            for name, method, fitted in compression.results():
                writer.add(name, tuned.tables[name] if tuned else fitted(), {"method": method})
            if isinstance(source, CheckpointTables):
                writer.add_tensors(DENSE_FILE, tuned.network.state_dict() if tuned else source.network())
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
