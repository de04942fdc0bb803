"""What people see: answers on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

# A file has no width; tables there should not be folded.
_FILE_WIDTH = 160


def make_console(file: TextIO) -> Console:
    """A console on which text is just text: no markup, no colouring of numbers."""
    return Console(
        file=file, highlight=False, markup=False, soft_wrap=True, width=None if file.isatty() else _FILE_WIDTH
    )


output = make_console(sys.stdout)
messages = make_console(sys.stderr)


class BarDisplay:
    """A live bar while the block lasts, where messages go to a terminal; `bar` is None where they do not.

    Args:
        columns: of the bar.
        total: of its only task, `task`.
        shown: False for a process that does not speak.
        fields: of the task.
    """

    def __init__(self, *columns: "ProgressColumn", total: float | None, shown: bool = True, **fields: Any) -> None:
        self.bar: Progress | None = None
        if shown and messages.is_terminal:
            from rich import progress  # not needed to start, nor in a file

            self.bar = progress.Progress(*columns, console=messages)
            self.task = self.bar.add_task("", total=total, **fields)

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar:
            self.bar.stop()


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


def bytes_text(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number_text(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
