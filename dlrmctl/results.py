"""Metrics for people: beside the best that is possible, as a table, or in one line."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.reader import Reader
from data.source import Source
from dlrmctl.build import Model
from dlrmctl.console import bytes_text, messages, number_text, print_table
from dlrmctl.datasets import optimum
from dlrmctl.metrics import Metrics
from dlrmctl.ranks import Ranks
from dlrmctl.tables import summary, unsorted_heads
from embeddings.placement import Placement


def with_optimum(metrics: dict[str, Any], source: Source, split: str) -> dict[str, Any]:
    """The metrics beside what the best possible model scores, where that is known.

    `gap_closed` is 0 for a constant prediction and 1 for the best one.
    """
    bayes = optimum(source, split)
    if bayes is None or metrics["ne"] is None:
        return metrics
    return metrics | {
        "bayes_log_loss": bayes.log_loss,
        "bayes_ne": bayes.ne,
        "bayes_auc": bayes.auc,
        "gap_closed": (1 - metrics["ne"]) / (1 - bayes.ne),
    }


def table_of(splits: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for people: a metric per row, standard errors beside their values."""
    lines = [
        ("log loss", "log_loss", "log_loss_se"),
        ("NE", "ne", "ne_se"),
        ("AUC", "auc", "auc_se"),
        ("calibration", "calibration", None),
        ("accuracy", "accuracy", None),
        ("Bayes NE", "bayes_ne", None),
    ]
    rows = [["examples", *(f"{m['examples']:,}" for m in splits.values())]]
    for title, name, error in lines:
        if any(name in m for m in splits.values()):
            rows.append([title, *(_with_error(m.get(name), m.get(error) if error else None) for m in splits.values())])
    if any("gap_closed" in m for m in splits.values()):
        rows.append(["gap closed", *(f"{100 * m['gap_closed']:.1f} %" for m in splits.values())])
    return ["", *splits], rows


def show_results(results: dict[str, Any]) -> None:
    """The results as a table on standard output."""
    print_table(
        f"best weights (step {results['best_step']} of {results['steps']}), {results['run']}",
        *table_of({split: results[split] for split in ("validation", "test")}),
    )


def introduction(reader: Reader, model: Model, ranks: Ranks) -> list[str]:
    """What is about to be trained, on what, and what it needs."""
    plan, most = model.sharded.plan, max(model.sharded.bytes_per_rank)
    tables = model.sharded.embeddings.features
    return [
        f"{reader.num_examples:,} training examples, {reader.num_batches:,} steps of {reader.batch_size:,} per epoch, "
        f"on {ranks.world_size} x {ranks.device.type}",
        f"{len(plan)} tables, {sum(table.rows for table in plan):,} rows, "
        f"with their optimizer state at most {bytes_text(most)} per rank",
        summary(tables, model.sharded.embeddings.dim),
        *unsorted_heads(tables, reader.source),
    ]


def show_plan(plan: Sequence[Placement]) -> None:
    """Where every table lives, among the messages: the answer of the command is something else."""
    print_table(
        "plan",
        ["table", "rows", "dim", "bytes", "sharding", "ranks"],
        [
            [t.table, f"{t.rows:,}", str(t.dim), bytes_text(t.bytes), t.sharding, ",".join(map(str, t.ranks))]
            for t in plan
        ],
        console=messages,
    )


def short_text(metrics: Metrics) -> str:
    parts = {"log loss": metrics.log_loss, "ne": metrics.ne, "auc": metrics.auc, "calibration": metrics.calibration}
    return "  ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in parts.items())


def _with_error(value: float | None, error: float | None) -> str:
    return number_text(value) if value is None or error is None else f"{value:.4f} ±{error:.4f}"
