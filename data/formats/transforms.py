"""What becomes of dense values before a model sees them: the formulas, and what is kept of them beside the examples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlrmctl.data.sealed import Values

MISSING = -1.0  # the usual value for a missing one: below every other after the logarithm of counts


@dataclass(frozen=True)
class Transform:
    """A function of dense values.

    Attributes:
        formula: as people and servers read it.
        apply: takes numbers of any shape; gives float64 for float64.
    """

    formula: str
    apply: Callable[[np.ndarray], np.ndarray]


LOG = Transform("log(max(x, -2) + 3)", lambda x: np.log(np.maximum(x, -2) + 3.0))  # 0 or more
LOG1P = Transform("log(1 + max(x, 0))", lambda x: np.log1p(np.maximum(x, 0)))
NONE = Transform("x", lambda x: x)
TRANSFORMS = {"log": LOG, "log1p": LOG1P, "none": NONE}


@dataclass(frozen=True)
class ColumnTransform:
    """What was done to one dense column: the formula, and the value that stands for a missing one."""

    formula: str
    missing: float | None


@dataclass(frozen=True)
class DenseTransform:
    """What was done to all dense values of a source.

    Attributes:
        missing: the value that stands for a missing one; None if values are never missing, or columns differ in it.
        formula: of every column; None if each has its own.
        columns: what was done to each, by name, if they have their own.
        type: of the values that were kept.
    """

    missing: float | None
    formula: str | None = None
    columns: Mapping[str, ColumnTransform] = field(default_factory=dict)
    type: str = "float16"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        if self.formula is not None:
            return {"formula": self.formula, "missing": self.missing, "type": self.type}
        columns = {name: {"formula": c.formula, "missing": c.missing} for name, c in self.columns.items()}
        return {"columns": columns, "missing": self.missing, "type": self.type}

    @classmethod
    def from_values(cls, values: Values) -> "DenseTransform":
        """What `to_dict` described.

        Raises:
            DataError: if a value is missing or has the wrong type.
        """
        missing, type = _missing(values), values.text("type")
        if values.has("formula"):
            return cls(missing, values.text("formula"), type=type)
        columns = values.inner("columns")
        each = {name: columns.inner(name) for name in columns.entries}
        return cls(
            missing,
            columns={name: ColumnTransform(c.text("formula"), _missing(c)) for name, c in each.items()},
            type=type,
        )


def _missing(values: Values) -> float | None:
    return values.number("missing") if values.has("missing") else None
