"""The report of a compression, what it saves and costs: plain values, tables, and a picture of the frontier."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.compress.compression import Compression
from dlrmctl.compress.finetune import show_finetuning
from dlrmctl.compress.trial import Trial
from dlrmctl.console.console import output, print_table
from dlrmctl.console.pictures import picture
from dlrmctl.console.text import bytes_text, number_text, with_error

_DRAWN_POINTS = 400


def make_report(compression: Compression, trials: dict[str, Trial]) -> dict[str, Any]:
    """Gathers the report as plain values.

    Args:
        trials: by name of the split; the measured differences are given for each.
    """
    search = compression.search
    stored = {shape.name: shape.stored_bytes for shape in compression.source.tables}
    tables: list[dict[str, Any]] = []
    for number, (table, index) in enumerate(zip(compression.tables, compression.choice.indices, strict=True)):
        fitted = table.fitted[index]
        entry: dict[str, Any] = {
            "name": table.name,
            "rows": table.rows,
            "dim": table.dim,
            "bytes_before": stored[table.name],
            "bytes_after": fitted.num_bytes,
            "method": fitted.method,
            "weights": table.weights_kind,
            **asdict(fitted.quality),
        }
        if fitted.certificate is not None:
            entry["isometry"] = fitted.certificate
        if search is not None:
            entry["predicted_ne_increase"] = search.constants[number] * fitted.proxy
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
        report["predicted_ne_increase"] = compression.joint.predicted
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
        explain: also what each table was calibrated by, and every choice that was evaluated.
    """
    size = f"{bytes_text(report['bytes_before'])} of tables become {bytes_text(report['bytes_after'])}"
    written = f"{out}: " if out is not None else "nothing written: "
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
    print_table("tables", columns, [_row(entry, predicts) for entry in report["tables"]])
    if any("isometry" in entry for entry in report["tables"]):
        _show_maps(report)
    if explain and "evaluated" in report:
        _explain(report)


def _split_text(split: str, part: dict[str, Any]) -> str:
    title, found = ("NE", part["ne"]) if "ne" in part else ("log loss", part["log_loss"])
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
    """A predicted rise of NE, which is never below 0, and 0 for the trained table alone."""
    return "<0.0001 %" if 0 < rise < 1e-6 else f"{100 * rise:+.4f} %"


def _show_maps(report: dict[str, Any]) -> None:
    """Prints what near-isometric maps keep of distances and neighbours, beside other maps of the same rank."""
    rows = []
    for entry in report["tables"]:
        found = entry.get("isometry", {"maps": []})
        for number, figures in enumerate(found["maps"]):
            kept = [figures["delta"], figures["recall"], figures["held_out_delta"], figures["held_out_recall"]]
            stored = number_text(found["stored_delta"] if number == 0 else None)
            rows.append([entry["name"] if number == 0 else "", figures["name"], *map(number_text, kept), stored])
    print_table(
        "worst relative error of a squared distance, and share of the 10 nearest rows that stay nearest",
        ["", "map", "error", "nearest", "error, other rows", "nearest, other rows", "error as stored"],
        rows,
    )


def _rise(measured: dict[str, Any]) -> str:
    return f"{with_error(measured['ne_increase'], measured['se'], '+.4f', scale=100)} %"


def _explain(report: dict[str, Any]) -> None:
    print_table(
        "each table alone: the evaluation that calibrates the prediction",
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
        f"all tables together, budget {100 * report['max_ne_increase']:g} %",
        ["", "bytes", "ratio", "predicted", "measured"],
        [
            [
                str(number + 1),
                bytes_text(tried["bytes"]),
                f"{report['bytes_before'] / tried['bytes']:.1f}",
                _predicted(tried["predicted_ne_increase"]),
                _rise(tried),
            ]
            for number, tried in enumerate(report["evaluated"])
        ],
    )


def draw_frontier(compression: Compression, report: dict[str, Any], out: Path) -> None:
    """Writes the picture: ratio against the rise of NE, predicted as a line, measured as points."""
    fixed = sum(shape.num_bytes for shape in compression.kept)
    frontier = compression.frontier
    shown = np.unique(np.linspace(0, len(frontier.num_bytes) - 1, _DRAWN_POINTS).astype(int))
    ratios = compression.bytes_before / (frontier.num_bytes[shown] + fixed)
    with picture(out) as figure:
        axes = figure.subplots()
        if compression.search is not None:
            axes.plot(ratios, 100 * frontier.errors[shown], label="predicted")
            tried = report["evaluated"]
            axes.errorbar(
                [report["bytes_before"] / entry["bytes"] for entry in tried],
                [100 * entry["ne_increase"] for entry in tried],
                yerr=[200 * entry["se"] for entry in tried],
                fmt="o",
                markersize=3,
                color="grey",
                label="validation, two standard errors",
            )
            axes.axhline(100 * report["max_ne_increase"], color="red", linestyle=":", label="budget")
            axes.set_ylabel("rise of NE, %")
            axes.set_ylim(top=4 * 100 * report["max_ne_increase"], bottom=-100 * report["max_ne_increase"])
        else:
            axes.plot(ratios, frontier.errors[shown], label="weighted error")
            axes.set_ylabel("weighted error")
            axes.set_yscale("log")
        if "test" in report and "ne_increase" in report["test"]:
            part = report["test"]
            height, error = 100 * part["ne_increase"], 200 * part["ne_increase_se"]
            if compression.search is not None:
                axes.errorbar([report["ratio"]], [height], yerr=[error], fmt="*", markersize=10, label="chosen, test")
        axes.axvline(report["ratio"], color="black", linewidth=0.5)
        axes.set_xlabel("times smaller")
        axes.set_xscale("log")
        axes.legend(frameon=False)
