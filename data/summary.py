"""What a preparation counted, as its report and as the entries of the manifest."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.columnparts import EXAMPLES, IDS, MISSING, RARE
from data.options import PrepareOptions
from data.raw import Input, unit_of
from data.report import ColumnReport, DenseReport, PrepareReport, RejectedLine, SourceReport, SplitReport
from data.schema import MISSING_ROW, RARE_ROW
from data.selection import Cut, Selection, sampling_entry
from data.source import SPLITS
from data.tables_input import TableInput
from data.tally import Tally


def summarize(
    input: Input,
    tally: Tally,
    dense: Sequence[tuple[int, int, float, float, float]],
    cut: Cut,
    selection: Selection,
    columns: Sequence[Mapping[str, Any]],
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
        columns: what `ColumnEncoder.encode` told of each sparse feature.
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


def manifest_entries(
    input: Input,
    options: PrepareOptions,
    encoders: Sequence[Mapping[str, Any]],
    vocabulary_from: str | None,
    report: PrepareReport,
) -> dict[str, Any]:
    """What a manifest says besides what every store needs.

    Args:
        input, options, report: of the preparation.
        encoders: their entries.
        vocabulary_from: fingerprint of the encoders that were taken from another store.
    """
    has_vocabulary = any(entry["scheme"] == "vocabulary" for entry in encoders)
    entries: dict[str, Any] = {
        "input": input.format,
        "dense_transform": dict(input.dense_transform),
        "ids": {
            "missing_row": MISSING_ROW,
            "rare_row": RARE_ROW if has_vocabulary else None,
            "min_count": options.min_count if options.counts_values else None,
            "max_rows_per_table": options.max_rows_per_table,
            "vocabulary_from": vocabulary_from,
            "columns": list(encoders),
        },
        "split": options.split,
        "limit": options.limit,
        "report": report.to_dict(),
    }
    if isinstance(input, TableInput):
        entries["table_schema"] = input.schema.to_dict()
    if options.sample_negatives < 1:
        train = report.splits["train"]
        before = train.label_rate if train.label_rate_before is None else train.label_rate_before
        entries["negative_sampling"] = sampling_entry(options, before, train.label_rate)
    return entries


def _column(column: Mapping[str, Any]) -> ColumnReport:
    train, held_out = column["train"], column["held_out"]
    both = [a + b for a, b in zip(train, held_out, strict=True)]
    return ColumnReport(
        column["entry"]["name"],
        column["entry"]["rows"],
        missing=_share(both[MISSING], both[EXAMPLES]),
        rare=_share(both[RARE], both[IDS]),
        cardinality=column["cardinality"],
        rare_train=_share(train[RARE], train[IDS]),
        rare_held_out=_share(held_out[RARE], held_out[IDS]),
    )


def _share(some: int, all_of_them: int) -> float:
    return some / all_of_them if all_of_them else 0.0
