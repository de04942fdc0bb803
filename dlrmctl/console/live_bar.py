"""The live progress bar of a terminal, with a line of text below it."""

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text


class LiveBar(Progress):
    """A full-width bar above a line of text; both are removed at the end.

    Args:
        console: console of the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._about = ""
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[share]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self.add_task("", total=None, share="", left="", visible=False)
        self._undrawn = True

    def show(self, what: str, done: int, total: int, left: str, about: str) -> None:
        self._about = about
        share = f"{100 * done / total:3.0f} %" if total else ""
        self.update(
            self._task, description=what, completed=done, total=total or None, share=share, left=left, visible=True
        )
        if self._undrawn:  # a short phase may end before the next redraw
            self._undrawn = False
            self.refresh()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self._about:
            yield Text(self._about, no_wrap=True, overflow="ellipsis")
