"""Errors that end a command early: mistakes that the user can fix, with exit status 2, and signals."""

EXIT_USER_ERROR = 2


class UserError(Exception):
    """A mistake that the user can fix; printed as one line without a traceback.

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
    """A signal ended the command, after its state was saved; the exit status follows from the signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.exit_status = 128 + signal_number
