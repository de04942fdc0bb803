"""Fits the options of tables, chooses among them, and writes the result."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dlrmctl.assembly.compressed import DENSE_FILE, REPORT, WIDE_FILE
from dlrmctl.compress.finetune import Tuned
from dlrmctl.compress.fitting import SMALL_BYTES, find_options, fit_options
from dlrmctl.compress.options import Counts, Kept, TableOptions
from dlrmctl.compress.request import Request, out_of_reach, split_tables
from dlrmctl.compress.search import BudgetSearch, Joint, frontier_of, priced, realize
from dlrmctl.compress.trial import Trial
from dlrmctl.console.console import finite, warn
from dlrmctl.console.progress import BarDisplay
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.files import io_errors
from dlrmctl.embeddings.compression.artifact import Writer
from dlrmctl.embeddings.compression.frontier import Choice, Frontier
from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows
from dlrmctl.rundir.directory import FEATURES
from dlrmctl.rundir.stored_tables import CheckpointTables, TableShape, TableSource
from dlrmctl.settings.toml import write_settings

_MOST_FILE_BYTES = 256 << 20
_ROUNDS = 4  # of choosing and fitting
_WORTH_A_FIT = 0.98  # share of the error above which another choice is not tried


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
            method = table.options[index].method
            yield table.name, method, partial(table.table, method)
        for shape in self.kept:
            yield shape.name, "fp32", partial(as_it_is, self.source, shape)

    def replaced(self) -> dict[str, Compressed]:
        """The compressed tables by name."""
        return realize(self.tables, self.choice.indices)


def compress(
    source: TableSource, request: Request, *, trial: Trial | None, counts: Counts, progress: BarDisplay
) -> Compression:
    """Chooses among the options of tables and fits the chosen ones.

    Args:
        trial: on validation examples; needed for a budget.
        counts: number of lookups of each row, if known.

    Raises:
        UserError: if a table cannot be compressed as requested, or the goal cannot be reached.
    """
    shapes, kept = split_tables(source, request)
    total = sum(table.stored_bytes for table in source.tables)
    # A model that is evaluated has all its tables in memory; otherwise only the largest table may need memory.
    most_kept = total if trial is not None else max(SMALL_BYTES, max(table.num_bytes for table in source.tables) // 2)
    tables = find_options(source, request, shapes, counts, kept=Kept(most_kept), progress=progress)
    fixed = sum(table.num_bytes for table in kept)
    if request.budget is not None:
        assert trial is not None
        search = BudgetSearch(tables, partial(_ne_rise, tables, trial, progress), request.budget, progress)
        joint = search.run()
        compression = Compression(request, source, tables, kept, joint.choice, search.frontier, search, joint)
        _warn_of_nothing(compression, request.budget)
        return compression
    if request.ratio is None:
        choice = priced(tables, [len(table.options) - 1 for table in tables])
        return Compression(request, source, tables, kept, choice, frontier_of(tables))
    most, least = math.floor(total / request.ratio) - fixed, frontier_of(tables).choice(0).num_bytes
    if most < least:
        raise out_of_reach(request, total / (least + fixed), kept)
    choice = _least_error(tables, most, progress)
    return Compression(request, source, tables, kept, choice, frontier_of(tables))


def _least_error(tables: list[TableOptions], most_bytes: int, progress: BarDisplay) -> Choice:
    """Fits the choice with the least error within these bytes.

    The first choice is made by estimated errors. Then the measured errors of its options may show that another is
    better, which is fitted, too.
    """
    best: Choice | None = None
    for _ in range(_ROUNDS):
        choice = frontier_of(tables).within_bytes(most_bytes)
        if best is not None and choice.error > _WORTH_A_FIT * best.error:
            break
        fit_options(tables, choice.indices, progress=progress)
        choice = priced(tables, choice.indices)
        best = choice if best is None or choice.error < best.error else best
    assert best is not None
    return best


def _ne_rise(
    tables: list[TableOptions], trial: Trial, progress: BarDisplay, indices: Sequence[int]
) -> tuple[float, float]:
    """Fits these options, one of each table, and returns the increase of NE and its standard error."""
    fit_options(tables, indices, progress=progress)
    return trial.ne_rise(realize(tables, indices))


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


def _waiting_bytes(source: TableSource) -> int:
    """Memory for tables that wait to be written, in bytes."""
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
    file_bytes = min(_waiting_bytes(source), _MOST_FILE_BYTES)
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
