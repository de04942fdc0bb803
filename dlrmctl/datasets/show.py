"""Shows the contents and id frequencies of a store as tables and as a picture (`dlrmctl data show`)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.console.console import output, print_json, print_table, say
from dlrmctl.console.pictures import picture
from dlrmctl.console.text import bytes_text, number_text, shortened
from dlrmctl.data.errors import DataError
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.preparation.report import PrepareReport
from dlrmctl.data.schema import MISSING_ROW, RESERVED_ROWS
from dlrmctl.data.source import SPLITS
from dlrmctl.data.splits import Split
from dlrmctl.data.store.store import Store
from dlrmctl.datasets.values import row_names
from dlrmctl.settings.stores import store_place

_SHARES = (0.001, 0.01, 0.1, 0.5)  # of a table's rows
_BLOCKS = "·▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 16  # characters
_POINTS = 200  # of a stored curve
_DRAWN_RANKS = 120  # columns of the picture
_PLACES = ("first", "second", "third")
_MOST_SOURCES = 30


@dataclass(frozen=True)
class FrequentRow:
    """A frequently used row of a table.

    Attributes:
        name: of the row in tables.
        id: of the row.
        value: of the row; None if several values share it.
        count: of lookups.
    """

    name: str
    id: int
    value: str | None
    count: int


@dataclass(frozen=True)
class Frequencies:
    """Lookup counts of the rows of a table in the training split.

    Attributes:
        name: of the feature.
        lookups: total number of lookups.
        covered: fraction of the lookups that go to the most frequent rows, for each of `_SHARES` of the rows; None if
            that is less than one row.
        ranks, counts: points of the curve: rank of a row (1 for the most frequent one) and its count.
        top: the most frequent rows, without the reserved ones.
    """

    name: str
    rows: int
    lookups: int
    covered: tuple[float | None, ...]
    ranks: tuple[int, ...]
    counts: tuple[int, ...]
    top: tuple[FrequentRow, ...]

    def counts_at(self, ranks: np.ndarray) -> np.ndarray:
        """Interpolates the counts at these ranks; NaN outside the curve."""
        counts = np.interp(np.log(ranks), np.log(self.ranks), self.counts)
        return np.where((ranks <= max(self.rows, 1.5)) & (counts >= 0.5), np.maximum(counts, 1), np.nan)

    def blocks(self) -> str:
        """Draws the curve on logarithmic axes, in block characters."""
        top = math.log1p(self.counts[0]) or 1.0
        ranks = np.geomspace(1, self.rows, _CURVE_WIDTH)
        counts = np.interp(np.log(ranks), np.log(self.ranks), np.log1p(self.counts))
        most = len(_BLOCKS) - 1  # rounding may put interpolated counts above the highest one
        return "".join(_BLOCKS[min(math.ceil(count / top * most), most)] for count in counts)


def show_data(path: Path | str, *, plot: Path | None, as_json: bool) -> None:
    """Prints the contents of a store and draws its id frequencies.

    Raises:
        DataError: if there is no store, or it has no counts to draw.
    """
    store = Store(store_place(path))
    preparation = store.manifest.preparation
    frequencies = list(read_frequencies(store))
    if plot is not None:
        if not frequencies:
            raise DataError(f"{path} has no id counts to draw", "prepare it again")
        draw_frequencies(frequencies, plot)
        say(f"wrote {plot}")
    if as_json:
        print_json({"store": str(path), **_facts(store), "frequencies": _as_dicts(frequencies)})
        return
    if preparation is None:
        _show_schema(store)
    else:
        if store.name != Path(path).name:
            output.print(f"name: {store.name}")
        show_report(PrepareReport.from_dict(preparation.report), preparation.split, str(path))
    if frequencies:
        show_frequencies(frequencies)
    else:
        output.print("no id counts")


def _facts(store: Store) -> dict[str, Any]:
    made = store.manifest.preparation
    return {
        "name": store.name,
        "input": made and made.input,
        "schema": store.schema.to_dict(),
        "split": made and made.split.name,
        "split_rule": made and made.split.to_dict(),
        **(made.report if made else {}),
    }


def show_report(report: PrepareReport, split: Split, name: str) -> None:
    """Prints the report of a preparation, with the rule of its splits."""
    size = f"{bytes_text(report.store_bytes)}, {report.bytes_per_row:.0f} bytes per row"
    read = f"{report.lines:,} {report.unit}s" if report.unit != "row" else f"{report.lines:,}"
    output.print(f"{name}: {report.rows:,} rows of {read}, {size}")
    for reason, count in report.repaired.items():
        output.print(f"repaired: {count:,} {report.unit}s, {reason}")
    for reason, count in report.rejected.items():
        output.print(f"rejected: {count:,} {report.unit}s, {reason}")
    for example in report.examples:
        output.print(f"  {example}")
    splits = report.splits.items()
    sampled = any(part.label_rate_before is not None for _, part in splits)
    timed = any(part.first is not None for _, part in splits)
    print_table(
        f"splits, {split.description}",
        ["", "examples", "label rate", *(["before sampling"] * sampled), *(["first", "last"] * timed)],
        [
            [
                name,
                f"{part.examples:,}",
                f"{part.label_rate:.4f}",
                *([_rate(part.label_rate_before)] * sampled),
                *([part.first or "-", part.last or "-"] * timed),
            ]
            for name, part in splits
        ],
    )
    if len(report.sources) > 1:
        shown = report.sources[:_MOST_SOURCES]
        rows = [
            [s.name, bytes_text(s.bytes), f"{s.lines:,}", f"{s.rows:,}", _rate(s.label_rate if s.rows else None)]
            for s in shown
        ]
        if len(report.sources) > len(shown):
            rows.append([f"and {len(report.sources) - len(shown):,} more", "", "", "", ""])
        counted = ["rows", "good rows"] if report.unit == "row" else ["lines", "rows"]
        print_table("sources", ["", "bytes", *counted, "label rate"], rows)
    if report.dense:
        print_table(
            "dense features, transformed",
            ["", "missing", "mean", "lowest", "highest"],
            [
                [d.name, _percent(d.missing), *(number_text(value, 3) for value in (d.mean, d.low, d.high))]
                for d in report.dense
            ],
        )
    print_table(
        "sparse features",
        ["", "rows", "values", "missing", "rare in train", "rare held out"],
        [
            [
                c.name,
                f"{c.rows:,}",
                "-" if c.cardinality is None else f"{c.cardinality:,}",
                *map(_percent, (c.missing, c.rare_train, c.rare_held_out)),
            ]
            for c in report.columns
        ],
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.4f}"


def _show_schema(store: Store) -> None:
    """Prints the columns of a store that has no report."""
    output.print(f"{store.path}: no report; {len(store.schema.dense)} dense features")
    print_table("splits", ["", "examples"], [[split, f"{store.num_examples(split):,}"] for split in SPLITS])
    sparse = [[f.name, f"{f.rows:,}", f"{f.max_ids:,}"] for f in store.schema.sparse]
    print_table("sparse features", ["", "rows", "longest list"], sparse)


def read_frequencies(store: Store) -> Iterator[Frequencies]:
    """Reads the frequencies of all features with counts, one table at a time.

    Raises:
        DataError: if a file of counts is missing or changed.
    """
    for name in store.schema.keys:
        counts = store.features.counts(name)
        if counts is not None:
            yield frequencies_of(name, np.sort(counts)[::-1], frequent_rows(store.features, name, counts))


def frequent_rows(features: FeatureSpace, name: str, counts: np.ndarray) -> tuple[FrequentRow, ...]:
    """Returns the most frequent rows of a feature, without those of missing and rare values.

    Args:
        features, name: of the feature.
        counts: lookups of each row.

    Raises:
        DataError: if a file with values is missing or changed.
    """
    if features.sorted_by_frequency(name):
        chosen = list(range(RESERVED_ROWS, min(RESERVED_ROWS + len(_PLACES), len(counts))))
    else:
        chosen, rest = [], counts.copy()
        rest[MISSING_ROW] = 0
        while len(chosen) < len(_PLACES) and rest.any():
            chosen.append(int(rest.argmax()))
            rest[chosen[-1]] = 0
    values = features.values_of(name, chosen)
    names = row_names(features, name, chosen, values)
    return tuple(
        FrequentRow(label, row, value, int(counts[row]))
        for label, row, value in zip(names, chosen, values, strict=True)
    )


def frequencies_of(name: str, counts: np.ndarray, top: tuple[FrequentRow, ...] = ()) -> Frequencies:
    """Summarizes the counts of a table.

    Args:
        name: of the feature.
        counts: lookups of each row, in descending order.
        top: its most frequent rows.
    """
    rows, lookups = len(counts), int(counts.sum(dtype=np.uint64))
    tops = [int(share * rows) for share in _SHARES]
    covered = tuple(int(counts[:top].sum(dtype=np.uint64)) / max(lookups, 1) if top else None for top in tops)
    ranks = np.unique(np.geomspace(1, rows, _POINTS).round().astype(np.int64))
    points = tuple(int(count) for count in counts[ranks - 1])
    return Frequencies(name, rows, lookups, covered, tuple(ranks.tolist()), points, top)


def show_frequencies(frequencies: Sequence[Frequencies]) -> None:
    """Prints the fraction of the training lookups that go to the most frequent rows."""
    tops = [f"top {100 * share:g} %" for share in _SHARES]
    print_table(
        "share of the training lookups that go to the most frequent rows; the curve is log count over log rank",
        ["", "lookups", "rows", *tops, "curve"],
        [
            [
                f.name,
                f"{f.lookups:,}",
                f"{f.rows:,}",
                *("-" if share is None else _percent(share) for share in f.covered),
                f.blocks(),
            ]
            for f in frequencies
        ],
        optional=(tops[-1], "lookups"),
    )
    _show_most_frequent({f.name: (f.lookups, f.top) for f in frequencies})


def show_most_frequent(features: FeatureSpace) -> None:
    """Prints the most frequent values of a new store's vocabularies.

    Raises:
        DataError: if a file of the store is missing or changed.
    """
    found = {}
    for name in filter(features.sorted_by_frequency, features.schema.keys):
        counts = features.counts(name)
        if counts is not None:
            found[name] = int(counts.sum(dtype=np.uint64)), frequent_rows(features, name, counts)
    _show_most_frequent(found)


def _show_most_frequent(found: Mapping[str, tuple[int, tuple[FrequentRow, ...]]]) -> None:
    """Prints the most frequent values.

    Args:
        found: number of lookups and most frequent rows, by feature.
    """
    rows = [
        [name, *(f"{shortened(row.name, 24)} {_percent(row.count / lookups)}" for row in top)]
        for name, (lookups, top) in found.items()
    ]
    if most := max((len(row) for row in rows), default=1) - 1:
        shown = [[*row, *[""] * (most + 1 - len(row))] for row in rows]
        print_table("most frequent values, and their share of the training lookups", ["", *_PLACES[:most]], shown)


def _as_dicts(frequencies: Sequence[Frequencies]) -> list[dict[str, Any]]:
    shares = [f"top {100 * share:g} %" for share in _SHARES]
    return [
        {
            "name": f.name,
            "rows": f.rows,
            "lookups": f.lookups,
            "covered": dict(zip(shares, f.covered, strict=True)),
            "curve": {"rank": f.ranks, "count": f.counts},
            "top": [{"value": t.value, "id": t.id, "count": t.count} for t in f.top],
        }
        for f in frequencies
    ]


def draw_frequencies(frequencies: Sequence[Frequencies], path: Path) -> None:
    """Draws a heat map of lookup counts by rank, one row per table, the largest table on top."""
    ordered = sorted(frequencies, key=lambda f: -f.rows)
    edges = np.geomspace(1, max(2, ordered[0].rows + 1), _DRAWN_RANKS + 1)
    counts = np.stack([f.counts_at(np.sqrt(edges[:-1] * edges[1:])) for f in ordered])
    with picture(path, width=8.0, height=1.6 + 0.2 * len(ordered)) as figure:
        from matplotlib.colors import LogNorm

        axes = figure.add_subplot()
        most = max(2.0, float(np.nanmax(counts, initial=2.0)))
        drawn = axes.pcolormesh(
            edges, np.arange(len(ordered) + 1), np.ma.masked_invalid(counts), norm=LogNorm(1, most), cmap="viridis"
        )
        axes.set_xscale("log")
        axes.set_xlabel("rank of the row in its table, 1 for the most frequent id")
        axes.set_yticks(np.arange(len(ordered)) + 0.5, [f"{f.name}, {f.rows:,} rows" for f in ordered], fontsize=8)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_title("How often the rows of each table are looked up")
        figure.colorbar(drawn, ax=axes, label="lookups of the row in the training split")
