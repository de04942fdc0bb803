"""The settings of embedding tables: for all tables, and for individual ones by name.

    [embeddings]
    embedding = "qr"
    collisions = 16

    [embeddings.tables."cat_2*"]
    embedding = "head"

    [embeddings.tables.cat_20]
    collisions = 4

A section of `tables` applies to the feature with that name or, if there is none, to all features that match it as a
pattern (* and ?). If several sections match a feature, they apply in the order of the file, and the one with the
feature's own name comes last.

The section `grown` is written by runs that started from a run of an earlier day (`--init-from`): the rows of features
on earlier days, on which their partitions depend.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

from dlrmctl.embeddings.words import (
    EMBEDDINGS,
    OPERATIONS,
    OPERATIONS_OF,
    PLACEMENTS,
    QR_LAYOUT,
    QR_LAYOUTS,
    QR_THRESHOLD,
    SHARDINGS,
    TABLE_PRECISIONS,
    TAILS,
)
from dlrmctl.errors import UserError
from dlrmctl.settings.setting import checked_values, setting
from dlrmctl.settings.synonyms import nearest

ONE_TABLE = (
    *("embedding", "collisions", "operation", "qr_layout", "ways", "crt_headroom", "head_share", "tail"),
    "qr_threshold",
)
TableChanges = dict[str, dict[str, Any]]  # pattern -> setting -> value
UVM_CACHE = 0.2  # the default of FBGEMM and of TorchRec's planner
Growth = dict[str, tuple[int, ...]]  # feature -> the rows of earlier days, ascending


@dataclass(frozen=True)
class EmbeddingSettings:
    embedding: str = setting("qr", "Type of the large embedding tables.", choices=EMBEDDINGS)
    dim: int = setting(16, "Embedding dimension; a multiple of 4.", at_least=4)
    collisions: int = setting(
        4, "Number of ids that share a row, of the largest table if a feature has several.", at_least=1
    )
    compress_ratio: float | None = setting(
        None,
        "Choose --collisions so that all tables together are this many times smaller, for example 4x.",
        above=1,
        unit="x",
    )
    operation: str = setting(
        "mult", "How to combine the rows of an id (for qr, kway, crt, and head with a qr tail).", choices=OPERATIONS
    )
    qr_layout: str = setting(
        QR_LAYOUT,
        "Ids that share a row of the large qr table: those far apart (remainder) or neighbours (quotient).",
        choices=QR_LAYOUTS,
    )
    ways: int = setting(3, "Number of tables per feature for kway and crt.", at_least=2, at_most=8)
    crt_headroom: float = setting(
        1.0,
        "Size of crt tables as a multiple of the ids, so that `train --init-from` can add ids later.",
        at_least=1,
        at_most=1000,
    )
    head_share: float = setting(
        0.7, "Fraction of a head table's rows reserved for frequent ids, one row each.", above=0, below=1
    )
    tail: str = setting("hash", "How the other ids of a head table share rows.", choices=TAILS)
    qr_threshold: int = setting(QR_THRESHOLD, "Keep tables with fewer rows than this uncompressed.", at_least=0)
    sharding: str = setting("auto", "How to shard the tables over ranks.", choices=SHARDINGS)
    table_precision: str = setting(
        "fp32",
        "Type of the numbers of the tables on GPUs; fp16, with stochastic rounding, takes half the memory.",
        choices=TABLE_PRECISIONS,
    )
    placement: str = setting(
        "hbm",
        "Memory of the tables on GPUs: their own (hbm), that of the host with a cache on the GPU (uvm), or the host's "
        "only for the largest tables if not all fit (auto).",
        choices=PLACEMENTS,
    )
    uvm_cache: float = setting(
        UVM_CACHE, "Fraction of the rows of a table in host memory that a GPU caches.", above=0, at_most=1
    )


def table_changes(tables: Any, where: str) -> TableChanges:
    """Checks the sections of individual tables.

    Args:
        tables: the contents of `embeddings.tables` in the file.
        where: name of that place in messages.

    Raises:
        UserError: for a value that is not a section, an unknown setting, or a value that is mistyped or out of range.
    """
    if not isinstance(tables, dict):
        raise UserError(f"{where} = {tables!r} must be sections, [embeddings.tables.NAME]")
    changes: TableChanges = {}
    for pattern, values in tables.items():
        place = f'{where}."{pattern}"'
        if not isinstance(values, dict):
            raise UserError(f"{place} = {values!r} must be a section, [embeddings.tables.{pattern}]")
        for name in values:
            if name not in ONE_TABLE:
                close = nearest(name, ONE_TABLE)
                hint = f"did you mean {close!r}?" if close else f"choose from {', '.join(ONE_TABLE)}"
                raise UserError(f"{place}.{name} is not a setting of one table", hint)
        given = {name: (value, f"{place}.{name}") for name, value in values.items()}
        changes[pattern] = checked_values(EmbeddingSettings, given)
    return changes


def growth(given: Any, where: str) -> Growth:
    """Checks the rows that the tables of a run had on earlier days.

    Args:
        given: the contents of `embeddings.grown` in the file.
        where: name of that place in messages.

    Raises:
        UserError: unless they are lists of increasing numbers.
    """
    if not isinstance(given, dict):
        raise UserError(f"{where} = {given!r} must be a section, [embeddings.grown]")
    for name, rows in given.items():
        whole = isinstance(rows, list | tuple) and rows and all(type(number) is int for number in rows)
        if not whole or not all(a < b for a, b in pairwise((0, *rows))):
            raise UserError(f"{where}.{name} = {str(rows)[:80]} must be a list of increasing numbers of rows")
    return {name: tuple(rows) for name, rows in given.items()}


def changes_of_table(changes: TableChanges, table: str, tables: Collection[str]) -> dict[str, Any]:
    """Merges the changes of all sections that match one of `tables`."""
    merged: dict[str, Any] = {}
    for pattern in changes:
        if pattern not in tables and fnmatchcase(table, pattern):
            merged |= changes[pattern]
    return merged | changes.get(table, {})


def embedding_of(settings: EmbeddingSettings, changes: TableChanges, rows: Mapping[str, int]) -> str:
    """The type of the tables that these settings compress; "full" if all tables are below their thresholds.

    Args:
        settings, changes: of all tables, and of individual ones.
        rows: of a full table of each feature, by name.
    """
    own = [vars(settings) | changes_of_table(changes, name, rows) for name in rows]
    types = {
        table["embedding"] for table, count in zip(own, rows.values(), strict=True) if count >= table["qr_threshold"]
    }
    compressed = types - {"full"}
    return compressed.pop() if len(compressed) == 1 else settings.embedding if compressed else "full"


def default_qr_lr(settings: EmbeddingSettings) -> float:
    """The default learning rate of tables that combine rows: higher for factors near 1, which have further to move."""
    return 0.1 if settings.operation == "mult" and settings.embedding != "double-hash" else 0.05


def check_patterns(changes: TableChanges, tables: list[str]) -> None:
    """Checks that every pattern matches a table.

    Raises:
        UserError: for a pattern that matches none.
    """
    for pattern in changes:
        if pattern not in tables and not any(fnmatchcase(table, pattern) for table in tables):
            near = get_close_matches(pattern, tables, n=3) or [*tables[:3], "..."]
            raise UserError(
                f'embeddings.tables."{pattern}" matches no sparse feature of the data',
                f"the features are {', '.join(near)}",
            )


def check_embeddings(settings: EmbeddingSettings, changes: TableChanges) -> None:
    """Refuses contradictory settings.

    Raises:
        UserError: naming the settings.
    """
    if settings.placement == "hbm" and settings.uvm_cache != UVM_CACHE:
        raise UserError(
            f"embeddings.uvm_cache = {settings.uvm_cache:g} needs embeddings.placement = uvm or auto, not hbm",
            "--placement uvm, or omit --uvm-cache",
        )
    kind, operation, dim = settings.embedding, settings.operation, settings.dim
    if dim % 4:
        raise UserError(f"embeddings.dim = {dim} must be a multiple of 4", f"try {dim + -dim % 4}")
    combines = kind in ("qr", "kway", "crt") or (kind == "head" and settings.tail == "qr")
    if combines and operation not in OPERATIONS_OF.get(kind, OPERATIONS):
        raise UserError(
            f"embeddings.operation = {operation} does not work with embeddings.embedding = {kind}",
            "path needs qr" if operation == "path" else "features needs qr, kway or crt",
        )
    parts = settings.ways if kind in ("kway", "crt") else 2
    if combines and operation == "concat" and dim % (4 * parts):
        raise UserError(
            f"embeddings.dim = {dim} must be a multiple of {4 * parts} for operation concat with {parts} tables",
            f"try {dim + -dim % (4 * parts)}",
        )
    if settings.compress_ratio is not None and kind == "full" and not any("embedding" in c for c in changes.values()):
        raise UserError(
            f"embeddings.compress_ratio = {settings.compress_ratio:g} needs tables that are compressed, "
            "not embeddings.embedding = full",
            "--embedding qr, or another kind",
        )
