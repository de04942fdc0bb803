"""Counts what a preparation reads, and makes the report and the manifest from it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.raw import (
    LABEL_WRONG,
    LIST_TOO_LONG,
    NO_TIME,
    NOT_A_TIME,
    NOT_A_WEIGHT,
    Input,
    RawPiece,
    unit_of,
)
from dlrmctl.data.preparation.dense import EncodedDense
from dlrmctl.data.preparation.encoding import EncodedColumn
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.report import (
    ColumnReport,
    PrepareReport,
    RejectedLine,
    SourceReport,
    SplitReport,
)
from dlrmctl.data.preparation.selection import Selection, SplitSizes
from dlrmctl.data.source import SPLITS
from dlrmctl.data.store.manifest import Preparation, Sampling

SHOWN_BAD_LINES = 10
_REMEDIES = {
    LABEL_WRONG: "if the labels are not 0 and 1, set the positive ones in the schema: label_positive = '>= 4'",
    LIST_TOO_LONG: "cut longer lists with truncate = 'first' in the section [columns.NAME] of the schema, or raise its "
    "max_ids",
    NOT_A_TIME: "if times are numbers, such as seconds since 1970, set epoch = 'seconds' in the section "
    "[columns.NAME] of the schema",
    NOT_A_WEIGHT: "weights are numbers of at least 0; a row of weight 0 counts for nothing",
    NO_TIME: "rows without a time are in no split by time",
    "not a number": "if it stands for a missing value, list it in the schema: missing = ['NA', '-']; a column of "
    "strings belongs in sparse; for times, see parts and since",
}


class TooManyBadRows(DataError):
    """Raised if more lines are rejected than allowed.

    Attributes:
        counts: their number, and what may be wrong.
    """

    def __init__(self, message: str, counts: str, unit: str) -> None:
        super().__init__(message, f"{counts}; if they really are bad, allow more rejected {unit}s")
        self.counts = counts


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
        sources: the counts of each source.
        repaired: number of rows whose line was repaired, by repair.
        rejected: number of omitted lines, by reason.
        examples: the first few of them: source, line, problem.
        largest: largest value of each feature whose values are rows, by name.
        weight: the largest weight of an example, if they have weights.
    """

    sources: list[SourceTally]
    repaired: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[int, int, str]] = field(default_factory=list)
    largest: dict[str, int] = field(default_factory=dict)
    weight: float = 0.0

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
        if piece.weights_N is not None:
            self.weight = max(self.weight, float(piece.weights_N.max(initial=0.0)))
        for feature, column in zip(input.sparse, piece.sparse, strict=True):
            if feature.as_rows:
                largest = int(column.values.max(initial=0))
                self.largest[feature.name] = max(self.largest.get(feature.name, 0), largest)

    @classmethod
    def of_nothing(cls, num_sources: int) -> "Tally":
        """Returns a tally of so many sources, before any of them is read."""
        return cls([SourceTally() for _ in range(num_sources)])

    def merge(self, later: "Tally") -> None:
        """Adds the counts of what was read after this."""
        for ours, theirs in zip(self.sources, later.sources, strict=True):
            ours.lines += theirs.lines
            ours.rows += theirs.rows
            ours.positives += theirs.positives
        self.repaired.update(later.repaired)
        self.rejected.update(later.rejected)
        self.examples += later.examples[: SHOWN_BAD_LINES - len(self.examples)]
        self.weight = max(self.weight, later.weight)
        for name, largest in later.largest.items():
            self.largest[name] = max(self.largest.get(name, 0), largest)

    def check_rejected(self, input: Input, limit: int | None) -> None:
        """Checks that not more lines than allowed were rejected.

        Raises:
            TooManyBadRows: naming the first bad line, if there are more than `limit`.
        """
        unit = unit_of(input.format)
        allowed = 100 + self.lines // 100 if limit is None else limit
        if self.rejected.total() > allowed:
            raise TooManyBadRows(
                self.shown_examples(input)[0],
                f"{self.rejected.total():,} of the first {self.lines:,} {unit}s were rejected, at most {allowed:,} "
                f"were allowed; {self.remedy() or 'the file may be cut short or of another format'}",
                unit,
            )

    def remedy(self) -> str | None:
        """Returns the hint for the most frequent reason of bad lines, or None."""
        reasons = self.rejected.most_common(1)
        return _REMEDIES.get(reasons[0][0]) if reasons else None

    def shown_examples(self, input: Input) -> list[str]:
        """Returns the first bad lines, as one line each."""
        unit = unit_of(input.format)
        return [f"{input.sources[source].name}, {unit} {line}: {problem}" for source, line, problem in self.examples]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        # asdict would count the pairs of a Counter.
        counters = {"repaired": dict(self.repaired), "rejected": dict(self.rejected)}
        return {**asdict(replace(self, repaired=Counter(), rejected=Counter())), **counters}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Tally":
        """Parses what `to_dict` returned."""
        return cls(
            [SourceTally(**source) for source in values["sources"]],
            Counter(values["repaired"]),
            Counter(values["rejected"]),
            [(source, line, problem) for source, line, problem in values["examples"]],
            dict(values["largest"]),
            values["weight"],
        )


def summarize(
    input: Input,
    tally: Tally,
    dense: Sequence[EncodedDense],
    cut: SplitSizes,
    ends: Mapping[str, tuple[str, str]],
    selection: Selection,
    columns: Sequence[EncodedColumn],
    positives: Mapping[str, int],
    store_bytes: int,
) -> PrepareReport:
    """Makes the report.

    Args:
        input: the input.
        tally: the tally of all lines.
        dense: the tally of each dense feature.
        cut: rows of the splits before sampling.
        ends: first and last time of each split, if they are known.
        selection: examples of the splits.
        columns: the sparse features.
        positives: examples labelled 1 of each split.
        store_bytes: bytes of all blocks.
    """
    sizes, unit = {split: len(selection.split(split)) for split in SPLITS}, unit_of(input.format)
    sampled = sizes["train"] < cut.train
    splits = {split: SplitReport(sizes[split], positives[split] / sizes[split]) for split in SPLITS}
    for split, (first, last) in ends.items():
        splits[split] = replace(splits[split], first=first, last=last)
    if sampled:  # all examples labelled 1 are kept
        rate_before = positives["train"] / cut.train
        splits["train"] = replace(splits["train"], label_rate_before=rate_before)
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
        dense=[column.report for column in dense],
        columns=[_column(column) for column in columns],
        store_bytes=store_bytes,
        bytes_per_row=store_bytes / sum(sizes.values()),
        unit=unit,
    )


def describe_preparation(
    input: Input,
    options: PrepareOptions,
    columns: Sequence[EncodedColumn],
    reused: str | None,
    report: PrepareReport,
) -> Preparation:
    """Makes the manifest's entry about a preparation.

    Args:
        input, options, columns, report: those of the preparation.
        reused: fingerprint of the encoders that were taken from another store, or extended.
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
        vocabulary_from=reused if options.extend is None else None,
        limit=options.limit,
        table_schema=input.table_schema,
        sampling=sampling,
        extends=reused if options.extend is not None else None,
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
