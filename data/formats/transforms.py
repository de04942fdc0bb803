"""The transforms of dense values: their formulas, and their description in a store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlrmctl.data.sealed import Values

MISSING = -1.0  # the default for missing values: below all others after the logarithm of counts
_NAN = "nan"


@dataclass(frozen=True)
class Transform:
    """A function of dense values.

    Attributes:
        formula: for people and servers.
        apply: maps numbers of any shape; float64 for float64.
    """

    formula: str
    apply: Callable[[np.ndarray], np.ndarray]


LOG = Transform("log(max(x, -2) + 3)", lambda x: np.log(np.maximum(x, -2) + 3.0))  # 0 or more
LOG1P = Transform("log(1 + max(x, 0))", lambda x: np.log1p(np.maximum(x, 0)))
NONE = Transform("x", lambda x: x)
SQRT = Transform("sqrt(max(x, 0))", lambda x: np.sqrt(np.maximum(x, 0)))
TRANSFORMS = {"log": LOG, "log1p": LOG1P, "sqrt": SQRT, "none": NONE}


@dataclass(frozen=True)
class ColumnTransform:
    """The transform of one dense column: the formula, and the stand-in for a missing value."""

    formula: str
    missing: float | None


@dataclass(frozen=True)
class DenseTransform:
    """The transforms of all dense values of a source.

    Attributes:
        missing: the stand-in for a missing value in models without normalization; None if values are never missing, or
            columns differ in it.
        formula: formula of every column; None if each has its own.
        columns: the transform of each column, by name, if they have their own.
        type: type of the stored values; the schema lists columns of another type.
        nan: whether missing values are stored as NaN. Earlier versions stored the stand-in.
    """

    missing: float | None
    formula: str | None = None
    columns: Mapping[str, ColumnTransform] = field(default_factory=dict)
    type: str = "float16"
    nan: bool = True

    def stand_in(self, name: str) -> float:
        """Returns the stand-in for a missing value of a column, rounded to float16."""
        missing = self.columns[name].missing if name in self.columns else self.missing
        return float(np.float16(MISSING if missing is None else missing))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        kept = {"kept_missing": _NAN} if self.nan else {}
        if self.formula is not None:
            return {"formula": self.formula, "missing": self.missing, "type": self.type, **kept}
        columns = {name: {"formula": c.formula, "missing": c.missing} for name, c in self.columns.items()}
        return {"columns": columns, "missing": self.missing, "type": self.type, **kept}

    @classmethod
    def from_values(cls, values: Values) -> "DenseTransform":
        """Parses what `to_dict` returned.

        Raises:
            DataError: if a value is missing or has the wrong type.
        """
        missing, type, nan = _missing(values), values.text("type"), values.has("kept_missing")
        if nan:
            values.require("kept_missing", _NAN)
        if values.has("formula"):
            return cls(missing, values.text("formula"), type=type, nan=nan)
        columns = values.inner("columns")
        each = {name: columns.inner(name) for name in columns.entries}
        return cls(
            missing,
            columns={name: ColumnTransform(c.text("formula"), _missing(c)) for name, c in each.items()},
            type=type,
            nan=nan,
        )


def _missing(values: Values) -> float | None:
    return values.number("missing") if values.has("missing") else None
