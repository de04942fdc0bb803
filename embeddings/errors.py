"""Errors of this library that callers catch by type."""


class NonFiniteValueError(ValueError):
    """Raised when a trained table holds an infinity or NaN."""
