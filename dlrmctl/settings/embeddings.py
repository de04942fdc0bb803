"""The settings of embedding tables: for all of them, and for single ones by name.

    [embeddings]
    embedding = "qr"
    collisions = 16

    [embeddings.tables."cat_2*"]
    embedding = "head"

    [embeddings.tables.cat_20]
    collisions = 4

A section of `tables` goes for the feature of that name; if there is none, for those that match it as a pattern (* and
?). It changes what it names. Where several match, each changes its own settings, in the order of the file; the one of
the feature's own name comes last.
"""

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from dlrmctl.embeddings.words import (
    EMBEDDINGS,
    OPERATIONS,
    OPERATIONS_OF,
    QR_LAYOUT,
    QR_LAYOUTS,
    QR_THRESHOLD,
    SHARDINGS,
    TAILS,
)
from dlrmctl.errors import UserError
from dlrmctl.settings.setting import checked_values, setting
from dlrmctl.settings.synonyms import nearest

ONE_TABLE = ("embedding", "collisions", "operation", "qr_layout", "ways", "head_share", "tail", "qr_threshold")
TableChanges = dict[str, dict[str, Any]]  # pattern -> setting -> value


@dataclass(frozen=True)
class EmbeddingSettings:
    embedding: str = setting("qr", "Kind of the large tables.", choices=EMBEDDINGS)
    dim: int = setting(16, "Columns of every embedding; a multiple of 4.", at_least=4)
    collisions: int = setting(
        4, "How many times fewer rows: ids that share one, of the largest table where there are several.", at_least=1
    )
    compress_ratio: float | None = setting(
        None,
        "Choose the collisions so that all tables together are X times smaller, as in 4x.",
        above=1,
        unit="x",
    )
    operation: str = setting(
        "mult", "How the rows of an id meet (qr, kway, crt, head with a qr tail).", choices=OPERATIONS
    )
    qr_layout: str = setting(
        QR_LAYOUT,
        "Large table of a qr: ids far apart share its rows (remainder), or neighbours do (quotient).",
        choices=QR_LAYOUTS,
    )
    ways: int = setting(3, "Tables of a kway or crt.", at_least=2, at_most=8)
    head_share: float = setting(
        0.7, "Share of the rows of a head table that frequent ids have to themselves.", above=0, below=1
    )
    tail: str = setting("hash", "How the other ids of a head table share rows.", choices=TAILS)
    qr_threshold: int = setting(QR_THRESHOLD, "Tables with fewer rows stay full.", at_least=0)
    sharding: str = setting("auto", "How tables are spread over ranks.", choices=SHARDINGS)


def table_changes(tables: Any, where: str) -> TableChanges:
    """The sections of single tables, checked like any settings.

    Args:
        tables: what the file has under `embeddings.tables`.
        where: how messages call that place.

    Raises:
        UserError: for what is no section, an unknown setting, or a value that is mistyped or out of range.
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
                hint = f"did you mean {close!r}?" if close else f"it can have {', '.join(ONE_TABLE)}"
                raise UserError(f"{place}.{name} is not a setting of one table", hint)
        given = {name: (value, f"{place}.{name}") for name, value in values.items()}
        changes[pattern] = checked_values(EmbeddingSettings, given)
    return changes


def changes_of_table(changes: TableChanges, table: str, tables: Collection[str]) -> dict[str, Any]:
    """What all sections that match one feature's table, among all `tables`, change together."""
    merged: dict[str, Any] = {}
    for pattern in changes:
        if pattern not in tables and fnmatchcase(table, pattern):
            merged |= changes[pattern]
    return merged | changes.get(table, {})


def default_qr_lr(settings: EmbeddingSettings) -> float:
    """The learning rate of combined tables that is right for most: a factor near 1 has further to go than a row."""
    return 0.1 if settings.operation == "mult" and settings.embedding != "double-hash" else 0.05


def check_patterns(changes: TableChanges, tables: list[str]) -> None:
    """
    Raises:
        UserError: for a pattern that matches no table.
    """
    for pattern in changes:
        if pattern not in tables and not any(fnmatchcase(table, pattern) for table in tables):
            near = get_close_matches(pattern, tables, n=3) or [*tables[:3], "..."]
            raise UserError(
                f'embeddings.tables."{pattern}" matches no sparse feature of the data', f"there are {', '.join(near)}"
            )


def check_embeddings(settings: EmbeddingSettings, changes: TableChanges) -> None:
    """
    Raises:
        UserError: for settings that contradict.
    """
    kind, operation, dim = settings.embedding, settings.operation, settings.dim
    if dim % 4:
        raise UserError(f"embeddings.dim = {dim} must be a multiple of 4", f"try {dim + -dim % 4}")
    combines = kind in ("qr", "kway", "crt") or (kind == "head" and settings.tail == "qr")
    if combines and operation not in OPERATIONS_OF.get(kind, OPERATIONS):
        raise UserError(
            f"embeddings.operation = {operation} does not work with embeddings.embedding = {kind}",
            "path: only qr" if operation == "path" else "features: qr, kway or crt",
        )
    parts = settings.ways if kind in ("kway", "crt") else 2
    if combines and operation == "concat" and dim % (4 * parts):
        halves = "halves it" if parts == 2 else f"cuts it into {parts}"
        raise UserError(
            f"embeddings.dim = {dim} must be a multiple of {4 * parts} for operation concat, which {halves}",
            f"try {dim + -dim % (4 * parts)}",
        )
    if settings.compress_ratio is not None and kind == "full" and not any("embedding" in c for c in changes.values()):
        raise UserError(
            f"embeddings.compress_ratio = {settings.compress_ratio:g} needs tables that are compressed, "
            "not embeddings.embedding = full",
            "--embedding qr, or another kind",
        )
