"""The error of this package: one line naming the file, line and value, and a hint."""


class DataError(ValueError):
    """A problem with the user's data that the user can fix.

    Attributes:
        message: one line, without the hint.
        hint: the next step, or None.
        missing_column: the missing column of a table, if that is the problem; else None.
    """

    def __init__(self, message: str, hint: str | None = None, *, missing_column: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.missing_column = missing_column


def system_error(error: BaseException | None) -> OSError | None:
    """Returns the error of the system, with a number, that an error is or was caused by; None if there is none.

    It may not occur again with the same data. Errors of damaged gzip files have no number.
    """
    while error is not None and not (isinstance(error, OSError) and error.errno is not None):
        error = error.__cause__
    return error
