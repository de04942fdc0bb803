"""The error of this package: one clear line naming the file, the line and the value, and what to do next."""


class DataError(ValueError):
    """A problem with the user's data that the user can see and mend.

    Attributes:
        message: one line, without the hint.
        hint: the next step, or None.
        missing_column: the column that a table lacks, where that is the problem; else None.
    """

    def __init__(self, message: str, hint: str | None = None, *, missing_column: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.missing_column = missing_column
