"""Prints answers on standard output, and everything else on standard error."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from dlrmctl.console.table import fitted
from dlrmctl.console.text import printable, wrapped


class Output:
    """Prints to a standard stream, to wherever it leads at the moment: a terminal, a file, a notebook, a test.

    Text is just text: no markup, no colouring of numbers.

    Args:
        stream: "stdout" or "stderr".
    """

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._console: Console | None = None
        self.has_notice = False

    @property
    def console(self) -> Console:
        """Rich's console on the stream."""
        # While a live bar is shown, the stream is a stand-in of rich's that prints above the bar.
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
        """Characters of a line of the terminal; None elsewhere: what is piped does not depend on a terminal."""
        return self.console.width if self.is_terminal else None

    def print(self, text: str, *, label: str = "", style: str = "bold") -> None:
        """Prints a text, broken between words where the terminal ends; control signs are escaped.

        Args:
            label: in front of the text, in its own style.
        """
        end_notice()
        whole = Text(wrapped(label + printable(text), self.width))
        whole.stylize(style, 0, len(label))
        self.console.print(whole)


output = Output("stdout")
messages = Output("stderr")


def notice(text: str) -> None:
    """Shows on a terminal what takes long, until anything else is shown."""
    if messages.is_terminal and not messages.console.is_dumb_terminal:
        end_notice()
        messages.console.file.write(f"{text} ..."[: messages.console.width - 1])
        messages.console.file.flush()
        messages.has_notice = True


def end_notice() -> None:
    """Removes what `notice` shows."""
    if messages.has_notice:
        messages.has_notice = False
        messages.console.file.write("\r\x1b[K")
        messages.console.file.flush()


def show_error(message: str, hint: str | None = None) -> None:
    messages.print(_line(message), label="error: ", style="bold red")
    if hint:
        messages.print(_line(hint), label="hint: ")


def warn(message: str) -> None:
    messages.print(_line(message), label="warning: ", style="bold yellow")


def _line(text: str) -> str:
    """One line that a terminal shows as it is."""
    return printable(" ".join(text.split()))


def say(message: str) -> None:
    messages.print(message)


def print_json(value: Any) -> None:
    """One JSON document on standard output; what is not a number is null."""
    end_notice()
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
        optional: columns that are omitted where the terminal is too narrow, the first of them first.
        to: where it is printed.
    """
    to.print("", label=_line(title))
    cells = [[_cell(cell) for cell in row] for row in rows]
    for line in fitted([_line(column) for column in columns], cells, to.width, optional):
        to.console.print(Text(line))
