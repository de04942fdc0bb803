"""Fits all methods to all chosen tables, with their sizes and errors.

Several tables are fitted at a time if memory allows, and freed memory is returned to the system, so that the peak of a
long compression is that of its largest step.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Condition, Lock
from typing import Any

import torch
from torch import Tensor

from dlrmctl.compress.request import Request
from dlrmctl.console.console import warn
from dlrmctl.console.progress import BarDisplay
from dlrmctl.embeddings.compression.fits.methods import Method
from dlrmctl.embeddings.compression.fits.quality import Quality, measure
from dlrmctl.embeddings.compression.fits.trained import Importance, TableRows, importance
from dlrmctl.embeddings.compression.isometry.secants import Progress
from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows
from dlrmctl.embeddings.compression.rules.sharing import Isometric
from dlrmctl.embeddings.errors import NonFiniteValueError
from dlrmctl.errors import UserError
from dlrmctl.rundir.stored_tables import TableShape, TableSource

_EXACT = Method.parse("fp32")
Counts = Callable[[str], Tensor | None]  # table -> number of lookups of each row in training
_KINDS = ("adagrad", "counts", "uniform")  # in the order of preference of "auto"
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


@dataclass(frozen=True)
class Fitted:
    """A table fitted with a method.

    Attributes:
        method: name of the method.
        num_bytes: of all stored parts.
        quality: difference from the trained table.
        proxy: squared error weighted by importance; proportional to the increase of the loss.
        certificate: distance errors of a near-isometric map; None for other methods.
    """

    method: str
    num_bytes: int
    quality: Quality
    proxy: float
    certificate: dict[str, Any] | None = None


@dataclass
class TableOptions:
    """A table with its fitted options; `load` reads the rows and importances again."""

    name: str
    rows: int
    dim: int
    weights_kind: str
    load: Callable[[], TableRows]
    kept: Kept
    fitted: list[Fitted] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Number of bytes of the trained table in float32."""
        return 4 * self.rows * self.dim

    def table(self, method: str) -> Compressed:
        """The table compressed with one of the fitted methods."""
        if method == _EXACT.name:
            return StoredRows(self.load().weight.float(), self.dim, 32)  # the trained table itself, not a copy
        kept = self.kept.get(self.name, method)
        return Method.parse(method).fit(self.load()) if kept is None else kept

    def add(self, rows: TableRows, method: Method, scale: float, *, must_fit: bool = False) -> Fitted | None:
        """Fits a method; None if the result would not be smaller than the trained table, or it does not fit the table.

        Raises:
            UserError: if the table contains values that are not finite, or the method must fit and does not.
        """
        if method == _EXACT:
            self.fitted.append(Fitted(method.name, self.num_bytes, Quality.exact(), 0.0))
            return self.fitted[-1]
        try:
            table = method.fit(rows)
        except ValueError as problem:
            if must_fit or isinstance(problem, NonFiniteValueError):
                raise UserError(f"table {self.name}: {problem}".replace(f"table {self.name}: table", "table")) from None
            return None
        if table.num_bytes >= self.num_bytes:
            return None
        quality = measure(rows, table)
        if method.kind != "rows":  # rows are quick to round again
            self.kept.put(self.name, method.name, table)
        certificate = table.certificate if isinstance(table, Isometric) else None
        fitted = Fitted(method.name, table.num_bytes, quality, quality.weighted_error * scale, certificate)
        self.fitted.append(fitted)
        return fitted


def fit_all(
    source: TableSource,
    request: Request,
    shapes: Sequence[TableShape],
    counts: Counts,
    *,
    kept: Kept,
    progress: BarDisplay,
) -> list[TableOptions]:
    """Fits the options of these tables, one table per core at a time, and returns them in order.

    Tables that are fitted at the same time are together no larger than the largest table, to limit memory.

    Raises:
        UserError: see `_fit_options`.
    """
    turns = _Turns(max(SMALL_BYTES, *(shape.num_bytes for shape in shapes)))
    methods = {shape.name: request.methods(shape.rows, shape.dim) for shape in shapes}
    lock, ready = Lock(), 0

    def advance(shape: TableShape, tables: int = 0) -> None:
        """Counts a method fitted to a table, and complete tables."""
        nonlocal ready
        with lock:
            ready += tables
            progress.advance(0 if tables else shape.num_bytes, f"{ready} of {len(shapes)} tables")

    def fit(shape: TableShape) -> TableOptions:
        context = f"{shape.name} ({shape.rows:,} x {shape.dim})"
        with turns.take(shape.num_bytes):
            found = _fit_options(
                source,
                shape.name,
                methods[shape.name],
                weights=request.weights,
                counts=counts,
                progress=partial(progress.rows, context),
                fitted=partial(advance, shape),
                kept=kept,
                must_fit=request.goal == "method",
            )
        advance(shape, tables=1)
        return found

    # Large tables first, so that the last one is small. Their products are too small for several threads.
    order = sorted(shapes, key=lambda shape: -shape.num_bytes)
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1)) as pool:
        progress.begin("fitting tables", sum(shape.num_bytes * len(methods[shape.name]) for shape in order))
        by_name = {table.name: table for table in pool.map(fit, order)}
    tables = [by_name[shape.name] for shape in shapes]
    _warn(request, tables)
    return tables


def _fit_options(
    source: TableSource,
    name: str,
    methods: Sequence[Method],
    *,
    weights: str,
    counts: Counts,
    progress: Progress,
    fitted: Callable[[], None],
    kept: Kept,
    must_fit: bool = False,
) -> TableOptions:
    """Fits all methods to one table.

    Args:
        weights: "auto" (AdaGrad's sums, else counts, else uniform), "adagrad", "counts" or "uniform".
        counts: number of lookups of each row in training, if known.
        fitted: called after each method.
        kept: cache for fitted tables.
        must_fit: whether a method that cannot be used on this table is an error; otherwise it is skipped.

    Raises:
        UserError: if the requested weights are missing, a value is not finite, or a method that must fit does not.
    """
    shape = next(table for table in source.tables if table.name == name)
    found = weigh(source, name, weights, counts)

    def load() -> TableRows:
        weights_now = weigh(source, name, weights, counts).weights
        return TableRows(source.weight(name), weights_now, name=name, progress=progress)

    options = TableOptions(name, shape.rows, shape.dim, found.kind, load, kept)
    rows = TableRows(source.weight(name), found.weights, name=name, progress=progress)
    for method in methods:
        options.add(rows, method, found.scale, must_fit=must_fit)
        fitted()
        _trim_heap()
    return options


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
        if request.goal == "method" and len(table.fitted) == 1:
            name = request.methods(table.rows, table.dim)[-1].name
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


def _trim_heap() -> None:
    """Makes glibc return free memory to the system; does nothing without glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)
