"""`FeatureTable`, the configuration of a feature's tables that the rest of this package builds on."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from dlrmctl.embeddings.partitions.basic import DoubleHash, Full, Hash, Partition, QuotientRemainder, ceil_div
from dlrmctl.embeddings.partitions.heads import Head, HeadHash, HeadTail, Tail, places_of_added
from dlrmctl.embeddings.partitions.radix import ChineseRemainder, MixedRadix
from dlrmctl.embeddings.path import map_width
from dlrmctl.embeddings.words import EMBEDDINGS, OPERATIONS, OPERATIONS_OF, QR_LAYOUT, QR_LAYOUTS, TAILS

_MODULES = nn.ModuleDict()


@dataclass(frozen=True)
class Table:
    """One embedding table."""

    name: str
    rows: int
    dim: int


@dataclass(frozen=True)
class Lookup:
    """The tables of one feature that share one partition.

    `keys` are those of the feature's rows in each table, the names in `tables` unless other features share the tables.
    """

    feature: str
    keys: tuple[str, ...]
    partition: Partition
    tables: tuple[str, ...]


@dataclass(frozen=True)
class FeatureTable:
    """How one sparse feature is embedded.

    Attributes:
        name: the feature's key.
        rows: number of different ids, >= 1.
        max_ids: the most ids one example can have; 1 means one-hot.
        embedding: "full" (a row per id), "hash" (id modulo a smaller table), "qr" (quotient and remainder tables),
            "kway" (digits in a mixed radix), "crt" (remainders by coprime moduli), "head" (the ids below `head` keep a
            row of their own, the rest is compressed) or "double-hash" (the sum of two hashed rows).
        collisions: ids that share a row of the hashed table, or of the largest table; of a "head", ids of the tail. The
            two tables of "double-hash" together have rows / collisions rows.
        operation: how the rows of an id become one vector: "mult", "add", "concat" (side by side, each narrower) "path"
            (a row of the large table goes through a small network, the other row), or "features" (each row is a vector
            of its own). See `OPERATIONS_OF`.
        qr_layout: which table of a "qr" is the large one: "remainder", or "quotient", where neighbours share its rows.
        ways: tables of a "kway" or "crt".
        head: ids of a "head" that have their own rows, >= 1.
        tail: how a "head" embeds the other ids: "hash" or "qr".
        headroom: multiple of the rows of the first day for which the moduli of a "crt" have room.
        before: the rows of earlier days, ascending, where the tables have grown since. The first of them, instead of
            `rows`, decides moduli, head and initial values, so that every id of an earlier day keeps its rows, and
            tables only become longer. A "head" gives the same share of each day's new ids a row of their own.
        table: names the tables of several features that share them; they have everything but `name` and `max_ids` in
            common. None: the feature has tables of its own.
        most_ids: of shared tables, the largest `max_ids` of their features.
        weighted: whether batches have weights for its ids, by which their vectors are multiplied.
    """

    name: str
    rows: int
    max_ids: int = 1
    embedding: str = "full"
    collisions: int = 1
    operation: str = "mult"
    qr_layout: str = QR_LAYOUT
    ways: int = 3
    head: int = 0
    tail: str = "hash"
    headroom: float = 1.0
    before: tuple[int, ...] = ()
    table: str | None = None
    most_ids: int = 1
    weighted: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("the name of a feature must not be empty")
        _one_of("embedding", self.embedding, EMBEDDINGS, self.name)
        _one_of("operation", self.operation, OPERATIONS, self.name)
        _one_of("qr_layout", self.qr_layout, QR_LAYOUTS, self.name)
        _one_of("tail", self.tail, TAILS, self.name)
        for field, bound in {"rows": 1, "max_ids": 1, "collisions": 1, "ways": 2, "head": 0}.items():
            value = getattr(self, field)
            if value < bound:
                raise ValueError(f"feature {self.name}: {field}={value} must be at least {bound}")
        object.__setattr__(self, "before", tuple(self.before))  # a list, if read from JSON
        if not all(a < b for a, b in pairwise((0, *self.before, self.rows))):
            numbers = ", ".join(f"{number:,}" for number in (*self.before, self.rows))
            raise ValueError(f"feature {self.name}: the rows of its days, {numbers}, must increase")
        if self.embedding == "head" and not 1 <= self.head < self.first_rows:
            raise ValueError(
                f"feature {self.name}: head={self.head} must be at least 1 and below rows={self.first_rows}"
            )
        if self.embedding == "crt" and self.rows > (room := math.prod(self._crt().moduli)):
            raise ValueError(
                f"feature {self.name}: its crt tables have room for {room:,} ids, and there are {self.rows:,} now; "
                "a larger crt_headroom on the first day makes more room"
            )
        if self.combination is not None and self.operation not in OPERATIONS_OF.get(self.embedding, OPERATIONS):
            raise ValueError(
                f"feature {self.name}: operation={self.operation!r} of embedding {self.embedding!r} must be one of "
                f"{', '.join(OPERATIONS_OF[self.embedding])}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the attributes as plain values for JSON."""
        shared = {"table": self.table, "most_ids": self.most_ids} if self.table is not None else {}
        shared |= {"weighted": True} if self.weighted else {}
        newer = ("table", "most_ids", "weighted")
        return {name: value for name, value in asdict(self).items() if name not in newer} | shared

    @property
    def table_names(self) -> tuple[str, ...]:
        """The names of all its tables, in the order of `tables`."""
        return tuple(name for lookup in self.lookups for name in lookup.tables)

    @property
    def first_rows(self) -> int:
        """The rows of the first day."""
        return self.before[0] if self.before else self.rows

    @property
    def combination(self) -> str | None:
        """How the rows of `lookups[-1]` are combined, one of `OPERATIONS`; None if it has one table."""
        if self.embedding == "double-hash":
            return "add"
        if self.embedding in ("full", "hash") or (self.embedding == "head" and self.tail == "hash"):
            return None
        return self.operation

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """The feature's partitions: one, or one for the head and one for the tail, which share no ids."""
        rows, first, collisions, head = self.rows, self.first_rows, self.collisions, self.head
        if self.embedding == "full":
            return (self._lookup((), Full(rows)),)
        if self.embedding == "hash":
            return (self._lookup((), Hash(rows, ceil_div(first, collisions))),)
        if self.embedding == "qr":
            return (self._lookup(("q", "r"), self._quotient_remainder(first, rows)),)
        if self.embedding == "double-hash":
            return (self._lookup(("1", "2"), DoubleHash(rows, ceil_div(first, 2 * collisions))),)
        added = self._added()
        if self.embedding == "head" and self.tail == "hash":
            return (self._lookup((), HeadHash(rows, head, ceil_div(first - head, collisions), added)),)
        if self.embedding == "head":
            inner = self._quotient_remainder(first - head, rows - head)
            return (
                self._lookup(("h",), Head(rows, head, added)),
                self._lookup(("q", "r"), Tail(head, inner, added)),
            )
        parts = tuple(map(str, range(1, self.ways + 1)))
        if self.embedding == "kway":
            return (self._lookup(parts, MixedRadix.of(first, self.ways, collisions).grown(rows)),)
        return (self._lookup(parts, replace(self._crt(), rows=rows)),)

    def _lookup(self, parts: tuple[str, ...], partition: Partition) -> Lookup:
        keys, tables = (_named(name, parts) for name in (self.name, self.table or self.name))
        return Lookup(self.name, keys, partition, tables)

    def _quotient_remainder(self, first: int, rows: int) -> QuotientRemainder:
        return replace(QuotientRemainder.of(first, self.collisions, large=self.qr_layout), rows=rows)

    def _crt(self) -> ChineseRemainder:
        """The partition of the first day, with room for later ones."""
        return ChineseRemainder.of(math.ceil(self.first_rows * self.headroom), self.ways, self.collisions)

    def _added(self) -> tuple[tuple[int, int], ...]:
        """Ranges of later ids that have their own rows: first id, number of ids."""
        days = pairwise((*self.before, self.rows))
        return tuple((start, count) for start, end in days if (count := (end - start) * self.head // self.first_rows))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its rows in all its tables, in the order of `tables`."""
        return tuple(key for lookup in self.lookups for key in lookup.keys)

    @property
    def partition(self) -> Partition:
        """All tables by one partition, in the order of `tables`."""
        *heads, last = self.lookups
        if not heads:
            return last.partition
        head, tail = heads[0].partition, last.partition
        assert isinstance(head, Head)
        assert isinstance(tail, Tail)
        return HeadTail(head, tail)

    @property
    def combined_keys(self) -> tuple[str, ...]:
        """Keys of its rows that are combined."""
        return () if self.combination is None else self.lookups[-1].keys

    @property
    def combined_tables(self) -> tuple[str, ...]:
        """Names of the tables whose rows are combined."""
        return () if self.combination is None else self.lookups[-1].tables

    @property
    def value_part(self) -> int:
        """The index of the large one of the combined tables, whose rows the others multiply or transform."""
        return int(self.embedding in ("qr", "head") and self.qr_layout == "remainder")

    @property
    def vectors(self) -> int:
        """The number of vectors that the feature gives to the interaction."""
        return len(self.combined_keys) if self.combination == "features" else 1

    @property
    def pools_before_combining(self) -> bool:
        """Whether summing each table over a bag and then combining equals combining per id and then summing.

        It does if the combination is linear, or if there is at most one id to sum over. Features that share tables are
        looked up in the same way.
        """
        return self.combination not in ("mult", "path") or max(self.max_ids, self.most_ids) == 1

    def own_rows(self, ids: Tensor) -> tuple[str, Tensor] | None:
        """Returns a table, and the rows in it, int64, of those ids (int64) whose row no other id has.

        None for an embedding in which all rows are shared, such as "hash" and "qr"; a few of their rows may have a
        single id by chance.
        """
        first = self.lookups[0]
        if self.embedding == "full":
            return first.tables[0], ids
        if self.embedding != "head":
            return None
        own = ids[(ids < self.head) | (places_of_added(ids, self._added()) >= 0)]
        return first.tables[0], first.partition(own)[0]

    def tables(self, dim: int) -> tuple[Table, ...]:
        """Returns the feature's tables for an embedding of `dim` columns.

        Raises:
            ValueError: if `dim`, or its part with "concat", is not a multiple of 4.
        """
        if dim < 1 or dim % 4 != 0:
            raise ValueError(
                f"{dim=} must be a positive multiple of 4: the embedding kernels move four columns at once"
            )
        combined = self.combined_tables
        widths = dict.fromkeys(combined, dim)
        if self.combination == "concat":
            widths = dict.fromkeys(combined, self._part_width(dim))
        elif self.combination == "path":
            widths[combined[1 - self.value_part]] = map_width(dim)
        rows = [rows for lookup in self.lookups for rows in lookup.partition.table_rows]
        return tuple(Table(n, r, widths.get(n, dim)) for n, r in zip(self.table_names, rows, strict=True))

    def _part_width(self, dim: int) -> int:
        parts = len(self.combined_keys)
        if dim % (4 * parts) == 0:
            return dim // parts
        words = {2: "two halves of dim/2"}.get(parts, f"{parts} parts of dim/{parts}")
        raise ValueError(
            f"feature {self.name}: with operation 'concat' the embedding is {words}={dim / parts:g} columns, which "
            f"must be a multiple of 4; use a dim that is a multiple of {4 * parts} instead of {dim}, or 'mult' or 'add'"
        )


def distinct_tables(features: Sequence[FeatureTable], dim: int) -> tuple[Table, ...]:
    """Returns every table once, feature by feature."""
    return tuple(dict.fromkeys(table for feature in features for table in feature.tables(dim)))


def _named(name: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Returns names of tables, or of rows in them: one for each part, or a single one."""
    name = _in_paths(name)
    if parts:
        return tuple(f"{name}@{part}" for part in parts)
    # Submodules are attributes, and a column may be called like an attribute that modules have, such as "type".
    return (f"{name}@rows" if hasattr(_MODULES, name) else name,)


def _in_paths(feature: str) -> str:
    """Escapes the characters that join names to paths, as %XX."""
    return "".join(f"%{ord(sign):02X}" if sign in "./@%" else sign for sign in feature)


def _one_of(field: str, value: str, allowed: tuple[str, ...], feature: str) -> None:
    if value not in allowed:
        raise ValueError(f"feature {feature}: {field}={value!r} must be one of {', '.join(allowed)}")
