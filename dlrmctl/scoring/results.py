"""Metrics as tables. Does not load torch: the launcher of ranks prints their results."""

from collections.abc import Mapping
from typing import Any

from dlrmctl.console.console import print_table, say
from dlrmctl.console.text import METRICS, bytes_text, fixed, number_text, with_error


def table_of(splits: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table: one metric per row, values with their standard errors."""
    lines = [(title, name) for name, title in METRICS.items()] + [
        ("baseline NE", "baseline_ne"),
        ("Bayes NE", "bayes_ne"),
    ]
    rows = [["examples", *(f"{m['examples']:,}" for m in splits.values())]]
    if any("weight" in m for m in splits.values()):
        rows.append(["weight", *(f"{m['weight']:,.0f}" for m in splits.values())])
    for title, name in lines:
        if any(name in m for m in splits.values()):
            error = f"{name}_se"
            cells = [with_error(m[name], m[error]) if error in m else number_text(m.get(name)) for m in splits.values()]
            rows.append([title, *cells])
    if any("gap_closed" in m for m in splits.values()):
        rows.append(["gap closed", *(f"{fixed(100 * m['gap_closed'], '.1f')} %" for m in splits.values())])
    return ["", *splits], rows


def show_results(results: dict[str, Any]) -> None:
    """Prints the results as a table."""
    print_table(
        f"best weights (step {results['best_step']} of {results['steps']}), {results['run']}",
        *table_of({split: results[split] for split in ("validation", "test")}),
    )
    for part, exchange in results.get("exchange", {}).items():
        say(
            f"exchange of {'embeddings' if part == 'tables' else 'the gradients of the MLPs'}, {exchange['codec']}: "
            f"{bytes_text(exchange['sent_bytes'])} instead of {bytes_text(exchange['raw_bytes'])}, "
            f"{exchange['ratio']:.2f}x fewer"
            + (f"; one number of {exchange['numbers_per_number_sent']:.1f} was sent" if part == "dense" else "")
        )
    if results.get("advice"):
        say(f"advice: {results['advice']}")
