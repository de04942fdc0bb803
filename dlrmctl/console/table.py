"""Layout of tables in a given width, without breaking or cutting numbers, names or words."""

from collections.abc import Sequence
from textwrap import wrap

from rich.cells import cell_len

_GAP = "  "
Rows = Sequence[Sequence[str]]


def fitted(columns: Sequence[str], rows: Rows, width: int | None, optional: Sequence[str] = ()) -> list[str]:
    """Returns the lines of a table: headings, then rows. The first column is left-aligned, the others right-aligned.

    If the table is too wide, its headings are wrapped; then optional columns are omitted, which its last line says;
    then names, and at last all values, are put on lines of their own.

    Args:
        columns, rows: strings of one line.
        width: in characters; None for no limit.
        optional: headings of columns that may be omitted, in this order.
    """
    if width is None or _width(_widths(columns, rows)) <= width:
        return _grid([[column] for column in columns], rows)
    for count in range(len(optional) + 1):
        omitted = optional[:count]
        kept = [index for index, column in enumerate(columns) if column not in omitted]
        if lines := _grid_within(columns, rows, kept, width):
            return lines + _note(omitted, width)
    return _named_above(columns, rows, width) or _one_value_a_line(columns, rows)


def _note(omitted: Sequence[str], width: int) -> list[str]:
    text = f"omitted to fit the terminal: {', '.join(omitted)}"
    return wrap(text, width, break_long_words=False, break_on_hyphens=False) if omitted else []


def _widths(columns: Sequence[str], rows: Rows) -> list[int]:
    return [max(cell_len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _grid_within(columns: Sequence[str], rows: Rows, kept: Sequence[int], width: int) -> list[str] | None:
    """A table of the kept columns with wrapped headings; None if it is too wide."""
    heads = [columns[index] for index in kept]
    cells = [[row[index] for index in kept] for row in rows]
    words = [
        max(head.split(), key=len, default="") for head in heads
    ]  # a heading is at least as wide as its longest word
    widths = _widths(words, cells)
    if _width(widths) > width:
        return None
    broken = [
        wrap(head, max(room, 1), break_long_words=False, break_on_hyphens=False) or [""]
        for head, room in zip(heads, widths, strict=True)
    ]
    return _grid(broken, cells)


def _grid(heads: Sequence[Sequence[str]], rows: Rows) -> list[str]:
    """Rows below headings of one or more lines, which are aligned at the bottom."""
    height = max(map(len, heads))
    padded = [[""] * (height - len(head)) + list(head) for head in heads]
    lines = [*zip(*padded, strict=True), *rows]
    widths = _widths(lines[0], lines[1:])
    return [_line(cells, widths) for cells in lines]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    room = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
    first, *others = zip(cells, room, strict=True)
    return _GAP.join(["".join(first), *(space + cell for cell, space in others)]).rstrip()


def _named_above(columns: Sequence[str], rows: Rows, width: int) -> list[str] | None:
    """Names on lines of their own above the rest of their row; None if the rest is too wide."""
    rests = [["", *row[1:]] for row in rows]
    grid = _grid_within(["", *columns[1:]], rests, range(len(columns)), width)
    if grid is None:
        return None
    lines = grid[: len(grid) - len(rows)]
    for row, rest in zip(rows, grid[len(grid) - len(rows) :], strict=True):
        lines += [row[0], rest]
    return lines


def _one_value_a_line(columns: Sequence[str], rows: Rows) -> list[str]:
    room = max(map(cell_len, columns[1:]), default=0)
    lines = []
    for row in rows:
        labels = (column + " " * (room - cell_len(column)) for column in columns[1:])
        lines += [row[0], *(_GAP.join(["", *pair]) for pair in zip(labels, row[1:], strict=True))]
    return lines
