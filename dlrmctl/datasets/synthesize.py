"""Writes generated examples in Criteo's format, with the scores of the best model (`dlrmctl data synthesize`)."""

import gzip
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from dlrmctl.console.console import output, print_table
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import METRICS, bytes_text, number_text
from dlrmctl.data.errors import DataError
from dlrmctl.data.files import whole_file
from dlrmctl.data.source import SPLITS
from dlrmctl.data.synthetic.cardinalities import SIZES
from dlrmctl.data.synthetic.criteo_text import chunk, chunk_edges
from dlrmctl.data.synthetic.drift import MOST_DAYS
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.data.synthetic.teacher import TeacherScores
from dlrmctl.errors import UserError

MOST_FILES = 10_000


@dataclass(frozen=True)
class _Part:
    """Rows [first, end) and their sums."""

    first: int
    end: int
    tally: TeacherScores = field(default_factory=TeacherScores)

    def scores(self) -> dict[str, Any]:
        bayes = self.tally.bayes()
        return {
            "rows": self.end - self.first,
            "label_rate": self.tally.label_rate,
            "bayes_log_loss": bayes.log_loss,
            "bayes_ne": bayes.ne,
            "bayes_auc": bayes.auc,
        }


def synthesize(
    out: str,
    *,
    rows: int,
    num_files: int | None,
    rows_per_file: int | None,
    size: str,
    seed: int,
    force: bool,
    drift: float = 0.0,
) -> dict[str, Any]:
    """Writes the training examples of `--dataset synthetic` with this size and seed, in order.

    Args:
        out: name of the files; `{n}` is replaced by their number, and names ending in .gz are compressed.
        rows: total number of rows.
        num_files, rows_per_file: how to split the rows; at most one is given.
        size: of the tables, a name in `SIZES`.
        seed: of the data.
        force: overwrite existing files.
        drift: share of the ids that are replaced, and of the effects that change, from each file to the next.

    Returns:
        Plain values: files, and scores of the true probabilities on all rows, on each file, and on the splits that
        `dlrmctl prepare criteo` would make.

    Raises:
        UserError, DataError: for unusable names or directories, or a full disk.
    """
    ends = _file_ends(rows, num_files, rows_per_file)
    if drift and not 1 < len(ends) <= MOST_DAYS:
        raise UserError(f"--drift {drift:g} is from file to file: it needs 2 to {MOST_DAYS} files", "--files 10")
    paths = file_names(out, len(ends))
    _check_places(paths, force)
    splits = _splits(rows, ends)
    whole = _Part(0, rows)
    parts = [whole, *(part for parts in splits.values() for part in parts.values())]
    source = Synthetic(seed, rows, 1, 1, cardinalities=SIZES[size])
    _check_room(paths[0], source, rows)
    edges = chunk_edges(rows, [*ends, *(part.end for part in parts)])
    files, started = [], time.monotonic()
    with BarDisplay() as display:
        display.begin("writing", rows)
        for day, (path, (first, end)) in enumerate(zip(paths, pairwise([0, *ends]), strict=True)):
            this, of_day = _Part(first, end), source.on_day(day, drift) if drift else source
            with whole_file(path) as file:
                for a, b in pairwise(edge for edge in edges if first <= edge <= end):
                    written = chunk(of_day, a, b)
                    file.write(written.text)
                    for part in (this, *parts):
                        if part.first <= a < part.end:
                            part.tally.merge(written.tally)
                    display.advance_to(b, rows, f"{b:,} rows, {b / display.seconds:,.0f} rows/s")
            files.append({"path": str(path), "bytes": path.stat().st_size, **this.scores()})
    seconds = time.monotonic() - started
    return {
        "size": size,
        "seed": seed,
        "drift": drift,
        **whole.scores(),
        "bytes": sum(file["bytes"] for file in files),
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "files": files,
        "splits": {how: {split: part.scores() for split, part in by_split.items()} for how, by_split in splits.items()},
    }


def _file_ends(rows: int, num_files: int | None, rows_per_file: int | None) -> list[int]:
    """The cumulative number of rows at the end of each file."""
    if num_files is not None and rows_per_file is not None:
        raise UserError("--files and --rows-per-file contradict: give one of them")
    count = num_files or -(-rows // (rows_per_file or rows))
    if count > min(rows, MOST_FILES):
        raise UserError(f"{rows:,} rows in {count:,} files: at most {min(rows, MOST_FILES):,} files are written")
    if rows_per_file is not None:
        return [*range(rows_per_file, rows, rows_per_file), rows]
    return [rows * (n + 1) // count for n in range(count)]


def _check_places(paths: Sequence[Path], force: bool) -> None:
    """Checks the output paths before any work."""
    for path in paths:
        if not path.parent.is_dir():
            raise UserError(f"{path.parent}: no such directory", f"mkdir -p {path.parent}")
        if path.is_dir():
            raise UserError(f"{path} is a directory", f"{path}/day_{{n}}.tsv")
        if path.exists() and not force:
            raise UserError(f"{path} already exists", "use --force to overwrite it")


def _check_room(path: Path, source: Synthetic, rows: int) -> None:
    """Compares the estimated size of the rows with the free space."""
    sample = min(rows, 4096)
    text = chunk(source, 0, sample).text
    needed = len(gzip.compress(text) if path.suffix == ".gz" else text) * rows // sample
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"{path}: {rows:,} rows take about {bytes_text(needed)}, but only {bytes_text(free)} are free",
            "use fewer --rows, or another directory with -o",
        )


def _splits(rows: int, ends: Sequence[int]) -> dict[str, dict[str, _Part]]:
    """The rows of each split, for each --split of `dlrmctl prepare criteo` that has no empty split."""
    num_train = {"order": rows * 6 // 7}
    if len(ends) > 1:
        num_train["last-file"] = ends[-2]
    splits = {}
    for how, first in num_train.items():
        bounds = (0, first, first + (rows - first) // 2, rows)
        if all(a < b for a, b in pairwise(bounds)):
            splits[how] = {split: _Part(a, b) for split, (a, b) in zip(SPLITS, pairwise(bounds), strict=True)}
    return splits


def show_synthesis(result: dict[str, Any]) -> None:
    """Prints the result as a table."""
    files = result["files"]
    names = files[0]["path"] if len(files) == 1 else f"{files[0]['path']} to {files[-1]['path']}"
    output.print(
        f"wrote {names}: {result['rows']:,} rows, {bytes_text(result['bytes'])}, "
        f"{result['rows_per_second']:,.0f} rows/s"
    )
    rows = [_line("all rows", result)]
    for how, by_split in result["splits"].items():
        rows += [_line(f"{split}, --split {how}", scores) for split, scores in by_split.items()]
    columns = ["", "rows", "label rate", *(METRICS[name] for name in ("log_loss", "ne", "auc"))]
    print_table("scores of the true probabilities, the best that a model can reach", columns, rows)


def _line(name: str, scores: dict[str, Any]) -> list[str]:
    figures = [scores["label_rate"], scores["bayes_log_loss"], scores["bayes_ne"], scores["bayes_auc"]]
    return [name, f"{scores['rows']:,}", *(number_text(figure) for figure in figures)]


def file_names(pattern: str, count: int) -> list[Path]:
    """The names of `count` files; `{n}` in the pattern counts from 0.

    Raises:
        DataError: if several files would have one name, or the pattern has another field.
    """
    other = next((field for field in re.findall(r"\{[^{}]*\}", pattern) if field != "{n}"), None)
    if other is not None:
        raise DataError(f"{pattern}: unknown field {other}", "use {n} for the number of a file")
    if count > 1 and "{n}" not in pattern:
        path = Path(pattern)
        suffixes = "".join(path.suffixes)
        better = path.with_name(path.name.removesuffix(suffixes) + "_{n}" + suffixes)
        raise DataError(f"{pattern}: {count} files need a name with {{n}}", f"'{better}'")
    return [Path(pattern.replace("{n}", str(n))) for n in range(count)]
