"""Chooses the tables of each feature: by a scheme per feature, or by a compression ratio for all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dlrmctl.embeddings.partitions.basic import at_least, ceil_div
from dlrmctl.embeddings.tables import FeatureTable, distinct_tables
from dlrmctl.embeddings.words import QR_LAYOUT, QR_THRESHOLD

Feature = tuple[str, int, int]  # name, rows, max_ids


@dataclass(frozen=True)
class Scheme:
    """How features with at least `qr_threshold` rows are embedded; smaller ones get a full table.

    Attributes:
        embedding, operation, qr_layout, ways, tail: see `FeatureTable`.
        collisions: ids that share a row of the large table. The head and the tail of a "head" together have rows /
            collisions rows (plus a remainder table, if any).
        headroom: see `FeatureTable`.
        head_share: the share of the rows of a "head" that belongs to the head, between 0 and 1.
    """

    embedding: str = "full"
    collisions: int = 4
    operation: str = "mult"
    qr_layout: str = QR_LAYOUT
    ways: int = 3
    head_share: float = 0.7
    tail: str = "hash"
    qr_threshold: int = QR_THRESHOLD
    headroom: float = 1.0

    def table(self, feature: Feature) -> FeatureTable:
        """Returns the feature's tables: full ones if it has too few rows or would not become smaller.

        Raises:
            ValueError: if a name is unknown or a number out of bounds.
        """
        name, rows, max_ids = feature
        if not 0 < self.head_share < 1:
            raise ValueError(f"feature {name}: head_share={self.head_share} must be above 0 and below 1")
        at_least("collisions", self.collisions, 1)
        full = FeatureTable(name, rows, max_ids)
        collisions, head = self.collisions, 0
        if self.embedding == "head":
            budget = ceil_div(rows, collisions)
            head = min(max(1, int(budget * self.head_share)), budget - 1)
            if head < 1:
                return full
            collisions = ceil_div(rows - head, budget - head)
        table = FeatureTable(
            name,
            rows,
            max_ids,
            self.embedding,
            collisions,
            self.operation,
            self.qr_layout,
            self.ways,
            head,
            self.tail,
            self.headroom,
        )
        # Sizes are proportional to the dimension, so any works that can be divided into this many parts.
        dim = 4 * max(1, len(table.combined_keys))
        return table if rows >= self.qr_threshold and num_parameters([table], dim) < rows * dim else full


def check_names(features: Sequence[Feature]) -> None:
    """Checks that feature names are unique.

    Raises:
        ValueError: if a name appears twice.
    """
    names = [name for name, _, _ in features]
    if len(set(names)) != len(names):
        raise ValueError(f"feature names must be unique; repeated: {sorted({n for n in names if names.count(n) > 1})}")


def num_parameters(tables: Sequence[FeatureTable], dim: int) -> int:
    """Returns the number of weights in all tables."""
    return sum(table.rows * table.dim for table in distinct_tables(tables, dim))


class RatioError(ValueError):
    """Raised when tables cannot be made as small as the ratio asks.

    Attributes:
        best: the largest ratio that can be reached.
    """

    def __init__(self, ratio: float, best: float) -> None:
        super().__init__(f"tables cannot be {ratio:g} times smaller; with these settings, {best:.2f} times is the most")
        self.best = best


def fit_ratio(
    features: Sequence[Feature], schemes: Sequence[Scheme], fixed: Sequence[bool], *, ratio: float, dim: int
) -> list[FeatureTable]:
    """Returns tables with at most 1 / ratio of the weights of full ones, as close to that as whole collisions allow.

    All compressed features get the same collisions, the fewest with which the weights fit. Then, largest first, each
    gets one collision less where that still fits. A feature whose tables would grow with more collisions (a remainder
    table has a row for each) stops where they are smallest.

    Args:
        schemes: one per feature.
        fixed: whether each feature keeps the collisions of its scheme; its weights count all the same.
        ratio: above 1.

    Raises:
        ValueError: if the ratio is not above 1, or what `Scheme.table` raises. RatioError: if it is out of reach.
    """
    if not ratio > 1:
        raise ValueError(f"{ratio=} must be above 1")
    check_names(features)
    full = sum(rows * dim for _, rows, _ in features)
    budget = int(full / ratio)
    limits = [
        scheme.collisions if keep else _most_collisions(feature, scheme, dim)
        for feature, scheme, keep in zip(features, schemes, fixed, strict=True)
    ]

    def tables(collisions: Sequence[int]) -> list[FeatureTable]:
        return [
            (scheme if keep else replace(scheme, collisions=min(c, limit))).table(feature)
            for feature, scheme, keep, limit, c in zip(features, schemes, fixed, limits, collisions, strict=True)
        ]

    def weights(common: int) -> int:
        return num_parameters(tables([common] * len(features)), dim)

    most = max(limits, default=1)
    if weights(most) > budget:
        raise RatioError(ratio, full / weights(most))
    common = _first(lambda c: weights(c) <= budget, most)
    chosen = tables([common] * len(features))
    sizes = [num_parameters([table], dim) for table in chosen]
    left = budget - sum(sizes)
    fewer = tables([max(1, common - 1)] * len(features))
    for index in sorted(range(len(features)), key=lambda i: -features[i][1]):
        growth = num_parameters([fewer[index]], dim) - sizes[index]
        if growth <= left:
            chosen[index] = fewer[index]
            left -= growth
    return chosen


def _most_collisions(feature: Feature, scheme: Scheme, dim: int) -> int:
    """Returns the collisions with which the feature has the fewest weights."""

    def weights(collisions: int) -> int:
        return num_parameters([replace(scheme, collisions=collisions).table(feature)], dim)

    rows = feature[1]
    # Powers of 1.1 are enough: the minimum is flat.
    candidates = sorted({min(rows, round(1.1**k)) for k in range(len(bin(rows)) * 8)})
    return min(candidates, key=weights)


def _first(holds: Callable[[int], bool], known: int) -> int:
    """Returns the smallest number that `holds`, by bisection from a known one."""
    low, high = 1, known
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
