"""The schema of an example: named dense features, named sparse features with their tables, one label."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dlrmctl.data.errors import DataError

MISSING_ROW = 0  # the value was empty
RARE_ROW = 1  # the value is outside the vocabulary
RESERVED_ROWS = 2
LARGEST_DENSE = 1e38  # of a transformed dense value: the difference of two is still a float32
NO_GROUP = (1 << 64) - 1  # of an example without a group; other groups are hashes of their values
_Kind = TypeVar("_Kind", int, str, list)


@dataclass(frozen=True)
class SparseFeature:
    """A sparse feature: one list of ids per example.

    Attributes:
        name: unique among the sparse features.
        rows: rows of a full embedding table, including reserved ones; ids are below it.
        max_ids: longest list; 1 means exactly one id in every example.
        table: name of the ids and the table that the feature shares with others; None if they are its own.
        pooling: "sum" or "mean": whether the vector of a list is the sum over its ids, or that over their number.
        weights: name of the weights that the vectors of its ids are multiplied by; None if there are none.
    """

    name: str
    rows: int
    max_ids: int = 1
    table: str | None = None
    pooling: str = "sum"
    weights: str | None = None

    @property
    def weighted(self) -> bool:
        """Whether ids have weights, which may be one over their number."""
        return self.weights is not None or self.pooling == "mean"

    def __post_init__(self) -> None:
        if self.pooling not in ("sum", "mean"):
            raise DataError(f"sparse feature {self.name}: pooling {self.pooling!r} must be sum or mean")
        if not self.name:
            raise DataError("a sparse feature needs a name")
        if self.rows < 1:
            raise DataError(f"sparse feature {self.name}: {self.rows} rows must be at least 1")
        if self.max_ids < 1:
            raise DataError(f"sparse feature {self.name}: lists of at most {self.max_ids} ids must hold at least 1")


@dataclass(frozen=True)
class Schema:
    """The names of all features, in the order of every block and batch.

    Attributes:
        dense: I names.
        sparse: F features.
        label: name of the target.
        float32: the dense features that a store keeps as float32; the others as float16.
        gaps: the dense features without a value in some training examples.
        weight: name of the weights of examples; None if all count 1.
        group: name of what groups examples for gAUC, or None.
    """

    dense: tuple[str, ...]
    sparse: tuple[SparseFeature, ...]
    label: str = "label"
    float32: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    weight: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        for name in (*self.float32, *self.gaps):
            if name not in self.dense:
                raise DataError(f"{name!r} is not a dense feature")
        rows: dict[str, int] = {}
        for feature in self.sparse:
            table = feature.table or feature.name
            if rows.setdefault(table, feature.rows) != feature.rows:
                raise DataError(f"sparse feature {feature.name}: {feature.rows} rows, its table has {rows[table]}")
        names = [*self.dense, *self.keys, self.label]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"the name {twice[0]!r} is used for two columns; names must be unique")

    @property
    def keys(self) -> tuple[str, ...]:
        """The F names of the sparse features."""
        return tuple(feature.name for feature in self.sparse)

    @property
    def one_hot(self) -> bool:
        """Whether every example has exactly one id per sparse feature, so that no lengths are stored."""
        return all(feature.max_ids == 1 for feature in self.sparse)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "dense": list(self.dense),
            "sparse": [
                {"name": f.name, "rows": f.rows, "max_ids": f.max_ids}
                | ({"table": f.table} if f.table is not None else {})
                | ({"pooling": f.pooling} if f.pooling != "sum" else {})
                | ({"weights": f.weights} if f.weights is not None else {})
                for f in self.sparse
            ],
            "label": self.label,
            **({"float32": list(self.float32)} if self.float32 else {}),
            **({"gaps": list(self.gaps)} if self.gaps else {}),
            **({"weight": self.weight} if self.weight is not None else {}),
            **({"group": self.group} if self.group is not None else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Schema":
        """Parses what `to_dict` returned.

        Raises:
            DataError: if a key is missing or a value has the wrong type.
        """
        try:
            sparse = tuple(
                SparseFeature(
                    _as(str, f["name"]),
                    _as(int, f["rows"]),
                    _as(int, f.get("max_ids", 1)),
                    _as(str, f["table"]) if "table" in f else None,
                    _as(str, f.get("pooling", "sum")),
                    _as(str, f["weights"]) if "weights" in f else None,
                )
                for f in _as(list, values["sparse"])
            )
            dense, float32, gaps = (_names(values, key) for key in ("dense", "float32", "gaps"))
            weight, group = (_as(str, values[key]) if key in values else None for key in ("weight", "group"))
            return cls(dense, sparse, _as(str, values["label"]), float32, gaps, weight, group)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not a schema: {error!r}") from error


def _names(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Returns a list of names; keys that are newer than "dense" may be missing."""
    return tuple(_as(str, name) for name in _as(list, values[key] if key == "dense" else values.get(key, [])))


def _as(kind: type[_Kind], value: Any) -> _Kind:
    """Checks that the value has exactly this type: true is not a number."""
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value
