"""Names of the rows of a table, for output and messages."""

from collections.abc import Sequence

from dlrmctl.console.text import shortened
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.schema import MISSING_ROW, RARE_ROW, RESERVED_ROWS

_EXAMPLES = 3
_MISSING, _RARE = "missing", "rare"


def row_names(features: FeatureSpace, feature: str, rows: Sequence[int], values: Sequence[str | None]) -> list[str]:
    """The names of rows of a table: a value, "missing" or "rare", or otherwise "id 7".

    Args:
        features, feature: of the table.
        rows: ids of the rows.
        values: of these rows, see `FeatureSpace.values_of`. Long values are shortened, and values that equal a name of
            missing or rare values are quoted.
    """
    has_rare = features.sorted_by_frequency(feature)  # has a vocabulary
    return [_name(row, value, has_rare=has_rare) for row, value in zip(rows, values, strict=True)]


def _name(row: int, value: str | None, *, has_rare: bool) -> str:
    if value is not None:
        return f'"{value}"' if value in (_MISSING, _RARE) else shortened(value)
    if row == MISSING_ROW:
        return _MISSING
    return _RARE if has_rare and row == RARE_ROW else f"id {row}"


def known_values(features: FeatureSpace, feature: str) -> str:
    """Known values of a feature for a message, such as "values such as 7, 13"; empty if there are none.

    Raises:
        DataError: if a file of the features is missing or changed.
    """
    rows = next(sparse.rows for sparse in features.schema.sparse if sparse.name == feature)
    chosen = range(RESERVED_ROWS, min(RESERVED_ROWS + _EXAMPLES, rows))
    values = [shortened(value) for value in features.values_of(feature, chosen) if value is not None]
    return f"values such as {', '.join(values)}" if values else ""
