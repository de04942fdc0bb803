"""Which tables each sparse feature has: the configuration that everything else in this package is built from."""

from collections.abc import Sequence
from dataclasses import dataclass

from embeddings.partitions import Full, Hash, Partition, QuotientRemainder, ceil_div

KINDS = ("full", "hash", "qr")
OPERATIONS = ("mult", "add", "concat")
LARGE = ("quotient", "remainder")


@dataclass(frozen=True)
class Table:
    """One embedding table. Its name is also the key of the ids that are looked up in it."""

    name: str
    rows: int
    dim: int


@dataclass(frozen=True)
class FeatureTable:
    """How one sparse feature is embedded.

    Attributes:
        name: the feature's key, without the signs . / @.
        rows: number of different ids, >= 1.
        max_ids: the most ids one example can have; 1 means one-hot.
        kind: "full" (a row per id), "hash" (id modulo a smaller table) or "qr" (quotient and remainder tables).
        collisions: ids that share a row of the hashed table, or of the larger one of the two.
        operation: how the two rows of a "qr" feature become one vector: "mult", "add" or "concat" (two halves).
        large: which of the two tables is the large one, "quotient" or "remainder".
    """

    name: str
    rows: int
    max_ids: int = 1
    kind: str = "full"
    collisions: int = 1
    operation: str = "mult"
    large: str = "quotient"

    def __post_init__(self) -> None:
        if not self.name or set(self.name) & set("./@"):
            raise ValueError(
                f"feature name {self.name!r} must not be empty or contain any of . / @, which name its tables"
            )
        _one_of("kind", self.kind, KINDS, self.name)
        _one_of("operation", self.operation, OPERATIONS, self.name)
        _one_of("large", self.large, LARGE, self.name)
        for field in ("rows", "max_ids", "collisions"):
            value = getattr(self, field)
            if value < 1:
                raise ValueError(f"feature {self.name}: {field}={value} must be at least 1")

    @property
    def partition(self) -> Partition:
        if self.kind == "full":
            return Full(self.rows)
        if self.kind == "hash":
            return Hash(self.rows, ceil_div(self.rows, self.collisions))
        return QuotientRemainder.of(self.rows, self.collisions, large=self.large)

    @property
    def pools_before_combining(self) -> bool:
        """Whether summing each table over a bag and then combining equals combining per id and then summing.

        It does when the combination is linear, and when there is at most one id to sum over.
        """
        return self.kind != "qr" or self.operation != "mult" or self.max_ids == 1

    def tables(self, dim: int) -> tuple[Table, ...]:
        """The feature's tables when its embedding has `dim` columns.

        Raises:
            ValueError: if `dim`, or its half with "concat", is not a multiple of 4.
        """
        width = dim // 2 if self.kind == "qr" and self.operation == "concat" else dim
        if dim < 1 or dim % 4 != 0:
            raise ValueError(
                f"{dim=} must be a positive multiple of 4: the embedding kernels move four columns at once"
            )
        if width % 4 != 0:
            raise ValueError(
                f"feature {self.name}: with operation 'concat' the embedding is two halves of dim/2={width} columns, "
                f"which must be a multiple of 4; use a dim that is a multiple of 8 instead of {dim}, or 'mult' or 'add'"
            )
        names = (f"{self.name}@q", f"{self.name}@r") if self.kind == "qr" else (self.name,)
        return tuple(Table(name, rows, width) for name, rows in zip(names, self.partition.table_rows, strict=True))


def choose_tables(
    features: Sequence[tuple[str, int, int]],
    *,
    kind: str = "full",
    collisions: int = 4,
    operation: str = "mult",
    threshold: int = 200,
    large: str = "quotient",
) -> list[FeatureTable]:
    """Decides per feature: the small ones stay full, the others become what `kind` says.

    Args:
        features: (name, rows, max_ids) of each.
        kind, collisions, operation, large: of the features that are compressed; see `FeatureTable`.
        threshold: features with fewer rows stay full. One whose tables would not become smaller stays full too.

    Raises:
        ValueError: for an unknown word, a number below 1, or a feature name that appears twice.
    """
    names = [name for name, _, _ in features]
    if len(set(names)) != len(names):
        raise ValueError(f"feature names must differ, {sorted({n for n in names if names.count(n) > 1})} are repeated")
    chosen = []
    for name, rows, max_ids in features:
        compressed = FeatureTable(name, rows, max_ids, kind, collisions, operation, large)
        worthwhile = rows >= threshold and sum(compressed.partition.table_rows) < rows
        chosen.append(compressed if worthwhile else FeatureTable(name, rows, max_ids))
    return chosen


def _one_of(field: str, value: str, allowed: tuple[str, ...], feature: str) -> None:
    if value not in allowed:
        raise ValueError(f"feature {feature}: {field}={value!r} must be one of {', '.join(allowed)}")
