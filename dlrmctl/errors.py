"""The errors that end work early: mistakes a user can fix, in one sentence with exit status 2, and signals."""

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Something the user can mend; shown as one line without a traceback.

    Args:
        message: one sentence that names the value and where it came from.
        hint: the next step, if there is one.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str | None]]:
        return type(self), (self.message, self.hint)


class Interrupted(Exception):
    """A signal ended the work after what must be saved was saved; the exit status says which signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.exit_status = 128 + signal_number


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` probably meant, or None."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None
