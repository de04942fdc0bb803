"""The ways each table could be stored, fitted and weighed: bytes, error, and the table itself while it is small."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dlrmctl.compress.sources import TableSource
from dlrmctl.errors import UserError
from embeddings.compression.methods import Method
from embeddings.compression.quality import Quality, measure
from embeddings.compression.rules import Compressed
from embeddings.compression.source import Progress, TableRows
from embeddings.compression.weights import Importance, importance

_KEPT_BYTES = 64 << 20  # larger fits are made again when they are needed: the seed makes them the same
_EXACT = Method.parse("fp32")


@dataclass(frozen=True)
class Fitted:
    """One way to store one table.

    Attributes:
        method: its name.
        num_bytes: of all stored parts.
        quality: how far it is from the trained table.
        proxy: weighted squared error in the unit of the importance; proportional to the rise of the loss.
    """

    method: str
    num_bytes: int
    quality: Quality
    proxy: float


@dataclass
class TableOptions:
    """A table with its fitted options; `load` gives the rows and importances again."""

    name: str
    rows: int
    dim: int
    weights_kind: str
    load: Callable[[], TableRows]
    fitted: list[Fitted] = field(default_factory=list)
    _kept: dict[str, Compressed] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Of the trained table, float32."""
        return 4 * self.rows * self.dim

    def table(self, method: str) -> Compressed:
        """The table by one of the fitted methods."""
        if method not in self._kept:
            return Method.parse(method).fit(self.load())
        return self._kept[method]

    def add(self, rows: TableRows, method: Method, scale: float, *, must_fit: bool = False) -> Fitted | None:
        """Fits a method; None if the result would not be smaller than the trained table, or it does not fit the table.

        Raises:
            UserError: if the table holds values that are not finite, or the method must fit and does not.
        """
        try:
            table = method.fit(rows)
        except ValueError as problem:
            if must_fit or "not finite" in str(problem):
                raise UserError(f"table {self.name}: {problem}".replace(f"table {self.name}: table", "table")) from None
            return None
        if table.num_bytes >= self.num_bytes and method != _EXACT:
            return None
        quality = measure(rows, table)
        found = Fitted(method.name, table.num_bytes, quality, quality.weighted_error * scale)
        self.fitted.append(found)
        if table.num_bytes <= _KEPT_BYTES:
            self._kept[method.name] = table
        return found


def fit_options(
    source: TableSource,
    name: str,
    methods: Sequence[Method],
    *,
    weights: str,
    counts: Tensor | None = None,
    progress: Progress,
    must_fit: bool = False,
) -> TableOptions:
    """All methods on one table.

    Args:
        weights: "auto" (AdaGrad's sums, else counts, else uniform), "adagrad", "counts" or "uniform".
        counts: times each row was looked up in training, if known.
        must_fit: a method that cannot be used on this table is an error, and not left out.

    Raises:
        UserError: if the weights asked for are not there, a value is not finite, or a method that must does not fit.
    """
    shape = next(table for table in source.tables if table.name == name)
    kind = choose_weights(source, name, weights, counts)

    def load() -> TableRows:
        found = weigh(source, name, kind, counts)
        return TableRows(source.weight(name), found.weights, name=name, progress=progress)

    options = TableOptions(name, shape.rows, shape.dim, kind, load)
    rows, scale = load(), weigh(source, name, kind, counts).scale
    for method in methods:
        options.add(rows, method, scale, must_fit=must_fit)
    return options


def choose_weights(source: TableSource, name: str, asked: str, counts: Tensor | None) -> str:
    """The kind of importance to use for a table.

    Raises:
        UserError: if the one asked for is not there.
    """
    there = {"adagrad": source.sums(name) is not None, "counts": counts is not None, "uniform": True}
    if asked == "auto":
        return next(kind for kind, known in there.items() if known)
    if not there[asked]:
        hint = (
            "--weights auto takes what there is"
            if asked == "adagrad"
            else "prepare the data with this version, or --weights auto"
        )
        raise UserError(f"--weights {asked}: table {name} has none", hint)
    return asked


def weigh(source: TableSource, name: str, kind: str, counts: Tensor | None) -> Importance:
    """The importance of each row."""
    rows = next(table.rows for table in source.tables if table.name == name)
    values = source.sums(name) if kind == "adagrad" else counts if kind == "counts" else None
    try:
        return importance(kind, rows, values, name=name)
    except ValueError as problem:
        raise UserError(str(problem)) from None
