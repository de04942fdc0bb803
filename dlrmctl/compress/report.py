"""The report of a compression as plain values, tables and a picture of the frontier."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrmctl.compress.compression import Compression
from dlrmctl.compress.finetune import show_finetuning
from dlrmctl.compress.search import priced
from dlrmctl.compress.trial import Trial
from dlrmctl.console.console import output, print_table
from dlrmctl.console.pictures import picture
from dlrmctl.console.text import METRICS, bytes_text, fixed, number_text, with_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DRAWN_POINTS = 400


def make_report(compression: Compression, trials: dict[str, Trial]) -> dict[str, Any]:
    """Gathers the report as plain values.

    Args:
        trials: by split; adds the measured differences of each.
    """
    search = compression.search
    stored = {shape.name: shape.stored_bytes for shape in compression.source.tables}
    tables: list[dict[str, Any]] = []
    for number, (table, index) in enumerate(zip(compression.tables, compression.choice.indices, strict=True)):
        option = table.options[index]
        assert option.quality is not None
        entry: dict[str, Any] = {
            "name": table.name,
            "rows": table.rows,
            "dim": table.dim,
            "bytes_before": stored[table.name],
            "bytes_after": option.num_bytes,
            "method": option.method,
            "weights": table.weights_kind,
            **asdict(option.quality),
        }
        if option.certificate is not None:
            entry["isometry"] = option.certificate
        if search is not None:
            entry["predicted_ne_increase"] = search.constants[number] * option.proxy
            method, rise, se = search.calibrations[number]
            entry["calibration"] = {"method": method, "ne_increase": rise, "se": se}
        tables.append(entry)
    for shape in compression.kept:
        kept = {"bytes_before": shape.stored_bytes, "bytes_after": shape.num_bytes, "method": "fp32"}
        tables.append({"name": shape.name, "rows": shape.rows, "dim": shape.dim, **kept})
    report: dict[str, Any] = {
        "goal": compression.request.goal,
        "bytes_before": compression.bytes_before,
        "bytes_after": compression.bytes_after,
        "ratio": compression.ratio,
        "tables": sorted(tables, key=lambda entry: -entry["bytes_before"]),
    }
    if compression.request.budget is not None:
        report["max_ne_increase"] = compression.request.budget
    if search is not None and compression.joint is not None:
        predicted = priced(compression.tables, compression.choice.indices, search.constants).error
        report["predicted_ne_increase"] = predicted
        fixed = sum(shape.num_bytes for shape in compression.kept)
        report["evaluated"] = [
            {
                "bytes": tried.choice.num_bytes + fixed,
                "predicted_ne_increase": tried.predicted,
                "ne_increase": tried.measured,
                "se": tried.se,
            }
            for tried in search.joints
        ]
    for split, trial in trials.items():
        report[split] = trial.compare(trial.logits(compression.replaced()))
    return report


def show_report(report: dict[str, Any], out: Path | None, *, explain: bool) -> None:
    """Prints the report.

    Args:
        out: the written directory; None if nothing was written.
        explain: also prints the calibration of each table and all evaluated choices.
    """
    size = f"{bytes_text(report['bytes_before'])} of tables become {bytes_text(report['bytes_after'])}"
    written = f"wrote {out}: " if out is not None else "nothing written: "
    files = f"; {bytes_text(sum(report['files'].values()))} of files in all" if "files" in report else ""
    output.print(f"{written}{size}, {report['ratio']:.1f} times smaller{files}")
    for split in ("validation", "test"):
        if split in report:
            output.print(_split_text(split, report[split]))
    if "finetune" in report:
        show_finetuning(report)
    columns = ["", "rows", "dim", "before", "after", "ratio", "method", "weighted error", "distortion p99"]
    predicts = any("predicted_ne_increase" in entry for entry in report["tables"])
    if predicts:
        columns.append("predicted NE")
    print_table(
        "tables",
        columns,
        [_row(entry, predicts) for entry in report["tables"]],
        optional=("distortion p99", "dim", "weighted error", "rows", "before"),
    )
    if any("isometry" in entry for entry in report["tables"]):
        _show_maps(report)
    if explain and "evaluated" in report:
        _explain(report)


def _split_text(split: str, part: dict[str, Any]) -> str:
    name = "ne" if "ne" in part else "log_loss"
    title, found = METRICS[name], part[name]
    rise = with_error(part["ne_increase"], part["ne_increase_se"], "+.4f", scale=100)
    auc = f"; AUC {with_error(part['auc']['difference'], part['auc']['se'], '+.5f')}" if "auc" in part else ""
    return f"{split}, {part['examples']:,} examples: {title} {found['a']:.5f} -> {found['b']:.5f}, {rise} %{auc}"


def _row(entry: dict[str, Any], predicts: bool) -> list[str]:
    row = [
        entry["name"],
        f"{entry['rows']:,}",
        str(entry["dim"]),
        bytes_text(entry["bytes_before"]),
        bytes_text(entry["bytes_after"]),
        f"{entry['bytes_before'] / entry['bytes_after']:.1f}",
        entry["method"],
        f"{entry['weighted_relative_error']:.4f}" if "weighted_relative_error" in entry else "-",
        f"{entry['distortion_p99']:.3f}" if "distortion_p99" in entry else "-",
    ]
    if predicts:
        rise = entry.get("predicted_ne_increase")
        row.append("-" if rise is None else _predicted(rise))
    return row


def _predicted(rise: float) -> str:
    """A predicted increase of NE, which is never negative, and 0 only for the trained table."""
    return "<0.0001 %" if 0 < rise < 1e-6 else f"{fixed(100 * rise, '+.4f')} %"


def _show_maps(report: dict[str, Any]) -> None:
    """Prints the distance errors of near-isometric maps and of other maps of the same rank."""
    rows = []
    for entry in report["tables"]:
        found = entry.get("isometry", {"maps": []})
        for number, figures in enumerate(found["maps"]):
            kept = [figures["delta"], figures["recall"], figures["held_out_delta"], figures["held_out_recall"]]
            stored = number_text(found["stored_delta"] if number == 0 else None)
            rows.append([entry["name"] if number == 0 else "", figures["name"], *map(number_text, kept), stored])
    print_table(
        "largest relative error of a squared distance, and share of the 10 nearest rows that stay nearest",
        ["", "map", "error", "nearest", "error, other rows", "nearest, other rows", "error as stored"],
        rows,
    )


def _rise(measured: dict[str, Any]) -> str:
    return f"{with_error(measured['ne_increase'], measured['se'], '+.4f', scale=100)} %"


def _explain(report: dict[str, Any]) -> None:
    print_table(
        "evaluations of single tables, which calibrate the prediction",
        ["", "method", "NE"],
        [
            [
                entry["name"],
                entry["calibration"]["method"],
                _rise(entry["calibration"]),
            ]
            for entry in report["tables"]
            if "calibration" in entry
        ],
    )
    print_table(
        f"evaluations of all tables together, budget {100 * report['max_ne_increase']:g} %",
        ["", "bytes", "ratio", "predicted", "measured"],
        [
            [
                str(number + 1),
                bytes_text(tried["bytes"]),
                f"{report['bytes_before'] / tried['bytes']:.1f}",
                "-" if tried["predicted_ne_increase"] is None else _predicted(tried["predicted_ne_increase"]),
                _rise(tried),
            ]
            for number, tried in enumerate(report["evaluated"])
        ],
    )


def draw_frontier(compression: Compression, report: dict[str, Any], out: Path) -> None:
    """Draws the cost of smaller tables: predicted for every size, and measured for evaluated choices."""
    fixed = sum(shape.num_bytes for shape in compression.kept)
    frontier = compression.frontier
    shown = np.unique(np.linspace(0, len(frontier.num_bytes) - 1, _DRAWN_POINTS).astype(int))
    ratios = (compression.bytes_before / (frontier.num_bytes[shown] + fixed)).tolist()
    costs = frontier.errors[shown]
    measured = {split: report[split] for split in ("validation", "test") if "ne_increase" in report.get(split, {})}
    beside = bool(measured) and compression.search is None
    with picture(out, width=9.0 if beside else 8.0, height=4.5) as figure:
        left, *right = figure.subplots(1, 1 + beside, squeeze=False, width_ratios=(2, 1)[: 1 + beside])[0]
        left.axvline(report["ratio"], color="0.4", linewidth=1, label=f"chosen, {report['ratio']:.1f} times smaller")
        if compression.search is not None:
            _draw_search(left, ratios, 100 * costs, report)
            for number, (split, part) in enumerate(measured.items()):
                place = report["ratio"] * (1 + 0.02 * number)  # side by side
                _draw_rise(left, place, part, number, f"chosen, {split} split ± 2 standard errors")
        else:
            left.plot(ratios, costs, label="smallest error at each size")
            left.set(yscale="log", ylabel="squared error, rows weighted by importance")
            left.set_title("Error by size of the tables")
        _ratio_axis(left, [*ratios, report["ratio"]])
        left.legend()
        for axes in right:
            for number, (split, part) in enumerate(measured.items()):
                _draw_rise(axes, split, part, number, "")
            axes.margins(x=0.5)
            axes.axhline(0, color="0.4", linewidth=1)
            axes.set_title("Measured at the chosen size")
            axes.set_ylabel("increase of NE, % (± 2 standard errors)")


def _draw_rise(axes: "Axes", place: float | str, part: dict[str, Any], number: int, label: str) -> None:
    """Draws a measured increase of NE."""
    height, error = 100 * part["ne_increase"], 200 * part["ne_increase_se"]
    axes.errorbar([place], [height], yerr=[error], fmt="D", color=f"C{number + 1}", capsize=3, label=label)


def _draw_search(axes: "Axes", ratios: Sequence[float], rises: Sequence[float], report: dict[str, Any]) -> None:
    """Draws the predicted, measured and allowed increase of NE, in per cent."""
    budget = 100 * report["max_ne_increase"]
    axes.plot(ratios, rises, label="predicted")
    tried = report["evaluated"]
    heights, errors = [100 * entry["ne_increase"] for entry in tried], [200 * entry["se"] for entry in tried]
    axes.errorbar(
        [report["bytes_before"] / entry["bytes"] for entry in tried],
        heights,
        yerr=errors,
        fmt="o",
        markersize=3,
        color="0.4",
        capsize=2,
        label="tried, validation split ± 2 standard errors",
    )
    axes.axhline(budget, color="#aa0000", linestyle="--", linewidth=1, label=f"budget, {budget:g} %")
    axes.axhline(0, color="0.4", linewidth=0.5)
    axes.set_ylabel("increase of NE over the trained model, %")
    axes.set_title("Increase of NE by size of the tables")
    lowest = min([0.0, *(height - error for height, error in zip(heights, errors, strict=True))])
    axes.set_ylim(max(lowest, -4 * budget) - 0.1 * budget, 4 * budget)


def _ratio_axis(axes: "Axes", ratios: Sequence[float]) -> None:
    """Sets a logarithmic axis of compression ratios with a few integer ticks."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(ratios), max(ratios)
    finest = (1, 1.2, 1.5, 2, 3, 5, 7) if high < 4 * low else (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [step * 10.0**power for power in range(-1, 7) for step in finest]
    axes.set_xscale("log")
    axes.set_xlabel("times smaller than the trained tables")
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if 0.9 * low <= tick <= 1.1 * high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}x")
