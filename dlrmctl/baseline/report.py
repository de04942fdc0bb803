"""Prints the results of a baseline; does not load torch."""

from collections.abc import Mapping
from typing import Any

from dlrmctl.console.console import output, print_table
from dlrmctl.console.text import counted
from dlrmctl.scoring.results import table_of


def show_baseline(results: Mapping[str, Any]) -> None:
    """Prints metrics of all splits, and how they came about."""
    print_table(
        f"logistic regression, L2 penalty {results['l2']:.4g}, {results['run']}",
        *table_of({split: results[split] for split in ("train", "validation", "test")}),
    )
    fits, seconds = len(results["path"]), results["seconds"]
    output.print(
        f"{results['features']:,} features, solver {results['solver']}: {counted(fits, 'fit')} in "
        f"{results['passes']:.1f} passes, {seconds['fitting']:.1f} s, and {seconds['reading']:.1f} s to read the data"
    )
