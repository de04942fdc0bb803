"""Readers for numbers, fractions, choices and lists on the command line."""

from dlrmctl.errors import UserError
from dlrmctl.settings.setting import chosen, coerce


def one_of(flag: str, value: str, choices: tuple[str, ...]) -> str:
    """Reads one of the choices, ignoring case.

    Raises:
        UserError: if it is none of them.
    """
    return chosen(value, choices, flag)


def whole_number(flag: str, text: str, *, at_least: int, at_most: int | None = None) -> int:
    """Reads an integer, which may also be written as 20M, 1.5M, 500k or 1e6.

    Raises:
        UserError: if it is not an integer or is out of bounds.
    """
    number: int = coerce(text, int, flag)
    if number < at_least:
        raise UserError(f"{flag} = {text} must be at least {at_least:,}")
    if at_most is not None and number > at_most:
        raise UserError(f"{flag} = {text} must be at most {at_most:,}")
    return number


def share(flag: str, text: str, *, zero: bool = True, one: bool = False) -> float:
    """Reads a fraction, written as a number or a percentage: 0.25 or 25%.

    Args:
        zero: whether it may be 0.
        one: whether it may be 1.

    Raises:
        UserError: if it is neither or is out of bounds.
    """
    number = text.strip()
    value: float = coerce(number.removesuffix("%"), float, flag) / (100 if number.endswith("%") else 1)
    if not (value >= 0 if zero else value > 0) or not (value <= 1 if one else value < 1):
        low, high = "at least 0" if zero else "above 0", "at most 1" if one else "below 1"
        raise UserError(f"{flag} = {text} must be {low} and {high}")
    return value


def names_of(flag: str, text: str) -> list[str]:
    """Reads a list of values separated by commas.

    Raises:
        UserError: if a value is empty or repeated.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"{flag} = {text!r} has an empty value", "separate values with single commas")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{flag} = {text!r} names {name} twice")
    return names


def positive_numbers(flag: str, text: str) -> list[float]:
    """Reads a list of numbers above 0.

    Raises:
        UserError: if a value is not a number, not above 0, or repeated.
    """
    numbers = [coerce(name, float, flag) for name in names_of(flag, text)]
    if min(numbers) <= 0:
        raise UserError(f"{flag} = {text!r} must all be above 0")
    for number in numbers:
        if numbers.count(number) > 1:
            raise UserError(f"{flag} = {text!r} names {number:g} twice")
    return numbers
