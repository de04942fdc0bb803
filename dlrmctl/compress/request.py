"""The request for a compression, and checks before the fit that it can be reached.

The number of bytes of each method follows from the shapes of the tables.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dlrmctl.compress.sources import ALL_TABLES, choose_tables
from dlrmctl.console.pictures import check_picture
from dlrmctl.console.text import bytes_text
from dlrmctl.embeddings.compression.fits.methods import Method, default_grid, least_bytes
from dlrmctl.errors import UserError
from dlrmctl.rundir.stored_tables import TableShape, TableSource
from dlrmctl.settings.synonyms import nearest

Goal = Literal["method", "ratio", "budget"]
_SHORT = {"qr": "qr-mult4-int8", "hash": "hash4-int8", "rq": "rq2x256", "pq": "pq4x256"}
_KNOWN = ("fp32", "fp16", "int8", "int4", "int2", "pca", "near-isometric12", "fromax12")
_SMALL_CODEBOOKS = (16, 32, 64, 128)
_WORTH_A_CODEBOOK = 0.95  # share of the bytes below which a smaller codebook is tried
_INT8 = Method.parse("int8")


@dataclass(frozen=True)
class Request:
    """A request with a method, a ratio or a budget; the other two are None.

    Attributes:
        method: name of the method for all tables.
        ratio: bytes before over bytes after, over all tables.
        budget: relative increase of NE, such as 0.001.
        keep_head: fraction of the rows, by weight, that a method keeps at 8 bits.
        tables: comma-separated patterns of the tables to compress.
        min_rows: smaller tables stay float32.
        weights: "auto", "adagrad", "counts" or "uniform".
    """

    method: str | None
    ratio: float | None
    budget: float | None
    keep_head: float
    tables: str
    min_rows: int
    weights: str

    @property
    def goal(self) -> Goal:
        """The one of the three that is not None."""
        return "method" if self.method is not None else "ratio" if self.ratio is not None else "budget"

    def methods(self, rows: int, dim: int) -> list[Method]:
        """The methods to try on a table, always including float32."""
        if self.method is not None:
            return [Method.parse("fp32"), parse_method(self.method, dim, self.keep_head)]
        methods = default_grid(dim)
        for count in (1, 2, 3):
            full = least_bytes(Method.parse(f"rq{count}x256"), rows, dim)
            smaller = [Method.parse(f"rq{count}x{size}") for size in _SMALL_CODEBOOKS]
            # Codes take as many bytes; where they are nearly all bytes, a smaller codebook only loses.
            methods += [method for method in smaller if least_bytes(method, rows, dim) < _WORTH_A_CODEBOOK * full]
        # Nothing larger than rows of 8 bits is ever chosen: their error is below that of any code.
        most = least_bytes(_INT8, rows, dim)
        return [method for method in methods if method.kind == "rows" or least_bytes(method, rows, dim) < most]


@dataclass(frozen=True)
class FineTuneRequest:
    """A request for fine-tuning.

    Attributes:
        data: a prepared store with fresh examples, of which the training split is used.
        steps: number of steps; None for one pass.
        lr_factor: factor of the run's learning rates at the first step.
        mlps: whether to train the dense network.
        codes: whether to train the codes of rows, and not their codebooks alone.
        rounded: whether to compute with rows of few bits as they are stored.
    """

    data: Path | str
    steps: int | None
    lr_factor: float
    mlps: bool
    codes: bool
    rounded: bool


def parse_method(name: str, dim: int, keep_head: float = 0.0) -> Method:
    """Parses a full method name, or a kind with its usual size.

    Raises:
        UserError: if the name is unknown.
    """
    full = f"pca{max(4, dim // 2)}-int4" if name == "pca" else _SHORT.get(name, name)
    full = full.replace("near-isometric", "nile-pro")
    if keep_head and not full.startswith("head"):
        full = f"head{100 * keep_head:g}%+{full}"
    elif keep_head:
        raise UserError(f"--keep-head {100 * keep_head:g}% cannot be used with --method {name}, which has a head")
    try:
        return Method.parse(full)
    except ValueError as problem:
        message, _, examples = str(problem).partition("; examples: ")
        near = nearest(name, (*_KNOWN, *_SHORT, *examples.split(", ")))
        hint = f"did you mean {near!r}?" if near else f"examples: {examples}"
        raise UserError(f"--method: {message}", hint if examples else None) from None


def check_output(out: Path) -> None:
    """Checks that a directory can be written.

    Raises:
        UserError: if it exists, or its parent does not.
    """
    if out.exists():
        raise UserError(f"-o {out} already exists", "choose another output directory, or remove this one")
    if not out.resolve().parent.is_dir():
        raise UserError(f"{out.parent}: no such directory", f"mkdir -p {out.parent}")


def check_plot(path: Path) -> None:
    """Checks that a picture can be written to a path.

    Raises:
        UserError: if it cannot.
    """
    try:
        check_picture(path)
    except UserError as problem:
        raise UserError(f"--plot {problem.message}", problem.hint) from None


def split_tables(source: TableSource, request: Request) -> tuple[list[TableShape], list[TableShape]]:
    """Returns the tables to compress, and those that stay float32.

    Raises:
        UserError: if there are none to compress.
    """
    names = choose_tables(source.tables, request.tables, request.min_rows)
    if not names:
        most = max(table.rows for table in source.tables)
        raise UserError(f"--min-rows {request.min_rows:,}: no table has this many rows", f"the largest has {most:,}")
    chosen = [table for table in source.tables if table.name in names]
    return chosen, [table for table in source.tables if table.name not in names]


def check_reach(source: TableSource, request: Request) -> None:
    """Checks that a request can be reached.

    Raises:
        UserError: if no table is chosen, a method does not fit a table, or no method makes them small enough.
    """
    chosen, kept = split_tables(source, request)
    for table in chosen:
        rank = max(method.rank for method in request.methods(table.rows, table.dim))
        if rank > table.dim:
            raise UserError(
                f"--method {request.method}: {rank} coordinates are more than the {table.dim} columns of {table.name}",
                "use fewer coordinates, or --tables without it",
            )
    if request.ratio is None:
        return
    least = sum(table.num_bytes for table in kept)
    for table in chosen:
        methods = request.methods(table.rows, table.dim)
        least += min(least_bytes(method, table.rows, table.dim) for method in methods)
    best = sum(table.stored_bytes for table in source.tables) / least
    if best < request.ratio:
        raise out_of_reach(request, best, kept)


def out_of_reach(request: Request, best: float, kept: list[TableShape]) -> UserError:
    """The error for a ratio, with the largest one that can be reached."""
    best = math.floor(10 * best) / 10
    hints = [f"--target-ratio {best:.1f}x"] if best > 1 else []
    if kept:
        fixed = bytes_text(sum(table.num_bytes for table in kept))
        ways = ["a lower --min-rows"] if any(table.rows < request.min_rows for table in kept) else []
        ways += ["more --tables"] if request.tables != ALL_TABLES else []
        hints.append(f"{' or '.join(ways)} to compress the {fixed} that stay float32")
    message = f"--target-ratio {request.ratio:g}x cannot be reached: the smallest tables give {best:.1f}x"
    return UserError(message, "; ".join(hints) or None)
