"""Numbers, shares and lists that are typed on the command line: the one place where they are read."""

from dlrmctl.errors import UserError, nearest
from dlrmctl.settings.setting import coerce


def one_of(flag: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises:
    UserError: if the value is none of the choices.
    """
    if value not in choices:
        close = nearest(value, choices)
        hint = f"did you mean {close!r}?" if close else None
        raise UserError(f"{flag} = {value!r} must be one of {', '.join(choices)}", hint)


def whole_number(flag: str, text: str, *, at_least: int) -> int:
    """The number a flag was given as text.

    Raises:
        UserError: if it is no whole number, or too small.
    """
    number = coerce(text, int, flag)
    if number < at_least:
        raise UserError(f"{flag} = {number} must be at least {at_least}")
    return number


def large_number(flag: str, text: str, *, at_least: int, at_most: int | None = None) -> int:
    """As `whole_number`, for numbers that may also be written as 20M, 1.5M or 500k.

    Raises:
        UserError: if it is no whole number, or out of its bounds.
    """
    scale = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}.get(text[-1:].lower(), 1)
    number = coerce(text[:-1], float, flag) * scale if scale > 1 else coerce(text, int, flag)
    if number != int(number):
        raise UserError(f"{flag} = {text!r} is not a whole number")
    if number < at_least:
        raise UserError(f"{flag} = {text} must be at least {at_least:,}")
    if at_most is not None and number > at_most:
        raise UserError(f"{flag} = {text} must be at most {at_most:,}")
    return int(number)


def share(flag: str, text: str) -> float:
    """A share given as a number or in per cent.

    Raises:
        UserError: if it is neither, or not from 0 to below 1.
    """
    number = coerce(text, float, flag)
    value: float = number / 100 if text.strip().endswith("%") else number
    if not 0 <= value < 1:
        raise UserError(f"{flag} = {text} must be at least 0 and below 100 %")
    return value


def number_at_least(flag: str, text: str | None, *, at_least: int, at_most: int | None = None) -> int | None:
    return None if text is None else large_number(flag, text, at_least=at_least, at_most=at_most)


def share_at_most(flag: str, text: str | None) -> float:
    share = 1.0 if text is None else coerce(text, float, flag)
    if not 0 < share <= 1:
        raise UserError(f"{flag} = {text} must be above 0 and at most 1")
    return share


def names_of(flag: str, text: str) -> list[str]:
    """The values of a list.

    Args:
        flag: that it was typed for.

    Raises:
        UserError: if one is empty, or there twice.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"{flag} = {text!r} has an empty value", "put one comma between two values")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{flag} = {text!r} names {name} twice")
    return names


def positive_numbers(flag: str, text: str) -> list[float]:
    """The values of a list of numbers.

    Raises:
        UserError: if one is no number, not above 0, or there twice.
    """
    numbers = [coerce(name, float, flag) for name in names_of(flag, text)]
    if min(numbers) <= 0:
        raise UserError(f"{flag} = {text!r} must all be above 0")
    for number in numbers:
        if numbers.count(number) > 1:
            raise UserError(f"{flag} = {text!r} names {number:g} twice")
    return numbers
