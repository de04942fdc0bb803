"""Raw Criteo files to a store, in memory that does not grow with the rows.

One pass parses the text into column files; then each sparse column is counted over the training rows and encoded;
then the columns are cut into the blocks of the store. Disk beside the store: about 135 bytes per row, for a while.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.columns import PIECE_ROWS, ColumnFiles
from data.criteo import DENSE, DENSE_TRANSFORM, LABEL, MISSING_DENSE, SPARSE, parse
from data.errors import DataError
from data.lines import check_source, read_lines
from data.partial import partial_directory
from data.report import ColumnReport, PrepareProgress, PrepareReport, RejectedLine, SourceReport, SplitReport
from data.schema import MISSING_ROW, RARE_ROW, Schema, SparseFeature
from data.source import SPLITS, Block
from data.vocabulary import Encoder, Hashing, Vocabulary, count_values, save_encoder
from data.writer import STORE_BLOCK_ROWS, StoreWriter

SHOWN_BAD_LINES = 10
Progress = Callable[[PrepareProgress], None]


@dataclass(frozen=True)
class PrepareOptions:
    """Decisions of a preparation.

    Attributes:
        min_count: a value seen less often among the training rows has no row of its own. The default of 2 gives the
            rare row examples to learn from.
        hash_rows: rows of every table, filled by hashing without a vocabulary; None makes vocabularies.
        split: "order": the first 6/7 of the rows train, half of the rest validates, the other half tests.
            "last-file": all files but the last train, and its halves validate and test.
        max_bad_rows: lines that may be left out; None allows 100 and 1 % of the lines read so far.
        block_rows: examples of a block of the store.
    """

    min_count: int = 2
    hash_rows: int | None = None
    split: Literal["order", "last-file"] = "order"
    max_bad_rows: int | None = None
    block_rows: int = STORE_BLOCK_ROWS

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise DataError(f"a minimum count of {self.min_count} must be at least 1")
        if self.hash_rows is not None and not 2 <= self.hash_rows <= 1 << 32:
            raise DataError(f"{self.hash_rows} rows for hashed values must be at least 2 and at most 2**32")
        if self.split not in ("order", "last-file"):
            raise DataError(f"splitting by {self.split!r} is not known: choose 'order' or 'last-file'")
        if self.max_bad_rows is not None and self.max_bad_rows < 0:
            raise DataError(f"a limit of {self.max_bad_rows} rejected lines must be at least 0")
        if self.block_rows < 1:
            raise DataError(f"blocks of {self.block_rows} examples must have at least 1")


def prepare_criteo(
    sources: Sequence[Path | str],
    out: Path | str,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Makes the store `out` from Criteo files, plain or gzip, in the given order.

    Until it is complete, the output is `OUT.partial`: that is removed after an error, and started over after a kill.

    Raises:
        DataError: if a file cannot be used, too many lines are bad, the rows do not fill three splits, `out` exists,
            or the disk is full.
    """
    options = options or PrepareOptions()
    progress = progress or (lambda _: None)
    paths, out = [Path(source) for source in sources], Path(out)
    if not paths:
        raise DataError("no file to prepare")
    if options.split == "last-file" and len(paths) < 2:
        raise DataError("splitting by the last file needs at least two files", "split a single file by order")
    sizes = [check_source(path) for path in paths]
    with partial_directory(out) as partial, ColumnFiles(partial / "columns", DENSE, SPARSE) as columns:
        report = _parse_all(paths, sizes, columns, options, progress)
        splits = _split_rows(report, options.split)
        entries, column_reports = _encode_all(columns, splits["train"].stop, partial, options, progress)
        schema = Schema(DENSE, tuple(SparseFeature(column.name, column.rows) for column in column_reports), LABEL)
        with StoreWriter(partial, schema, block_rows=options.block_rows) as writer:
            split_reports = _write_all(columns, splits, writer, progress)
            report = replace(
                report,
                splits=split_reports,
                columns=column_reports,
                store_bytes=writer.bytes_written,
                bytes_per_row=writer.bytes_written / report.rows,
            )
            writer.finish(
                {
                    "dense_transform": {"formula": DENSE_TRANSFORM, "missing": MISSING_DENSE, "type": "float16"},
                    "ids": {
                        "missing_row": MISSING_ROW,
                        "rare_row": RARE_ROW if options.hash_rows is None else None,
                        "min_count": options.min_count if options.hash_rows is None else None,
                        "columns": entries,
                    },
                    "split": options.split,
                    "report": report.to_dict(),
                }
            )
    return report


def _parse_all(
    paths: list[Path], sizes: list[int], columns: ColumnFiles, options: PrepareOptions, progress: Progress
) -> PrepareReport:
    """All good rows into `columns`; the report's part about lines."""
    rejected: Counter[str] = Counter()
    examples: list[RejectedLine] = []
    sources, num_lines, repaired = [], 0, 0
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        lines_before, rows_before = num_lines, columns.rows
        for lines in read_lines(path):
            rows = parse(lines)
            columns.append(rows)
            num_lines += len(rows.lines_N) + len(rows.bad)
            repaired += sum(rows.repaired.values())
            rejected.update(bad.reason for bad in rows.bad)
            room = SHOWN_BAD_LINES - len(examples)
            examples += [RejectedLine(path.name, bad.line, bad.problem) for bad in rows.bad[:room]]
            _check_rejected(rejected.total(), num_lines, examples, options.max_bad_rows)
            progress(PrepareProgress("parse", sum(sizes[:number]) + lines.position, sum(sizes), columns.rows))
        sources.append(SourceReport(path.name, size, num_lines - lines_before, columns.rows - rows_before))
    columns.close()
    if columns.rows == 0:
        first = f"; {examples[0]}" if examples else ""
        raise DataError(f"{paths[0]}: no good row{first}", "the format is Criteo's: 40 fields, separated by tabs")
    return PrepareReport(num_lines, columns.rows, repaired, dict(rejected), examples, sources)


def _check_rejected(num_bad: int, num_lines: int, examples: list[RejectedLine], limit: int | None) -> None:
    allowed = 100 + num_lines // 100 if limit is None else limit
    if num_bad > allowed:
        raise DataError(
            str(examples[0]),
            f"{num_bad:,} of the first {num_lines:,} lines were rejected, at most {allowed:,} were allowed; "
            "the file may be cut short or of another format; if not, allow more rejected lines",
        )


def _split_rows(report: PrepareReport, how: str) -> dict[str, range]:
    """Which rows belong to which split."""
    num_train = report.rows * 6 // 7 if how == "order" else report.rows - report.sources[-1].rows
    num_validation = (report.rows - num_train) // 2
    ends = (num_train, num_train + num_validation, report.rows)
    splits = dict(zip(SPLITS, (range(a, b) for a, b in zip((0, *ends), ends, strict=False)), strict=True))
    for split, rows in splits.items():
        if not rows:
            sizes = ", ".join(f"{len(r)} in {name}" for name, r in splits.items())
            raise DataError(
                f"{report.rows} good rows leave the {split} split empty ({sizes})",
                "at least 14 rows fill every split" if how == "order" else "both parts need rows",
            )
    return splits


def _encode_all(
    columns: ColumnFiles, num_train: int, store: Path, options: PrepareOptions, progress: Progress
) -> tuple[list[dict[str, Any]], list[ColumnReport]]:
    """Values to rows in every sparse column; the vocabulary is counted over the training rows alone.

    One column's vocabulary is in memory at a time.

    Returns:
        What the manifest says of each encoder, and the reports.
    """
    entries, reports = [], []
    counts = num_train if options.hash_rows is None else 0
    done, total = 0, (counts + columns.rows) * len(columns.sparse)

    def told(pieces: Iterable[np.ndarray], num_rows: int) -> Iterator[np.ndarray]:
        """The pieces of a column; the progress after each, in values."""
        nonlocal done
        for number, piece in enumerate(pieces):
            yield piece
            at = min((number + 1) * PIECE_ROWS, num_rows)
            progress(PrepareProgress("encode", done + at, total, columns.rows))
        done += num_rows

    for f, name in enumerate(columns.sparse):
        encoder: Encoder
        if options.hash_rows is None:
            counted = count_values(told(columns.present_values(name, num_train), num_train))
            encoder = Vocabulary.of_counts(*counted, min_count=options.min_count)
        else:
            encoder = Hashing(options.hash_rows, f)
        missing = rare = 0
        for rows in told(columns.encode(name, encoder), columns.rows):
            missing += int((rows == MISSING_ROW).sum())
            rare += int((rows == RARE_ROW).sum()) if options.hash_rows is None else 0
        entries.append(save_encoder(store, name, encoder))
        reports.append(ColumnReport(name, encoder.rows, missing / columns.rows, rare / columns.rows))
    return entries, reports


def _write_all(
    columns: ColumnFiles, splits: dict[str, range], writer: StoreWriter, progress: Progress
) -> dict[str, SplitReport]:
    reports = {}
    for split, rows in splits.items():
        positives = 0
        for start in range(rows.start, rows.stop, writer.block_rows):
            count = min(writer.block_rows, rows.stop - start)
            labels = columns.labels(start, count)
            writer.add(split, Block(columns.dense_rows(start, count), columns.sparse_rows(start, count), labels))
            positives += int(labels.sum())
            progress(PrepareProgress("write", start + count, columns.rows, columns.rows))
        reports[split] = SplitReport(len(rows), positives / len(rows))
    return reports
