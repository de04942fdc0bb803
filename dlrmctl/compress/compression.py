"""Fits the options of tables, chooses among them, and writes the result."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dlrmctl.assembly.compressed import DENSE_FILE, REPORT, WIDE_FILE
from dlrmctl.compress.finetune import Tuned
from dlrmctl.compress.fitting import SMALL_BYTES, Counts, Kept, TableOptions, fit_all
from dlrmctl.compress.request import Request, out_of_reach, split_tables
from dlrmctl.compress.search import BudgetSearch, Joint, calibrate, realize, within_budget
from dlrmctl.compress.trial import Trial
from dlrmctl.console.console import finite, warn
from dlrmctl.console.progress import BarDisplay
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.files import io_errors
from dlrmctl.embeddings.compression.artifact import Writer
from dlrmctl.embeddings.compression.frontier import Choice, Frontier, predicted_options
from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows
from dlrmctl.rundir.directory import FEATURES
from dlrmctl.rundir.stored_tables import CheckpointTables, TableShape, TableSource
from dlrmctl.settings.toml import write_settings

_MOST_FILE_BYTES = 256 << 20


@dataclass
class Compression:
    """The chosen option of each table, and its cost."""

    request: Request
    source: TableSource
    tables: list[TableOptions]
    kept: list[TableShape]
    choice: Choice
    frontier: Frontier
    search: BudgetSearch | None = None
    joint: Joint | None = None

    @property
    def bytes_before(self) -> int:
        return sum(table.stored_bytes for table in self.source.tables)

    @property
    def bytes_after(self) -> int:
        return self.choice.num_bytes + sum(table.num_bytes for table in self.kept)

    @property
    def ratio(self) -> float:
        return self.bytes_before / self.bytes_after

    def results(self) -> Iterator[tuple[str, str, Callable[[], Compressed]]]:
        """Yields the name, the method and a function that returns the compressed table, for every table."""
        for table, index in zip(self.tables, self.choice.indices, strict=True):
            method = table.fitted[index].method
            yield table.name, method, partial(table.table, method)
        for shape in self.kept:
            yield shape.name, "fp32", partial(as_it_is, self.source, shape)

    def replaced(self) -> dict[str, Compressed]:
        """The compressed tables by name."""
        return realize(self.tables, self.choice)


def compress(
    source: TableSource, request: Request, *, trial: Trial | None, counts: Counts, progress: BarDisplay
) -> Compression:
    """Fits options and chooses among them.

    Args:
        trial: on validation examples; needed for a budget.
        counts: number of lookups of each row, if known.

    Raises:
        UserError: if a table cannot be compressed as requested, or the goal cannot be reached.
    """
    shapes, kept = split_tables(source, request)
    total = sum(table.stored_bytes for table in source.tables)
    # A model that is evaluated has all its tables in memory; otherwise only the largest table may need memory.
    working = total if trial is not None else _working_bytes(source)
    tables = fit_all(source, request, shapes, counts, kept=Kept(working), progress=progress)
    sizes = [[fitted.num_bytes for fitted in table.fitted] for table in tables]
    proxies = [[fitted.proxy for fitted in table.fitted] for table in tables]
    fixed = sum(table.num_bytes for table in kept)
    if request.goal == "budget":
        assert trial is not None
        assert request.budget is not None
        search = calibrate(tables, trial, around=request.budget / 2, progress=progress)
        joint = within_budget(search, trial, request.budget, progress=progress)
        compression = Compression(request, source, tables, kept, joint.choice, search.frontier, search, joint)
        _warn_of_nothing(compression, request.budget)
        return compression
    frontier = Frontier(predicted_options(sizes, proxies, 1.0))
    if request.goal == "method":
        last = tuple(len(table.fitted) - 1 for table in tables)
        choice = Choice(last, sum(s[i] for s, i in zip(sizes, last, strict=True)), 0.0)
        return Compression(request, source, tables, kept, choice, frontier)
    assert request.ratio is not None
    try:
        choice = frontier.within_bytes(math.floor(total / request.ratio) - fixed)
    except ValueError:
        raise out_of_reach(request, total / (int(frontier.num_bytes[0]) + fixed), kept) from None
    return Compression(request, source, tables, kept, choice, frontier)


def _warn_of_nothing(compression: Compression, budget: float) -> None:
    """Warns if only float32 tables keep the budget, with the best of the smaller choices."""
    assert compression.search is not None
    assert compression.joint is not None
    others = [tried for tried in compression.search.joints if tried.choice != compression.joint.choice]
    if set(compression.search.methods(compression.joint.choice).values()) == {"fp32"} and others:
        least = min(others, key=lambda tried: tried.upper)
        warn(
            f"--max-ne-increase {100 * budget:g}%: only float32 tables keep this budget; the best smaller choice "
            f"increases NE by {least.judged(budget)}. More validation rows make the second number smaller"
        )


def _working_bytes(source: TableSource) -> int:
    """Memory for other tables than the current one, in bytes."""
    return max(SMALL_BYTES, max(table.num_bytes for table in source.tables) // 4)


def write(
    compression: Compression,
    out: Path,
    report: dict[str, Any],
    tuned: Tuned | None = None,
    features: FeatureSpace | None = None,
) -> None:
    """Writes the directory atomically, and its size into the report.

    Args:
        tuned: tables and dense network to write instead of the fitted and the trained ones.
        features: of the data, written so that raw rows can be scored; not included in the size.

    Raises:
        DataError: if the directory cannot be written.
    """
    source = compression.source
    file_bytes = min(_working_bytes(source), _MOST_FILE_BYTES)
    with io_errors(out, "write"), Writer(out, source=finite(source.describe()), file_bytes=file_bytes) as writer:
        for name, method, fitted in compression.results():
            writer.add(name, tuned.tables[name] if tuned else fitted(), {"method": method})
        if isinstance(source, CheckpointTables):
            writer.add_tensors(DENSE_FILE, tuned.network.state_dict() if tuned else source.network())
            if wide := source.wide():
                writer.add_tensors(WIDE_FILE, wide)
        report["files"] = asdict(writer.seal())
        if isinstance(source, CheckpointTables):
            settings = writer.directory / "run.toml"
            write_settings(settings, source.state.settings)
            report["files"]["settings"] = settings.stat().st_size
        if features is not None:
            features.save(writer.directory / FEATURES)
        (writer.directory / REPORT).write_text(_with_its_own_size(report))


def _with_its_own_size(report: dict[str, Any]) -> str:
    """The report as JSON, including its own size."""
    size, text = -1, ""
    while size != len(text.encode()):  # terminates: more digits never make the text shorter
        size = len(text.encode())
        report["files"]["report"] = size
        text = json.dumps(finite(report), indent=1) + "\n"
    return text


def as_it_is(source: TableSource, shape: TableShape) -> Compressed:
    """A table as float32 rows."""
    return StoredRows(source.weight(shape.name).float(), shape.dim, 32)
