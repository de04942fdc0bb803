"""Prints results to standard output, and messages to standard error."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from dlrmctl.console.table import fitted
from dlrmctl.console.text import printable, short_message, wrapped


class Output:
    """Prints to a standard stream, which may be a terminal, a file or a notebook and may be replaced at any time.

    Strings are printed literally: no markup and no highlighting.

    Args:
        stream: "stdout" or "stderr".
    """

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._console: Console | None = None
        self.has_notice = False

    @property
    def console(self) -> Console:
        """A Rich console on the stream."""
        # While a live bar is shown, Rich replaces the stream by one that prints above the bar.
        file = getattr(sys, self._stream)
        file = getattr(file, "rich_proxied_file", file)
        if self._console is None or self._console.file is not file:
            self._console = Console(file=file, highlight=False, markup=False, soft_wrap=True)
        return self._console

    @property
    def is_terminal(self) -> bool:
        return self.console.is_terminal

    @property
    def width(self) -> int | None:
        """Width of the terminal in characters; None if the stream is not a terminal."""
        return self.console.width if self.is_terminal else None

    def print(self, text: str, *, label: str = "", style: str = "bold") -> None:
        """Prints a string, wrapped at the width of the terminal; control characters are escaped.

        Args:
            label: printed before the string, in `style`.
        """
        end_notice()
        whole = Text(wrapped(label + printable(text), self.width))
        whole.stylize(style, 0, len(label))
        self.console.print(whole)


output = Output("stdout")
messages = Output("stderr")


def notice(text: str) -> None:
    """Shows a message on a terminal until something else is printed."""
    if messages.is_terminal and not messages.console.is_dumb_terminal:
        end_notice()
        messages.console.file.write(f"{text} ..."[: messages.console.width - 1])
        messages.console.file.flush()
        messages.has_notice = True


def end_notice() -> None:
    """Removes the message of `notice`."""
    if messages.has_notice:
        messages.has_notice = False
        messages.console.file.write("\r\x1b[K")
        messages.console.file.flush()


def show_error(message: str, hint: str | None = None) -> None:
    messages.print(short_message(_line(message)), label="error: ", style="bold red")
    if hint:
        messages.print(short_message(_line(hint)), label="hint: ")


def warn(message: str) -> None:
    messages.print(short_message(_line(message)), label="warning: ", style="bold yellow")


def _line(text: str) -> str:
    """Joins a message to one line."""
    return printable(" ".join(text.split()))


def say(message: str) -> None:
    messages.print(message)


def print_json(value: Any) -> None:
    """Prints a JSON document to standard output; NaN and infinity become null."""
    end_notice()
    sys.stdout.write(json.dumps(finite(value), indent=2, default=str) + "\n")
    sys.stdout.flush()


def finite(value: Any) -> Any:
    """Converts a value for JSON: non-finite numbers to null, tuples to lists, keys to strings."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value


def _cell(text: str) -> str:
    """A cell of one line; spaces are kept for alignment."""
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    optional: Sequence[str] = (),
    to: Output = output,
) -> None:
    """Prints a table: text in the first column, numbers in the others.

    Args:
        optional: columns to omit if the terminal is too narrow, in this order.
        to: output to print to.
    """
    to.print("", label=_line(title))
    cells = [[_cell(cell) for cell in row] for row in rows]
    for line in fitted([_line(column) for column in columns], cells, to.width, optional):
        to.console.print(Text(line))
