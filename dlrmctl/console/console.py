"""Prints answers on standard output, and everything else on standard error."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlrmctl.console.text import printable

# A file has no width; tables there should not be folded.
_FILE_WIDTH = 160


class Output:
    """Prints to a standard stream, to wherever it leads at the moment: a terminal, a file, a notebook, a test.

    Text is just text: no markup, no colouring of numbers.

    Args:
        stream: "stdout" or "stderr".
    """

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """Rich's console on the stream."""
        # While a live bar is shown, the stream is a stand-in of rich's that prints above the bar.
        file = getattr(sys, self._stream)
        file = getattr(file, "rich_proxied_file", file)
        if self._console is None or self._console.file is not file:
            width = None if file.isatty() else _FILE_WIDTH
            self._console = Console(file=file, highlight=False, markup=False, soft_wrap=True, width=width)
        return self._console

    @property
    def is_terminal(self) -> bool:
        return self.console.is_terminal

    def print(self, content: str | Text | Table) -> None:
        """Prints a text, of which control signs are escaped, or what is made of such texts."""
        self.console.print(printable(content) if isinstance(content, str) else content)


output = Output("stdout")
messages = Output("stderr")


def show_error(message: str, hint: str | None = None) -> None:
    messages.print(Text.assemble(("error: ", "bold red"), _line(message)))
    if hint:
        messages.print(Text.assemble(("hint: ", "bold"), _line(hint)))


def warn(message: str) -> None:
    messages.print(Text.assemble(("warning: ", "bold yellow"), _line(message)))


def _line(text: str) -> str:
    """One line that a terminal shows as it is."""
    return printable(" ".join(text.split()))


def say(message: str) -> None:
    messages.print(message)


def print_json(value: Any) -> None:
    """One JSON document on standard output; what is not a number is null."""
    sys.stdout.write(json.dumps(finite(value), indent=2, default=str) + "\n")
    sys.stdout.flush()


def finite(value: Any) -> Any:
    """The value for JSON: null for numbers that are not finite, lists for tuples, text for keys."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value


def _cell(text: str) -> str:
    """A cell of one line; spaces stay, since they align."""
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], to: Output = output) -> None:
    """A table, on standard output unless `to` is given: text in the first column, numbers in the others."""
    table = Table(title=_line(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(_line(column), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    to.print(table)
