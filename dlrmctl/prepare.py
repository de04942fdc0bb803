"""`dlrmctl prepare criteo`: raw files to a store, with a report of what was found in them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data.prepare import PrepareOptions, prepare_criteo
from data.report import PrepareProgress, PrepareReport
from dlrmctl.console import bytes_text, messages, output, print_json, print_table, say

INTERVAL_SECONDS = 10.0  # between two lines of progress in a file
_PHASES = {"parse": "reading", "encode": "numbering ids", "write": "writing"}


def prepare(
    sources: Sequence[Path],
    out: Path,
    *,
    min_count: int,
    hash_rows: int | None,
    split: str,
    max_bad_rows: int | None,
    as_json: bool,
) -> None:
    """Prepares and reports.

    Raises:
        DataError: for whatever is wrong with the files or the options.
    """
    options = PrepareOptions(
        min_count=min_count,
        hash_rows=hash_rows,
        split=cast(Literal["order", "last-file"], split),
        max_bad_rows=max_bad_rows,
    )
    with _Display() as display:
        report = prepare_criteo(sources, out, options, display.update)
    if as_json:
        print_json({"store": str(out), **report.to_dict()})
    else:
        _show(report, out)


class _Display:
    """A bar on a terminal; in a file, one line per phase and interval."""

    def __init__(self) -> None:
        self.phase = ""
        self.said = 0.0
        self.bar: Progress | None = None
        if messages.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.fields[rows]:,} rows"),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                console=messages,
            )
            self.task = self.bar.add_task("", total=None, rows=0)

    def __enter__(self) -> "_Display":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, progress: PrepareProgress) -> None:
        if self.bar:
            self.bar.update(
                self.task,
                description=_PHASES[progress.phase],
                completed=progress.done,
                total=progress.total,
                rows=progress.rows,
            )
        elif progress.phase != self.phase or time.monotonic() - self.said > INTERVAL_SECONDS:
            share = f"{100 * progress.done / progress.total:.0f} %, " if progress.total else ""
            say(f"{_PHASES[progress.phase]}: {share}{progress.rows:,} rows so far")
            self.said = time.monotonic()
        self.phase = progress.phase


def _show(report: PrepareReport, out: Path) -> None:
    output.print(
        f"{out}: {report.rows:,} rows of {report.lines:,} lines, "
        f"{bytes_text(report.store_bytes)}, {report.bytes_per_row:.0f} bytes per row"
    )
    if report.num_repaired:
        output.print(f"repaired: {report.num_repaired:,} lines that had lost empty fields at their end")
    for reason, count in report.rejected.items():
        output.print(f"rejected: {count:,} lines, {reason}")
    for example in report.examples:
        output.print(f"  {example}")
    print_table(
        "splits, in the order of the files",
        ["", "examples", "label rate"],
        [[name, f"{part.examples:,}", f"{part.label_rate:.4f}"] for name, part in report.splits.items()],
    )
    print_table(
        "sparse features",
        ["", "rows", "missing", "rare"],
        [[c.name, f"{c.rows:,}", f"{100 * c.missing:.1f} %", f"{100 * c.rare:.1f} %"] for c in report.columns],
    )
