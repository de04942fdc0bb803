"""The progress of a preparation, and the report at its end, as plain values."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class PrepareProgress:
    """The progress of a preparation.

    Attributes:
        phase: "parse" (bytes of the sources on disk), then for some splits "arrange" (rows), then "encode" (values),
            then "write" (examples).
        done, total: in the unit of the phase; a total of 0 is unknown.
        rows: good rows so far.
        begun: the part of `done` from an interrupted earlier run; the speed is (done - begun) per time.
    """

    phase: Literal["parse", "arrange", "encode", "write"]
    done: int
    total: int
    rows: int
    begun: int = 0


Progress = Callable[[PrepareProgress], None]


@dataclass(frozen=True)
class SourceReport:
    """One file: its name, its size on disk, its lines, the rows among them that were kept, their share labelled 1."""

    name: str
    bytes: int
    lines: int
    rows: int
    label_rate: float = 0.0


@dataclass(frozen=True)
class SplitReport:
    """A split.

    Attributes:
        examples: their number.
        label_rate: share of them labelled 1.
        label_rate_before: that share before negatives were sampled, if they were.
        first, last: the earliest and the latest time in a split by time.
    """

    examples: int
    label_rate: float
    label_rate_before: float | None = None
    first: str | None = None
    last: str | None = None


@dataclass(frozen=True)
class DenseReport:
    """A dense feature over all good rows: share missing; mean, lowest and highest of the other values, transformed."""

    name: str
    missing: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ColumnReport:
    """A sparse feature.

    Attributes:
        rows: rows of its table.
        missing: share of the examples without a value.
        rare: share of the ids that are rare, in all splits.
        cardinality: distinct values among the training examples; None if they were not counted.
        rare_train, rare_held_out: as `rare`, in the training split, and in the other two.
    """

    name: str
    rows: int
    missing: float
    rare: float
    cardinality: int | None = None
    rare_train: float = 0.0
    rare_held_out: float = 0.0


@dataclass(frozen=True)
class RejectedLine:
    """An omitted line: file (base name), number counted from 1, problem, and unit ("line" or "row")."""

    file: str
    line: int
    problem: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}: {self.problem}"


@dataclass(frozen=True)
class PrepareReport:
    """The report of a preparation.

    Attributes:
        lines: lines of all sources.
        rows: good rows; negative sampling keeps fewer examples.
        repaired: number of good rows whose line was repaired, by repair.
        rejected: number of omitted lines, by reason.
        examples: the first few of them.
        sources, splits, dense, columns: see their classes.
        store_bytes: bytes of the examples.
        bytes_per_row: `store_bytes` over the examples of all splits.
        unit: "line", or "row" if the sources are not text.
    """

    lines: int
    rows: int
    repaired: dict[str, int]
    rejected: dict[str, int]
    examples: list[RejectedLine]
    sources: list[SourceReport]
    splits: dict[str, SplitReport] = field(default_factory=dict)
    dense: list[DenseReport] = field(default_factory=list)
    columns: list[ColumnReport] = field(default_factory=list)
    store_bytes: int = 0
    bytes_per_row: float = 0.0
    unit: str = "line"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        splits = {name: _without_times(asdict(split)) for name, split in self.splits.items()}
        return {**asdict(self), "splits": splits}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PrepareReport":
        """Parses what `to_dict` returned."""
        return cls(
            **{
                **values,
                "examples": [RejectedLine(**line) for line in values["examples"]],
                "sources": [SourceReport(**source) for source in values["sources"]],
                "splits": {name: SplitReport(**split) for name, split in values["splits"].items()},
                "dense": [DenseReport(**column) for column in values["dense"]],
                "columns": [ColumnReport(**column) for column in values["columns"]],
            }
        )


def _without_times(split: dict[str, Any]) -> dict[str, Any]:
    """Omits the times of a split that has none."""
    return {key: value for key, value in split.items() if value is not None or key not in ("first", "last")}
