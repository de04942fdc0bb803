"""The options of a table: methods with their sizes and errors.

Freed memory is returned to the system, so that the peak of a long compression is that of its largest step.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from torch import Tensor

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

    def sample(self, methods: Sequence[Method]) -> Estimates:
        """Reads the table for estimates of the errors of methods.

        Raises:
            UserError: if the table contains values that are not finite.
        """
        with self._errors():
            found = Estimates(self.load(_silent), methods)
        _trim_heap()
        return found

    def estimate(self, methods: Sequence[Method], found: Estimates, *, advance: Callable[[], None]) -> None:
        """Adds options that are smaller than the trained table, with estimated errors."""
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


def open_table(source: TableSource, shape: TableShape, weights: str, counts: Counts, kept: Kept) -> TableOptions:
    """A table without options.

    Raises:
        UserError: see `weigh`.
    """
    found = weigh(source, shape.name, weights, counts)

    def load(progress: Progress) -> TableRows:
        weights_now = weigh(source, shape.name, weights, counts).weights
        return TableRows(source.weight(shape.name), weights_now, name=shape.name, progress=progress)

    return TableOptions(shape.name, shape.rows, shape.dim, found.kind, found.scale, load, kept)


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


def _silent(phase: str, done: int, total: int) -> None:
    pass


def _trim_heap() -> None:
    """Makes glibc return free memory to the system; does nothing without glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)
