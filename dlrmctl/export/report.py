"""What an export did, for people, and how its file is called."""

from collections.abc import Iterator, Mapping
from typing import Any

from dlrmctl.console import bytes_text, number_text, output, print_table


def show_export(result: Mapping[str, Any]) -> None:
    """The file beside its checkpoint, on standard output."""
    checks = result["checks"]
    rows = [
        (f"tables, {result['precision']}", bytes_text(result["table_bytes_before"]), bytes_text(result["table_bytes"])),
        ("NE", number_text(checks["ne_checkpoint"], 6), number_text(checks["ne_export"], 6)),
    ]
    if checks["ne_rise"] is not None:
        rows.append(("rise of NE", "", f"{100 * checks['ne_rise']:+.4f} ±{100 * checks['ne_rise_se']:.4f} %"))
    rows.append(("largest difference of a probability", "", f"{checks['largest_difference']:.1e}"))
    title = f"{result['out']}: {bytes_text(result['bytes'])}, scored {checks['rows']:,} validation rows by torch alone"
    print_table(title, ("", result["checkpoint"], "file"), rows)
    for line in call_lines(result["inputs"], result["out"]):
        output.print(line)


def call_lines(inputs: Mapping[str, Any], file: str) -> Iterator[str]:
    """How the file is called, in Python."""
    yield f"torch.export.load({file!r}).module()({', '.join(inputs)}) gives probabilities, float32 [batch]"
    for name in ("dense", "ids"):
        yield f"  {name}: {inputs[name]['type']} [{', '.join(map(str, inputs[name]['shape']))}]"
    if "lists" in inputs:
        one, *more = inputs["lists"]
        others = f" and {len(more)} more" if more else ""
        yield f"  lists: {{{one!r}: int64 [batch, longest]}}{others}; shorter lists are filled up with -1"
