"""How figures of benchmarks read: digits enough for small ones, standard errors where there are any, one and many."""


def rate_text(value: float) -> str:
    """A rate with one decimal, and with three digits where that would hide it."""
    return f"{value:,.1f}" if value >= 10 or value == 0 else f"{value:#.3g}"


def with_error(value: float, error: float | None, form: str) -> str:
    """A mean and its standard error, which one run has not.

    Args:
        form: of the mean, such as "+.5f"; the error is written without a sign.
    """
    return f"{value:{form}} ±{'-' if error is None else format(error, form.lstrip('+'))}"


def counted(number: int, what: str) -> str:
    """1 seed, 2 seeds."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
