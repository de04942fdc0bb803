"""What a preparation did: where it is, what it counts while it reads, its report, and what the manifest says of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.raw import Input, RawPiece, unit_of
from dlrmctl.data.preparation.encoding import EncodedColumn
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.selection import Selection, SplitSizes
from dlrmctl.data.source import SPLITS
from dlrmctl.data.store.manifest import Preparation, Sampling

SHOWN_BAD_LINES = 10


@dataclass(frozen=True)
class PrepareProgress:
    """Where a preparation is.

    Attributes:
        phase: "parse" (bytes of the sources as they lie on disk), then "encode" (values), then "write" (examples).
        done, total: in the unit of the phase; a total of 0 is not known.
        rows: good rows so far.
        begun: how much of `done` an earlier run did that was interrupted; so this one does (done - begun) per time.
    """

    phase: Literal["parse", "encode", "write"]
    done: int
    total: int
    rows: int
    begun: int = 0


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
    """Examples of a split and the share of them labelled 1; that share before negatives were sampled, if they were."""

    examples: int
    label_rate: float
    label_rate_before: float | None = None


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
        rows: of its table.
        missing: share of the examples without a value.
        rare: share of the ids that are rare, in all splits.
        cardinality: different values among the training examples; None if they were not counted.
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
    """A line that was left out: file (base name), number counted from 1, what is wrong with it, and what a line is."""

    file: str
    line: int
    problem: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}: {self.problem}"


@dataclass(frozen=True)
class PrepareReport:
    """The whole story.

    Attributes:
        lines: read from all sources.
        rows: good ones; negative sampling leaves fewer examples.
        repaired: good rows whose line had to be mended, by what was mended.
        rejected: lines left out, by reason.
        examples: the first few of them.
        sources, splits, dense, columns: see there.
        store_bytes: of the examples.
        bytes_per_row: `store_bytes` over the examples of all splits.
        unit: what the sources consist of: "line", or "row" where they are no text.
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

    @property
    def num_repaired(self) -> int:
        """Rows whose line was mended."""
        return sum(self.repaired.values())

    @property
    def num_rejected(self) -> int:
        """Lines left out."""
        return sum(self.rejected.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PrepareReport":
        """The report that `to_dict` described."""
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


@dataclass
class SourceTally:
    """One source: lines, good rows, and rows labelled 1."""

    lines: int = 0
    rows: int = 0
    positives: int = 0


@dataclass
class Tally:
    """Counts of everything read so far.

    Attributes:
        sources: one each.
        repaired: rows whose line was mended, by what was mended.
        rejected: lines left out, by reason.
        examples: the first few of them: source, line, problem.
        largest: highest value of each feature whose values are rows, by name.
    """

    sources: list[SourceTally]
    repaired: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[int, int, str]] = field(default_factory=list)
    largest: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def lines(self) -> int:
        return sum(source.lines for source in self.sources)

    def add(self, input: Input, source: int, piece: RawPiece) -> None:
        """Counts a piece of a source."""
        of_source = self.sources[source]
        of_source.lines += len(piece) + len(piece.bad)
        of_source.rows += len(piece)
        of_source.positives += int(np.count_nonzero(piece.labels_N))
        self.repaired.update(piece.repaired)
        self.rejected.update(bad.reason for bad in piece.bad)
        room = SHOWN_BAD_LINES - len(self.examples)
        self.examples += [(source, bad.line, bad.problem) for bad in piece.bad[:room]]
        for feature, column in zip(input.sparse, piece.sparse, strict=True):
            if feature.as_rows:
                largest = int(column.values.max(initial=0))
                self.largest[feature.name] = max(self.largest.get(feature.name, 0), largest)

    def check_rejected(self, input: Input, limit: int | None) -> None:
        """Raises:
        DataError: naming the first bad line, if there are more than `limit`.
        """
        unit = unit_of(input.format)
        allowed = 100 + self.lines // 100 if limit is None else limit
        if self.rejected.total() > allowed:
            raise DataError(
                self.shown_examples(input)[0],
                f"{self.rejected.total():,} of the first {self.lines:,} {unit}s were rejected, at most {allowed:,} "
                f"were allowed; the file may be cut short or of another format; if not, allow more rejected {unit}s",
            )

    def shown_examples(self, input: Input) -> list[str]:
        """The first bad lines, as one line each."""
        unit = unit_of(input.format)
        return [f"{input.sources[source].name}, {unit} {line}: {problem}" for source, line, problem in self.examples]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        # asdict would count the pairs of a Counter.
        counters = {"repaired": dict(self.repaired), "rejected": dict(self.rejected)}
        return {**asdict(replace(self, repaired=Counter(), rejected=Counter())), **counters}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Tally":
        """The tally that `to_dict` described."""
        return cls(
            [SourceTally(**source) for source in values["sources"]],
            Counter(values["repaired"]),
            Counter(values["rejected"]),
            [(source, line, problem) for source, line, problem in values["examples"]],
            dict(values["largest"]),
        )


def summarize(
    input: Input,
    tally: Tally,
    dense: Sequence[tuple[int, int, float, float, float]],
    cut: SplitSizes,
    selection: Selection,
    columns: Sequence[EncodedColumn],
    positives: Mapping[str, int],
    store_bytes: int,
) -> PrepareReport:
    """The report.

    Args:
        input: what was read.
        tally: of all lines.
        dense: of each dense feature, as `join_dense_tallies` gives it.
        cut: rows of the splits before sampling.
        selection: examples of the splits.
        columns: the sparse features.
        positives: examples labelled 1 of each split.
        store_bytes: of all blocks.
    """
    sizes, unit = {split: len(selection.split(split)) for split in SPLITS}, unit_of(input.format)
    sampled = sizes["train"] < cut.train
    splits = {split: SplitReport(sizes[split], positives[split] / sizes[split]) for split in SPLITS}
    if sampled:  # examples labelled 1 all stay
        rate_before = positives["train"] / cut.train
        splits["train"] = SplitReport(sizes["train"], positives["train"] / sizes["train"], rate_before)
    return PrepareReport(
        lines=tally.lines,
        rows=tally.rows,
        repaired=dict(tally.repaired),
        rejected=dict(tally.rejected),
        examples=[
            RejectedLine(input.sources[source].name, line, problem, unit) for source, line, problem in tally.examples
        ],
        sources=[
            SourceReport(source.name, source.num_bytes, found.lines, found.rows, _share(found.positives, found.rows))
            for source, found in zip(input.sources, tally.sources, strict=True)
        ],
        splits=splits,
        dense=[
            DenseReport(name, _share(absent, absent + present), mean, low, high)
            for name, (absent, present, mean, low, high) in zip(input.dense, dense, strict=True)
        ],
        columns=[_column(column) for column in columns],
        store_bytes=store_bytes,
        bytes_per_row=store_bytes / sum(sizes.values()),
        unit=unit,
    )


def describe_preparation(
    input: Input,
    options: PrepareOptions,
    columns: Sequence[EncodedColumn],
    vocabulary_from: str | None,
    report: PrepareReport,
) -> Preparation:
    """What the manifest says of a preparation.

    Args:
        input, options, columns, report: of the preparation.
        vocabulary_from: fingerprint of the encoders that were taken from another store.
    """
    train, sampling = report.splits["train"], None
    if options.sample_negatives < 1:
        before = train.label_rate if train.label_rate_before is None else train.label_rate_before
        sampling = Sampling(options.sample_negatives, options.seed, before, train.label_rate)
    return Preparation(
        input=input.format,
        dense_transform=input.dense_transform,
        columns=tuple(column.entry for column in columns),
        split=options.split,
        report=report.to_dict(),
        min_count=options.min_count if options.counts_values else None,
        max_rows_per_table=options.max_rows_per_table,
        vocabulary_from=vocabulary_from,
        limit=options.limit,
        table_schema=input.table_schema,
        sampling=sampling,
    )


def _column(column: EncodedColumn) -> ColumnReport:
    train, held_out, both = column.train, column.held_out, column.train + column.held_out
    return ColumnReport(
        column.entry.name,
        column.entry.rows,
        missing=_share(both.missing, both.examples),
        rare=_share(both.rare, both.ids),
        cardinality=column.cardinality,
        rare_train=_share(train.rare, train.ids),
        rare_held_out=_share(held_out.rare, held_out.ids),
    )


def _share(some: int, all_of_them: int) -> float:
    return some / all_of_them if all_of_them else 0.0
