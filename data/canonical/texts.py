"""The canonical form of one value, as text and as a word. Plain Python: servers need nothing else."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b

INTEGER = r"^(?:0|-?[1-9][0-9]{0,18})$"  # its own word, if it fits
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:(?:[eE][+-]|[eE])[0-9]{1,3})?"
_TIME = r"[0-9]{2}:[0-9]{2}(?::[0-9]{2})?(?:\.[0-9]{1,9})?"
FORMS = (
    rf"^(?:{_NUMBER}|(?i:true|false|[+-]?inf|[+-]?infinity)"
    rf"|{_TIME}|[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[T ]{_TIME}(?:Z|[+-][0-9]{{2}}:?[0-9]{{2}})?)$"
)
_CODE = re.compile(r"-?[0-9]+[eE][0-9]+")  # such as 5e1, which programs do not write for numbers
_IS_NUMBER = re.compile(_NUMBER, re.ASCII)
_IS_MOMENT = re.compile(r"(?:([0-9]{4}-[0-9]{2}-[0-9]{2})[T ])?([0-9:]+)(?:\.([0-9]{1,9}))?(Z|[+-][0-9:]+)?")
_IS_FORMED = re.compile(FORMS[1:-1])
_IS_INTEGER = re.compile(INTEGER[1:-1])
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_WORDS = 1 << 64


def canonical_text(text: str) -> str:
    """Returns the canonical form of a string."""
    if _IS_FORMED.fullmatch(text) is None:
        return text
    if _IS_NUMBER.fullmatch(text):
        return text if _CODE.fullmatch(text) else _number(text)
    word = text.lower()
    if word in ("true", "false"):
        return "1" if word == "true" else "0"
    if word.endswith(("inf", "infinity")):
        return "-inf" if word.startswith("-") else "inf"
    return _moment(text)


def _number(text: str) -> str:
    digits = format(Decimal(text), "f") if "e" in text.lower() else text
    digits = digits.rstrip("0").removesuffix(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


def _moment(text: str) -> str:
    """Returns the canonical form of a date with a time, or of a time."""
    match = _IS_MOMENT.fullmatch(text)
    assert match is not None, "the pattern of all forms is narrower"
    day, time, fraction, offset = match.groups()
    time = time if len(time) > 5 else f"{time}:00"
    fraction = (fraction or "").rstrip("0")
    try:
        moment = datetime.fromisoformat(f"{day or '2000-01-01'}T{time}{offset or ''}")
        moment = moment.astimezone(UTC) if offset else moment
    except (ValueError, OverflowError):
        return text
    rest = f".{fraction}"[: bool(fraction) * 10] + "Z"[: bool(offset)]
    if day is None:
        return f"{time}{rest}"
    clock = moment.strftime("%H:%M:%S")
    return moment.date().isoformat() + ("" if clock + rest == "00:00:00" else f"T{clock}{rest}")


def word_of(text: str) -> int:
    """Returns the word of a string, below 2**64; see `data.canonical`."""
    form = canonical_text(text)
    if _IS_INTEGER.fullmatch(form):
        number = int(form)
        if -(1 << 63) <= number < 1 << 63:
            return number % _WORDS
    return hashed_word(form)


def hashed_word(text: str) -> int:
    """Returns the word of a string that is not converted."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def is_integer(text: str) -> bool:
    """Returns whether a value is an integer of at most 64 bits, signed or unsigned."""
    form = canonical_text(text)
    return bool(_WHOLE.fullmatch(form)) and -(1 << 63) <= int(form) < 1 << 64
