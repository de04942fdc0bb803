"""The errors of this library that are handled by their kind."""


class NonFiniteValueError(ValueError):
    """A trained table holds a value that is infinite or not a number."""
