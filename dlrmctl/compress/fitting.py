"""Estimates and fits the options of tables, several tables at a time.

Errors are estimated on samples first; only options that a choice needs are fitted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition, Lock

import torch

from dlrmctl.compress.options import EXACT, Candidate, Counts, Kept, TableOptions, open_table
from dlrmctl.compress.request import Request
from dlrmctl.console.console import warn
from dlrmctl.console.progress import BarDisplay
from dlrmctl.embeddings.compression.fits.codebook import SAMPLE_ROWS
from dlrmctl.embeddings.compression.fits.methods import Method, least_bytes
from dlrmctl.embeddings.compression.fits.quality import Quality
from dlrmctl.rundir.stored_tables import TableShape, TableSource

SMALL_BYTES = 32 << 20  # memory for tables at work, and for kept ones, even if the largest table is smaller


def find_options(
    source: TableSource,
    request: Request,
    shapes: Sequence[TableShape],
    counts: Counts,
    *,
    kept: Kept,
    progress: BarDisplay,
) -> list[TableOptions]:
    """Returns the options of these tables, in order: with a requested method fitted, otherwise with estimated errors.

    Raises:
        UserError: if requested weights are missing, a value is not finite, or the method does not fit a table.
    """
    tables = [open_table(source, shape, request.weights, counts, kept) for shape in shapes]
    methods = {shape.name: request.methods(shape.rows, shape.dim) for shape in shapes}
    if request.goal == "method":
        for table in tables:
            _, method = methods[table.name]
            table.options.append(Candidate(EXACT.name, table.num_bytes, 0.0, Quality.exact()))
            if method != EXACT and least_bytes(method, table.rows, table.dim) < table.num_bytes:
                table.options.append(Candidate(method.name, 0, 0.0))
        fit_options(tables, [len(table.options) - 1 for table in tables], progress=progress)
        for table in tables:
            if table.options[-1].num_bytes >= table.num_bytes:
                del table.options[1:]
    else:
        _estimate_options(tables, methods, progress=progress)
    _warn(request, tables)
    return tables


def _estimate_options(
    tables: Sequence[TableOptions], methods: Mapping[str, list[Method]], *, progress: BarDisplay
) -> None:
    """Adds the options of each table. Only its samples are in memory while errors are estimated."""
    turns, ready, lock = _Turns.for_tables(tables), 0, Lock()
    progress.begin("estimating errors", sum(len(found) for found in methods.values()))

    def estimate(table: TableOptions) -> None:
        def advance() -> None:
            with lock:
                progress.advance(1, f"{ready} of {len(tables)} tables")

        nonlocal ready
        with turns.take(table.num_bytes):
            found = table.sample(methods[table.name])
        table.estimate(methods[table.name], found, advance=advance)
        with lock:
            ready += 1

    _one_per_core(tables, estimate)


def fit_options(tables: Sequence[TableOptions], indices: Sequence[int], *, progress: BarDisplay) -> None:
    """Fits one option of each table, unless it is fitted already.

    Raises:
        UserError: see `TableOptions.fit`.
    """
    index_of = {
        table.name: index for table, index in zip(tables, indices, strict=True) if table.options[index].quality is None
    }
    chosen = [table for table in tables if table.name in index_of]
    if not chosen:
        return
    work = {table.name: _work(Method.parse(table.options[index_of[table.name]].method), table.rows) for table in chosen}
    progress.begin("fitting tables", sum(work.values()))
    lock = Lock()

    def fit(table: TableOptions) -> None:
        index = index_of[table.name]
        context = f"{table.name} ({table.rows:,} x {table.dim}) by {table.options[index].method}"
        part = _Part(progress, lock, context, work[table.name], table.rows)
        table.fit(index, part.passed)
        part.finish()

    turns = _Turns.for_tables(chosen)

    def fit_in_turn(table: TableOptions) -> None:
        with turns.take(table.num_bytes):
            fit(table)

    # A table that leaves no room for another of its size is fitted alone, by all cores.
    alone = [table for table in chosen if 2 * table.num_bytes > turns.most_bytes]
    for table in alone:
        fit(table)
    _one_per_core([table for table in chosen if 2 * table.num_bytes <= turns.most_bytes], fit_in_turn)


def _one_per_core(tables: Iterable[TableOptions], function: Callable[[TableOptions], None]) -> None:
    """Calls a function for each table, the largest first; each is worked on by one core."""
    ordered = sorted(tables, key=lambda table: -table.num_bytes)
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1)) as pool:
        list(pool.map(function, ordered))


def _work(method: Method, rows: int) -> int:
    """The time that a fit takes, in an arbitrary unit."""
    if not method.num_codes:
        return rows
    return method.num_codes * (3 * rows + 30 * min(rows, SAMPLE_ROWS))


class _Part:
    """Counts the passes over a table's rows as parts of the work of its fit."""

    _PASSES = 4  # usual number: check, two passes of a fit, measure

    def __init__(self, progress: BarDisplay, lock: Lock, context: str, work: int, rows: int) -> None:
        self._progress, self._lock, self._context = progress, lock, context
        self._work, self._expected = work, self._PASSES * rows
        self._seen, self._last, self._counted = 0, 0, 0

    def passed(self, phase: str, done: int, total: int) -> None:
        self._seen += done - self._last if done > self._last else done
        self._last = done
        self._count(
            self._work * min(self._seen, self._expected) // self._expected,
            f"{self._context}: {phase}, {done:,} of {total:,}",
        )

    def finish(self) -> None:
        self._count(self._work, self._context)

    def _count(self, done: int, about: str) -> None:
        with self._lock:
            self._progress.advance(done - self._counted, about)
        self._counted = done


def _warn(request: Request, tables: Sequence[TableOptions]) -> None:
    for table in tables:
        name = request.methods(table.rows, table.dim)[-1].name
        if request.goal == "method" and len(table.options) == 1 and name != EXACT.name:
            warn(f"{table.name}, {table.rows:,} x {table.dim}: {name} is not smaller; the table stays float32")
    if any(table.weights_kind == "uniform" for table in tables) and request.weights != "uniform":
        warn(
            "no AdaGrad state and no counts: all rows have the same weight, which costs several times as much NE "
            "at the same size"
        )


class _Turns:
    """Limits the total size of the work in progress."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._left, self._condition = most_bytes, Condition()

    @classmethod
    def for_tables(cls, tables: Iterable[TableOptions]) -> "_Turns":
        """Tables at work at the same time are together no larger than the largest one, to limit memory."""
        return cls(max(SMALL_BYTES, *(table.num_bytes for table in tables)))

    @contextmanager
    def take(self, num_bytes: int) -> Iterator[None]:
        """Waits until this many bytes, at most the limit, are available."""
        with self._condition:
            self._condition.wait_for(lambda: num_bytes <= self._left)
            self._left -= num_bytes
        try:
            yield
        finally:
            with self._condition:
                self._left += num_bytes
                self._condition.notify_all()
