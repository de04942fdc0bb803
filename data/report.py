"""What a preparation did, as plain values: for printing, for the manifest, for tests."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class PrepareProgress:
    """Where a preparation is.

    Attributes:
        phase: "parse" (bytes of the sources as they lie on disk), then "encode" (values), then "write" (examples).
        done, total: in the unit of the phase.
        rows: good rows so far.
    """

    phase: Literal["parse", "encode", "write"]
    done: int
    total: int
    rows: int


@dataclass(frozen=True)
class SourceReport:
    """One file: its base name, its size on disk, its lines and the rows among them that were kept."""

    name: str
    bytes: int
    lines: int
    rows: int


@dataclass(frozen=True)
class SplitReport:
    """Examples of a split and the share of them labelled 1."""

    examples: int
    label_rate: float


@dataclass(frozen=True)
class ColumnReport:
    """A sparse feature: rows of its table, and the shares of all examples with a missing and with a rare value."""

    name: str
    rows: int
    missing: float
    rare: float


@dataclass(frozen=True)
class RejectedLine:
    """A line that was left out: file (base name), number counted from 1, and what is wrong with it."""

    file: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.problem}"


@dataclass(frozen=True)
class PrepareReport:
    """The whole story.

    Attributes:
        lines: read from all sources.
        rows: kept.
        repaired: kept rows that had lost empty fields at their end.
        rejected: lines left out, by reason.
        examples: the first few of them.
        sources, splits, columns: see there.
        store_bytes: of the examples.
        bytes_per_row: `store_bytes` over `rows`.
    """

    lines: int
    rows: int
    repaired: int
    rejected: dict[str, int]
    examples: list[RejectedLine]
    sources: list[SourceReport]
    splits: dict[str, SplitReport] = field(default_factory=dict)
    columns: list[ColumnReport] = field(default_factory=list)
    store_bytes: int = 0
    bytes_per_row: float = 0.0

    @property
    def num_rejected(self) -> int:
        """Lines left out."""
        return sum(self.rejected.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
