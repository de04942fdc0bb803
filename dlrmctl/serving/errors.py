"""The errors of serving: a bundle that cannot be used, and a row that cannot be scored."""

from typing import Any

_SHOWN = 60  # characters of a value


class BundleError(ValueError):
    """Raised for a file that is no bundle, is damaged, or is of another version."""


class RowError(ValueError):
    """Raised for a row that cannot be scored.

    Attributes:
        row: its number in the call, from 0.
        column: the column with the problem; None if the row itself is wrong.
        problem: what is wrong, without row and column.
    """

    def __init__(self, row: int, column: str | None, problem: str) -> None:
        where = f"row {row}" if column is None else f"row {row}, column {column!r}"
        super().__init__(f"{where}: {problem}")
        self.row, self.column, self.problem = row, column, problem

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {"error": str(self), "row": self.row, "column": self.column, "problem": self.problem}


class ValueProblem(ValueError):
    """Raised for one value, or one of a pair; callers know its row and column.

    Attributes:
        place: 0, or 1 for the second value of a pair.
    """

    place = 0


def shown(value: Any) -> str:
    """Returns a value for a message, shortened."""
    try:
        text = repr(str(value)) if isinstance(value, str) else repr(value)
    except ValueError:  # an integer, alone or in a list, whose digits Python refuses to convert
        text = f"{type(value).__name__} of thousands of digits"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
