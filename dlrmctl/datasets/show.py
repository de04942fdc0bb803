"""Shows what is in a store, and how often its ids occur, as tables and as a picture (`dlrmctl data show`)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.console.console import output, print_json, print_table, say
from dlrmctl.console.pictures import picture
from dlrmctl.console.text import bytes_text, shortened
from dlrmctl.data.errors import DataError
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.preparation.report import PrepareReport
from dlrmctl.data.schema import MISSING_ROW, RESERVED_ROWS
from dlrmctl.data.source import SPLITS
from dlrmctl.data.store.store import Store
from dlrmctl.datasets.values import row_names

_SHARES = (0.001, 0.01, 0.1, 0.5)  # of a table's rows
_BLOCKS = "·▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 16  # characters
_POINTS = 200  # of a curve that is kept
_DRAWN_RANKS = 120  # columns of a picture
_PLACES = ("first", "second", "third")  # of the values that are shown
_MOST_SOURCES = 30


@dataclass(frozen=True)
class FrequentRow:
    """A row that is looked up often.

    Attributes:
        name: as tables show it.
        id: of the row.
        value: that has the row, None if it is not that of one value.
        count: of lookups.
    """

    name: str
    id: int
    value: str | None
    count: int


@dataclass(frozen=True)
class Frequencies:
    """Counts of how often the rows of one table are looked up in the training split.

    Attributes:
        name: of the feature.
        lookups: of all rows together.
        covered: share of the lookups that go to the most frequent rows, for each of `_SHARES` of the rows; None where
            that is less than a row.
        ranks, counts: points of the curve: the rank of a row, 1 for the most frequent one, and its count.
        top: the most frequent rows but the reserved ones.
    """

    name: str
    rows: int
    lookups: int
    covered: tuple[float | None, ...]
    ranks: tuple[int, ...]
    counts: tuple[int, ...]
    top: tuple[FrequentRow, ...]

    def counts_at(self, ranks: np.ndarray) -> np.ndarray:
        """The counts of the rows of these ranks, between the points of the curve; NaN where there is none."""
        counts = np.interp(np.log(ranks), np.log(self.ranks), self.counts)
        return np.where((ranks <= max(self.rows, 1.5)) & (counts >= 0.5), np.maximum(counts, 1), np.nan)

    def blocks(self) -> str:
        """The curve on logarithmic axes, in characters."""
        top = math.log1p(self.counts[0]) or 1.0
        ranks = np.geomspace(1, self.rows, _CURVE_WIDTH)
        counts = np.interp(np.log(ranks), np.log(self.ranks), np.log1p(self.counts))
        most = len(_BLOCKS) - 1  # interpolated counts may lie above the highest one by their rounding
        return "".join(_BLOCKS[min(math.ceil(count / top * most), most)] for count in counts)


def show_data(path: Path, *, plot: Path | None, as_json: bool) -> None:
    """Prints what a store says of itself; draws its curves.

    Raises:
        DataError: if there is no store, or it keeps nothing to draw.
    """
    store = Store(path)
    preparation = store.manifest.preparation
    frequencies = list(read_frequencies(store))
    if plot is not None:
        if not frequencies:
            raise DataError(f"{path}: keeps no counts of its ids, so there is nothing to draw", "prepare it again")
        draw_frequencies(frequencies, plot)
        say(f"wrote {plot}")
    if as_json:
        print_json({"store": str(path), **_facts(store), "frequencies": _as_dicts(frequencies)})
        return
    if preparation is None:
        _show_schema(store)
    else:
        if store.name != path.name:
            output.print(f"name: {store.name}")
        show_report(PrepareReport.from_dict(preparation.report), str(path))
    if frequencies:
        show_frequencies(frequencies)
    else:
        output.print("it keeps no counts of its ids")


def _facts(store: Store) -> dict[str, Any]:
    made = store.manifest.preparation
    return {
        "name": store.name,
        "input": made and made.input,
        "schema": store.schema.to_dict(),
        "split": made and made.split,
        **(made.report if made else {}),
    }


def show_report(report: PrepareReport, name: str) -> None:
    """The report of a preparation, as tables."""
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
    print_table(
        "splits, in the order of the files",
        ["", "examples", "label rate", *(["before sampling"] if sampled else [])],
        [
            [
                split,
                f"{part.examples:,}",
                f"{part.label_rate:.4f}",
                *([_rate(part.label_rate_before)] if sampled else []),
            ]
            for split, part in splits
        ],
    )
    if len(report.sources) > 1:
        shown = report.sources[:_MOST_SOURCES]
        rows = [[s.name, bytes_text(s.bytes), f"{s.lines:,}", f"{s.rows:,}", f"{s.label_rate:.4f}"] for s in shown]
        if len(report.sources) > len(shown):
            rows.append([f"and {len(report.sources) - len(shown):,} more", "", "", "", ""])
        counted = ["rows", "good rows"] if report.unit == "row" else ["lines", "rows"]
        print_table("sources", ["", "bytes", *counted, "label rate"], rows)
    if report.dense:
        print_table(
            "dense features, transformed",
            ["", "missing", "mean", "lowest", "highest"],
            [[d.name, _percent(d.missing), f"{d.mean:.3f}", f"{d.low:.3f}", f"{d.high:.3f}"] for d in report.dense],
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
    """Shows the columns of a store without a report."""
    output.print(f"{store.path}: written without a report; {len(store.schema.dense)} dense features")
    print_table("splits", ["", "examples"], [[split, f"{store.num_examples(split):,}"] for split in SPLITS])
    sparse = [[f.name, f"{f.rows:,}", f"{f.max_ids:,}"] for f in store.schema.sparse]
    print_table("sparse features", ["", "rows", "longest list"], sparse)


def read_frequencies(store: Store) -> Iterator[Frequencies]:
    """Reads the frequencies of features whose counts the store keeps; one table's counts are in memory at a time.

    Raises:
        DataError: if a file of counts is missing or changed.
    """
    for name in store.schema.keys:
        counts = store.features.counts(name)
        if counts is not None:
            yield frequencies_of(name, np.sort(counts)[::-1], frequent_rows(store.features, name, counts))


def frequent_rows(features: FeatureSpace, name: str, counts: np.ndarray) -> tuple[FrequentRow, ...]:
    """The most frequent rows of a feature, without those of missing and rare values.

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
    """Sums up the counts of one table.

    Args:
        name: of the feature.
        counts: lookups of each row, falling.
        top: its most frequent rows.
    """
    rows, lookups = len(counts), int(counts.sum(dtype=np.uint64))
    tops = [int(share * rows) for share in _SHARES]
    covered = tuple(int(counts[:top].sum(dtype=np.uint64)) / max(lookups, 1) if top else None for top in tops)
    ranks = np.unique(np.geomspace(1, rows, _POINTS).round().astype(np.int64))
    points = tuple(int(count) for count in counts[ranks - 1])
    return Frequencies(name, rows, lookups, covered, tuple(ranks.tolist()), points, top)


def show_frequencies(frequencies: Sequence[Frequencies]) -> None:
    """Shows the share of the training lookups that the most frequent rows get."""
    tops = [f"top {100 * share:g} %" for share in _SHARES]
    print_table(
        "training lookups that go to the most frequent rows of each table; the curve is log count over log rank",
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
    """Shows the most frequent values of a new store's vocabularies.

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
    """Shows the values that are looked up most often in training.

    Args:
        found: by feature, all lookups and the most frequent rows.
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
    """A row of colours for each table, the largest on top: how often each of its rows is looked up, by rank."""
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
