"""Parquet files as the columns of a table, a range of rows at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors
from dlrmctl.data.formats.table_schema import TableSchema

MAGIC = b"PAR1"


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet files do."""
    with io_errors(path, "read"), path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_types(path: Path) -> dict[str, pl.DataType]:
    """The columns of a file and their types.

    Raises:
        DataError: if it is cut short or damaged.
    """
    with _parquet_errors(path):
        return dict(pl.scan_parquet(path, glob=False).collect_schema())


def count_rows(path: Path) -> int:
    """The rows of a file.

    Raises:
        DataError: if it is cut short or damaged.
    """
    with _parquet_errors(path):
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())


def read_rows(path: Path, names: Sequence[str], start: int, count: int) -> pl.DataFrame:
    """Some columns of a range of rows; the other pages of the file are not decoded.

    Raises:
        DataError: if the file is damaged.
    """
    with _parquet_errors(path):
        return pl.scan_parquet(path, glob=False).select(names).slice(start, count).collect()


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        with io_errors(path, "read"):
            yield
    except pl.exceptions.PolarsError as error:
        detail = str(error).strip().splitlines()[0][:120]
        raise DataError(f"{path}: the Parquet file is cut short or damaged: {detail}", "write it again") from error


def check_types(path: Path, types: dict[str, pl.DataType], schema: TableSchema, *, labelled: bool) -> None:
    """Whether the columns can be what the schema says.

    Raises:
        DataError: naming the column, its type and the key of the schema.
    """
    if labelled:
        label = types[schema.label]
        if not (_is_number(label) or label in (pl.Boolean, pl.String)):
            raise _wrong(path, schema.label, label, "a label is a number, true or false, or a string")
    for dense in schema.dense:
        if not (_is_number(types[dense.name]) or types[dense.name] in (pl.Boolean, pl.String)):
            raise _wrong(path, dense.name, types[dense.name], "a dense column holds numbers")
    for sparse in schema.sparse:
        found = types[sparse.name]
        inner = found.inner if isinstance(found, pl.List | pl.Array) else found
        if inner is not found and sparse.max_ids == 1:
            raise DataError(
                f"{path}: column {sparse.name!r} holds lists, but {schema.name} says nothing of their length",
                f"say max_ids = ... under [columns.{sparse.name}]",
            )
        if inner is found and sparse.max_ids > 1 and found != pl.String:
            raise _wrong(path, sparse.name, found, f"columns.{sparse.name}.max_ids = {sparse.max_ids} is for lists")
        text = inner == pl.String or isinstance(inner, pl.Categorical | pl.Enum)
        if isinstance(inner, pl.DataType) and inner.is_float() and sparse.type != "integer":
            key = f'type = "integer" under [columns.{sparse.name}] takes those that are whole'
            raise DataError(f"{path}: column {sparse.name!r} is of type {found}, sparse values are not fractions", key)
        whole = isinstance(inner, pl.DataType) and (inner.is_integer() or inner.is_float() or inner == pl.Boolean)
        if not (text or whole):
            raise _wrong(path, sparse.name, found, "a sparse column holds integers or strings, or lists of them")


def _is_number(kind: pl.DataType) -> bool:
    return kind.is_numeric()


def _wrong(path: Path, name: str, kind: pl.DataType, rule: str) -> DataError:
    return DataError(f"{path}: column {name!r} is of type {kind}", rule)
