"""What a compression can reach, said before anything is fitted: bytes follow from the shapes of the tables."""

import math

from dlrmctl.compress.request import Request
from dlrmctl.compress.sources import ALL_TABLES, TableShape, TableSource, choose_tables
from dlrmctl.console import bytes_text
from dlrmctl.errors import UserError
from embeddings.compression.sizes import least_bytes


def split_tables(source: TableSource, request: Request) -> tuple[list[TableShape], list[TableShape]]:
    """The tables to compress, and those that stay float32.

    Raises:
        UserError: if there are none to compress.
    """
    names = choose_tables(source.tables, request.tables, request.min_rows)
    if not names:
        most = max(table.rows for table in source.tables)
        raise UserError(f"--min-rows {request.min_rows:,}: no table has as many rows", f"the largest has {most:,}")
    chosen = [table for table in source.tables if table.name in names]
    return chosen, [table for table in source.tables if table.name not in names]


def check_reach(source: TableSource, request: Request) -> None:
    """
    Raises:
        UserError: if no table is chosen, a method does not fit one, or none makes them as small as the request says.
    """
    chosen, kept = split_tables(source, request)
    for table in chosen:
        rank = max(method.rank for method in request.methods(table.rows, table.dim))
        if rank > table.dim:
            raise UserError(
                f"--method {request.method}: {rank} coordinates are more than the {table.dim} columns of {table.name}",
                "fewer, or --tables without it",
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
    """The error, with the ratio that can be reached."""
    best = math.floor(10 * best) / 10
    hints = [f"--target-ratio {best:.1f}x"] if best > 1 else []
    if kept:
        fixed = bytes_text(sum(table.num_bytes for table in kept))
        ways = ["a lower --min-rows"] if any(table.rows < request.min_rows for table in kept) else []
        ways += ["more --tables"] if request.tables != ALL_TABLES else []
        hints.append(f"{' or '.join(ways)} to compress what stays float32 now, {fixed}")
    message = f"--target-ratio {request.ratio:g}x is out of reach: the smallest tables give {best:.1f}x"
    return UserError(message, "; ".join(hints) or None)
