"""The options of tables: methods with their sizes and errors.

Errors are estimated on samples first; only options that a choice needs are fitted. Freed memory is returned to the
system, so that the peak of a long compression is that of its largest step.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any

import torch
from torch import Tensor

from dlrmctl.compress.request import Request
from dlrmctl.console.console import warn
from dlrmctl.console.progress import BarDisplay
from dlrmctl.embeddings.compression.fits.codebook import SAMPLE_ROWS
from dlrmctl.embeddings.compression.fits.estimates import Estimates
from dlrmctl.embeddings.compression.fits.methods import Method, least_bytes, most_bytes
from dlrmctl.embeddings.compression.fits.quality import Quality, measure
from dlrmctl.embeddings.compression.fits.trained import Importance, TableRows, importance
from dlrmctl.embeddings.compression.isometry.secants import Progress
from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows
from dlrmctl.embeddings.compression.rules.sharing import Isometric
from dlrmctl.errors import UserError
from dlrmctl.rundir.stored_tables import TableShape, TableSource

EXACT = Method.parse("fp32")
Counts = Callable[[str], Tensor | None]  # table -> number of lookups of each row in training
_KINDS = ("adagrad", "counts", "uniform")  # in the order of preference of "auto"
_LARGE_BYTES = 8 << 20  # tables from this size on are fitted by all cores
SMALL_BYTES = 32 << 20  # memory for tables at work, and for kept ones, even if the largest table is smaller


class Kept:
    """A cache of fitted tables with a limit in bytes.

    Other tables are fitted again when needed; the seed makes them the same.
    """

    def __init__(self, most_bytes: int) -> None:
        self._left, self._lock = most_bytes, Lock()
        self._tables: dict[tuple[str, str], Compressed] = {}

    def get(self, name: str, method: str) -> Compressed | None:
        return self._tables.get((name, method))

    def put(self, name: str, method: str, table: Compressed) -> None:
        with self._lock:
            if table.num_bytes <= self._left:
                self._left -= table.num_bytes
                self._tables[name, method] = table


@dataclass
class Candidate:
    """A method for a table.

    Attributes:
        method: name of the method.
        num_bytes: of all stored parts.
        proxy: squared error weighted by importance, proportional to the increase of the loss; an estimate until the
            method is fitted.
        quality: difference from the trained table; None until the method is fitted.
        certificate: distance errors of a near-isometric map; None for other methods.
    """

    method: str
    num_bytes: int
    proxy: float
    quality: Quality | None = None
    certificate: dict[str, Any] | None = None


@dataclass
class TableOptions:
    """A table with its options.

    Attributes:
        scale: factor of weighted errors that makes them comparable between tables.
        load: reads the rows and importances; its argument is called on every pass over them.
    """

    name: str
    rows: int
    dim: int
    weights_kind: str
    scale: float
    load: Callable[[Progress], TableRows]
    kept: Kept
    options: list[Candidate] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Number of bytes of the trained table in float32."""
        return 4 * self.rows * self.dim

    def table(self, method: str) -> Compressed:
        """The table compressed with one of the methods."""
        if method == EXACT.name:
            return StoredRows(self.load(_silent).weight.float(), self.dim, 32)  # the trained table itself, not a copy
        kept = self.kept.get(self.name, method)
        return Method.parse(method).fit(self.load(_silent)) if kept is None else kept

    def estimate(self, methods: Sequence[Method], *, advance: Callable[[], None]) -> None:
        """Adds options that are smaller than the trained table, with estimated errors.

        Raises:
            UserError: if the table contains values that are not finite.
        """
        with self._errors():
            found = Estimates(self.load(_silent), methods)
        _trim_heap()
        for method in methods:
            size = most_bytes if found.needs_bitmap(method) else least_bytes
            num_bytes = size(method, self.rows, self.dim)
            if method == EXACT:
                self.options.append(Candidate(EXACT.name, self.num_bytes, 0.0, Quality.exact()))
            elif num_bytes < self.num_bytes:
                self.options.append(Candidate(method.name, num_bytes, found.weighted_error(method) * self.scale))
            advance()

    def fit(self, index: int, progress: Progress) -> None:
        """Fits an option and measures its error.

        Raises:
            UserError: if the table contains values that are not finite, or the method does not fit the table.
        """
        option = self.options[index]
        method = Method.parse(option.method)
        with self._errors():
            rows = self.load(progress)
            table = method.fit(rows)
        option.num_bytes, option.quality = table.num_bytes, measure(rows, table)
        option.proxy = option.quality.weighted_error * self.scale
        option.certificate = table.certificate if isinstance(table, Isometric) else None
        if method.kind != "rows":  # rows are quick to round again
            self.kept.put(self.name, method.name, table)
        _trim_heap()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ValueError as problem:
            raise UserError(f"table {self.name}: {problem}".replace(f"table {self.name}: table", "table")) from None


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
    tables = [_open(source, shape, request.weights, counts, kept) for shape in shapes]
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
        ready, lock = 0, Lock()
        progress.begin("estimating errors", sum(len(found) for found in methods.values()))

        def estimate(table: TableOptions) -> None:
            def advance() -> None:
                with lock:
                    progress.advance(1, f"{ready} of {len(tables)} tables")

            nonlocal ready
            table.estimate(methods[table.name], advance=advance)
            with lock:
                ready += 1

        _for_each(tables, estimate)
    _warn(request, tables)
    return tables


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

    _for_each(chosen, fit)


def _for_each(tables: Sequence[TableOptions], function: Callable[[TableOptions], None]) -> None:
    """Calls a function for each table: the largest one after the other, on all cores; the others one per core.

    Tables at work at the same time are together no larger than the largest one, to limit memory.
    """
    ordered = sorted(tables, key=lambda table: -table.num_bytes)  # so that the last one is small
    turns = _Turns(max(SMALL_BYTES, ordered[0].num_bytes))
    large = [table for table in ordered if table.num_bytes >= _LARGE_BYTES]

    def take_turn(table: TableOptions) -> None:
        with turns.take(table.num_bytes):
            function(table)

    for table in large:
        function(table)
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1)) as pool:
        list(pool.map(take_turn, ordered[len(large) :]))


def _open(source: TableSource, shape: TableShape, weights: str, counts: Counts, kept: Kept) -> TableOptions:
    """A table without options.

    Raises:
        UserError: see `weigh`.
    """
    found = weigh(source, shape.name, weights, counts)

    def load(progress: Progress) -> TableRows:
        weights_now = weigh(source, shape.name, weights, counts).weights
        return TableRows(source.weight(shape.name), weights_now, name=shape.name, progress=progress)

    return TableOptions(shape.name, shape.rows, shape.dim, found.kind, found.scale, load, kept)


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


def weigh(source: TableSource, name: str, asked: str, counts: Counts) -> Importance:
    """The importance of each row of a table.

    Raises:
        UserError: if the requested kind is missing or unusable.
    """
    rows = next(table.rows for table in source.tables if table.name == name)
    for kind in _KINDS if asked == "auto" else (asked,):
        values = source.sums(name) if kind == "adagrad" else counts(name) if kind == "counts" else None
        if values is None and kind != "uniform":
            continue
        try:
            return importance(kind, rows, values, name=name)
        except ValueError as problem:
            raise UserError(str(problem)) from None
    where = "checkpoints of runs have them" if asked == "adagrad" else "`dlrmctl prepare` counts ids"
    raise UserError(f"--weights {asked}: table {name} has none", f"{where}; --weights auto uses what is available")


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
        self._left, self._condition = most_bytes, Condition()

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


def _silent(phase: str, done: int, total: int) -> None:
    pass


def _trim_heap() -> None:
    """Makes glibc return free memory to the system; does nothing without glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)
