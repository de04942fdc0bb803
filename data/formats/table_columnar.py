"""Reads Parquet and Arrow IPC (Feather) files as columns, a range of rows at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors
from dlrmctl.data.formats.table_schema import BY_TYPE, TableSchema
from dlrmctl.data.remote.copies import local_copy
from dlrmctl.data.remote.files import RemoteFile
from dlrmctl.data.times import doubt_of, is_moment

MAGICS = {"parquet": b"PAR1", "ipc": b"ARROW1"}
_NAMES = {"parquet": "Parquet", "ipc": "Arrow"}
_LOOKED_AT = 1000  # rows of a column of times without a unit
_STREAM, _FEATHER_1 = b"\xff\xff\xff\xff", b"FEA1"


def columnar_format(path: Path | RemoteFile, head: bytes) -> str | None:
    """Returns "parquet" or "ipc" for a file that begins with `head`; None for any other.

    Raises:
        DataError: if it is an unsupported relative of them.
    """
    if head.startswith((_STREAM, _FEATHER_1)):
        what = "an Arrow stream" if head.startswith(_STREAM) else "a Feather file of version 1"
        raise DataError(f"{path}: {what}, expected an Arrow file", "write it as Arrow IPC file (Feather version 2)")
    return next((format for format, magic in MAGICS.items() if head.startswith(magic)), None)


def read_types(path: Path | RemoteFile, format: str) -> dict[str, pl.DataType]:
    """Returns the columns of a file and their types.

    Raises:
        DataError: if it is cut short or damaged.
    """
    with _damage(path, format), local_copy(path, whole=False) as file:
        return dict(_scan(file, format).collect_schema())


def count_rows(path: Path | RemoteFile, format: str) -> int:
    """Returns the number of rows of a file.

    Raises:
        DataError: if it is cut short or damaged.
    """
    with _damage(path, format), local_copy(path, whole=format == "ipc") as file:
        return int(_scan(file, format).select(pl.len()).collect().item())


def read_rows(path: Path | RemoteFile, format: str, names: Sequence[str], start: int, count: int) -> pl.DataFrame:
    """Reads some columns of a range of rows; other pages of the file are not decoded.

    Raises:
        DataError: if the file is damaged.
    """
    with _damage(path, format), local_copy(path, whole=True) as file:
        return _scan(file, format).select(names).slice(start, count).collect()


def _scan(path: Path, format: str) -> pl.LazyFrame:
    scan = pl.scan_parquet if format == "parquet" else pl.scan_ipc
    return scan(path, glob=False, hive_partitioning=False)


@contextmanager
def _damage(path: Path | RemoteFile, format: str) -> Iterator[None]:
    try:
        with io_errors(path, "read"):
            yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        detail = (str(error).strip().splitlines() or ["nothing is known of where"])[0][:120]
        name = _NAMES[format]
        raise DataError(f"{path}: the {name} file is cut short or damaged: {detail}", "write it again") from error


def check_types(
    path: Path | RemoteFile,
    types: dict[str, pl.DataType],
    schema: TableSchema,
    *,
    labelled: bool,
    format: str | None = None,
) -> None:
    """Checks that the types of the columns fit the schema.

    Args:
        path: of the file, for messages.
        types: of its columns.
        schema: of the table.
        labelled: whether there is a label.
        format: of the file; None if the rows are in no file.

    Raises:
        DataError: naming the column, its type and the key of the schema.
    """
    if labelled and not (_is_number(types[schema.label]) or _is_text(types[schema.label])):
        raise _wrong(path, schema.label, types[schema.label], "a label is a number, true or false, or a string")
    weight, group = (schema.weight, schema.group) if labelled else (None, None)
    if weight is not None and not (_is_number(types[weight]) or _is_text(types[weight])):
        raise _wrong(path, weight, types[weight], "weights are numbers")
    if group is not None and types[group].is_nested():
        raise _wrong(path, group, types[group], "groups are single numbers, strings or dates")
    for dense in schema.dense:
        if dense.since is not None:
            for name in dense.sources:
                _check_times(path, name, types[name], schema, format)
            continue
        found = types[dense.sources[0]]
        if not (_is_number(found) or _is_text(found)):
            rule = "dense values are numbers; for times, see since and parts" if is_moment(found) else None
            raise _wrong(path, dense.sources[0], found, rule or "dense values are numbers")
    for sparse in schema.sparse:
        if sparse.cross is not None:
            continue
        found = types[sparse.source]
        if sparse.part is not None:
            _check_times(path, sparse.source, found, schema, format)
            continue
        if sparse.buckets is not None:
            if not (_is_number(found) or _is_text(found)):
                raise _wrong(path, sparse.source, found, "values of buckets are numbers")
            continue
        inner = found.inner if isinstance(found, pl.List | pl.Array) else found
        assert isinstance(inner, pl.DataType)
        if inner is not found and sparse.max_ids == 1:
            raise DataError(
                f"{path}: column {sparse.source!r} has lists, but {schema.name} has no length for them",
                f"set max_ids = ... under [columns.{sparse.name}]",
            )
        if inner is found and sparse.max_ids > 1 and found not in (pl.String, pl.Null):
            raise _wrong(path, sparse.source, found, f"columns.{sparse.name}.max_ids = {sparse.max_ids} is for lists")
        if not (_is_number(inner) or _is_text(inner) or inner in (pl.Date, pl.Datetime, pl.Time)):
            raise _wrong(path, sparse.source, found, "sparse values are numbers, strings or dates, or lists of them")
        if sparse.weights is not None:
            _check_weights(path, sparse.weights, types[sparse.weights])
        if inner.is_float() and sparse.type != "integer" and schema.values == BY_TYPE:
            key = f'type = "integer" under [columns.{sparse.name}] accepts whole numbers'
            raise DataError(
                f"{path}: column {sparse.source!r} is of type {found}, sparse values are not fractions", key
            )


def _check_weights(path: Path | RemoteFile, name: str, found: pl.DataType) -> None:
    inner = found.inner if isinstance(found, pl.List | pl.Array) else None
    numbers = isinstance(inner, pl.DataType) and (_is_number(inner) or _is_text(inner))
    if not numbers and found not in (pl.String, pl.Null):
        raise _wrong(path, name, found, "the weights of a list are a list of numbers")


def check_key_type(path: Path | RemoteFile, name: str, kind: pl.DataType, by: str) -> None:
    """Checks the type of the column of a split.

    Args:
        by: "time" or "group".

    Raises:
        DataError: naming the column and its type.
    """
    if by == "group":
        if not (_is_number(kind) or _is_text(kind) or is_moment(kind) or kind == pl.Time):
            raise _wrong(path, name, kind, "rows are split by single numbers, strings or dates")
    elif not (kind.is_numeric() or _is_text(kind) or is_moment(kind)):
        raise _wrong(path, name, kind, "times are dates, dates with times, strings or numbers")


def check_texts(path: Path | RemoteFile, types: dict[str, pl.DataType], schema: TableSchema) -> None:
    """Checks that a model whose data was prepared by an earlier version knows the values by their type.

    Raises:
        DataError: naming a column that has strings in its training data and numbers here.
    """
    for sparse in schema.sparse if schema.values == BY_TYPE else ():
        found = types[sparse.name]
        inner = found.inner if isinstance(found, pl.List | pl.Array) else found
        assert isinstance(inner, pl.DataType)
        if sparse.type is None and not _is_text(inner):
            raise DataError(
                f"{path}: column {sparse.name!r} is of type {found}, but the model knows its values as texts: its "
                "data was prepared by an earlier version",
                "prepare it again and train on that, or give the rows as text",
            )


def _check_times(
    path: Path | RemoteFile, name: str, kind: pl.DataType, schema: TableSchema, format: str | None
) -> None:
    if is_moment(kind) or _is_text(kind) or (kind.is_numeric() and schema.time(name).epoch is not None):
        return
    doubt = None
    if format is not None and kind.is_numeric():
        doubt = doubt_of(read_rows(path, format, [name], 0, _LOOKED_AT)[name], None)
    unit, such_as = (doubt.unit, f" such as {doubt.shown}") if doubt else ("seconds", "")
    key = f"epoch = '{unit}' under [columns.{name}]"
    rule = f"times are dates, dates with times, or strings; for numbers{such_as}, set {key}"
    raise _wrong(path, name, kind, rule)


def _is_number(kind: pl.DataType) -> bool:
    return kind.is_numeric() or kind == pl.Boolean


def _is_text(kind: pl.DataType) -> bool:
    return kind in (pl.String, pl.Null) or isinstance(kind, pl.Categorical | pl.Enum)


def _wrong(path: Path | RemoteFile, name: str, kind: pl.DataType, rule: str) -> DataError:
    return DataError(f"{path}: column {name!r} is of type {kind}", rule)
