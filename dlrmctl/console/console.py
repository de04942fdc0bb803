"""What people see: answers on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

# A file has no width; tables there should not be folded.
_FILE_WIDTH = 160


def make_console(file: TextIO) -> Console:
    """A console on which text is just text: no markup, no colouring of numbers."""
    return Console(
        file=file, highlight=False, markup=False, soft_wrap=True, width=None if file.isatty() else _FILE_WIDTH
    )


output = make_console(sys.stdout)
messages = make_console(sys.stderr)


def show_error(message: str, hint: str | None = None) -> None:
    messages.print(Text.assemble(("error: ", "bold red"), " ".join(message.split())))
    if hint:
        messages.print(Text.assemble(("hint: ", "bold"), hint))


def warn(message: str) -> None:
    messages.print(Text.assemble(("warning: ", "bold yellow"), message))


def say(message: str) -> None:
    messages.print(message)


def print_json(value: Any) -> None:
    """One JSON document on standard output; what is not a number is null."""
    sys.stdout.write(json.dumps(finite(value), indent=2, default=str) + "\n")
    sys.stdout.flush()


def finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None
) -> None:
    """A table, on standard output unless told otherwise: text in the first column, numbers in the others."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    (console or output).print(table)
