"""All ways to store all chosen tables, several tables at a time as far as memory allows."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Condition

import torch

from dlrmctl.compress.options import Counts, Kept, TableOptions, fit_options
from dlrmctl.compress.progress import Telling
from dlrmctl.compress.request import Request
from dlrmctl.compress.sources import TableShape, TableSource
from dlrmctl.console import warn

SMALL_BYTES = 32 << 20  # that tables at work, and those kept or waiting beside them, may take whatever the largest is


def fit_all(
    source: TableSource, request: Request, shapes: Sequence[TableShape], counts: Counts, *, kept: Kept, tell: Telling
) -> list[TableOptions]:
    """The options of these tables, in their order; a table per core at a time.

    Tables that are fitted at the same time are together no larger than the largest, so that memory is its matter alone.

    Raises:
        UserError: see `fit_options`.
    """
    done = 0
    turns = _Turns(max(SMALL_BYTES, *(shape.num_bytes for shape in shapes)))

    def fit(shape: TableShape) -> TableOptions:
        nonlocal done
        context = f"{shape.name} ({shape.rows:,} x {shape.dim})"
        with turns.take(shape.num_bytes):
            found = fit_options(
                source,
                shape.name,
                request.methods(shape.rows, shape.dim),
                weights=request.weights,
                counts=counts,
                progress=partial(tell.rows, context),
                kept=kept,
                must_fit=request.goal == "method",
            )
        done += 1
        ways = f"{len(found.fitted)} ways" if request.goal != "method" else found.fitted[-1].method
        tell(f"fitted {done} of {len(shapes)}: {context}, {ways}")
        return found

    # Large tables first, so that the last one to end is small. Their products are too small for several threads.
    order = sorted(shapes, key=lambda shape: -shape.num_bytes)
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1)) as pool:
        by_name = {table.name: table for table in pool.map(fit, order)}
    tables = [by_name[shape.name] for shape in shapes]
    _warn(request, tables)
    return tables


def _warn(request: Request, tables: Sequence[TableOptions]) -> None:
    for table in tables:
        if request.goal == "method" and len(table.fitted) == 1:
            name = request.methods(table.rows, table.dim)[-1].name
            warn(f"{table.name}, {table.rows:,} x {table.dim}: {name} is not smaller; it stays float32")
    if any(table.weights_kind == "uniform" for table in tables) and request.weights != "uniform":
        warn(
            "no AdaGrad state and no counts: every row weighs the same, which costs several times as much NE "
            "at the same size"
        )


class _Turns:
    """Lets work begin while everything under way is no larger than a bound."""

    def __init__(self, most_bytes: int) -> None:
        self._left, self._condition = most_bytes, Condition()

    @contextmanager
    def take(self, num_bytes: int) -> Iterator[None]:
        """Waits until so many bytes, at most the bound, are left."""
        with self._condition:
            self._condition.wait_for(lambda: num_bytes <= self._left)
            self._left -= num_bytes
        try:
            yield
        finally:
            with self._condition:
                self._left += num_bytes
                self._condition.notify_all()
