"""Parses and formats amounts such as 80GiB or 25GB/s; B is a byte, b a bit."""

import re

from dlrmctl.errors import UserError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([a-zA-Z/]*)\s*")
_BITS = re.compile(r"([kKmMgGtTpP]?[iI]?)(?:b|[bB][iI][tT][sS]?)(/s|ps)?")
_FLOPS = re.compile(r"flops?(/s)?\s*$", re.IGNORECASE)
_LEAST_FLOPS = 1e6  # no machine for training is slower: the unit must be missing


_UNITS |= {unit + "i": 1024**power for power, unit in enumerate("kmgtp", start=1)}


def size_of(flag: str, text: str) -> int:
    """Parses bytes, such as 80GiB or 80GB.

    Raises:
        UserError: if it is not an amount of memory, is 0, in bits, or has no unit.
    """
    what = "a size such as 80GiB"
    number, unit = _parted(flag, text, text, what)
    if not unit:
        raise UserError(f"{flag} = {text!r} has no unit", f"{number}GiB?")
    _refuse_bits(flag, text, number, unit)
    return int(_amount(flag, text, number, unit.removesuffix("B"), what, least=1))


def bandwidth_of(flag: str, text: str) -> float:
    """Parses bytes per second, such as 25GB/s; bits (200Gb/s) are rejected.

    Raises:
        UserError: if it is not a bandwidth, is 0, in bits, or has no unit.
    """
    what = "a bandwidth such as 25GB/s"
    number, unit = _parted(flag, text, text, what)
    if not unit:
        raise UserError(f"{flag} = {text!r} has no unit", f"{number}GB/s?")
    _refuse_bits(flag, text, number, unit)
    prefix = unit.removesuffix("/s")
    if prefix.lower() in _UNITS:
        bytes_or_bits = f"{number}{prefix}B/s for bytes, {_eighth(number)}{prefix}B/s if it is in bits"
        raise UserError(f"{flag} = {text!r} may be bytes or bits", bytes_or_bits)
    if unit.endswith("Bps"):
        raise UserError(f"{flag} = {text!r} is not {what}", f"{number}{unit.removesuffix('ps')}/s")
    return _amount(flag, text, number, prefix.removesuffix("B"), what)


def rate_of(flag: str, text: str) -> float:
    """Parses floating point operations per second, such as 60T, 60TFLOP/s or 6e13.

    Raises:
        UserError: if it is not such a rate, is 0, or so small that a unit must be missing.
    """
    what = "a rate such as 60TFLOP/s"
    number, unit = _parted(flag, text, _FLOPS.sub("", text), what)
    rate = _amount(flag, text, number, unit, what)
    if not unit and rate < _LEAST_FLOPS:
        raise UserError(f"{flag} = {text!r} is too slow", f"{number}TFLOP/s?")
    return rate


def _parted(flag: str, text: str, amount: str, what: str) -> tuple[str, str]:
    """Splits a number from what follows it."""
    found = _AMOUNT.fullmatch(amount)
    if not found:
        raise UserError(f"{flag} = {text!r} is not {what}")
    return found[1], found[2]


def _refuse_bits(flag: str, text: str, number: str, unit: str) -> None:
    found = _BITS.fullmatch(unit)
    if found:
        per_second = "/s" if found[2] else ""
        unit = f"{found[1]}B{per_second}"
        raise UserError(
            f"{flag} = {text!r} is in bits" + (" per second" if per_second else ""),
            f"in bytes that is {_eighth(number)}{unit}; {number}{unit} if bytes are meant",
        )


def _eighth(number: str) -> str:
    return f"{float(number) / 8:.12g}"


def _amount(flag: str, text: str, number: str, prefix: str, what: str, *, least: float = 0.0) -> float:
    if prefix.lower() not in _UNITS:
        raise UserError(f"{flag} = {text!r} is not {what}")
    amount = float(number) * _UNITS[prefix.lower()]
    if amount <= 0 or amount < least:
        raise UserError(f"{flag} = {text!r} must be above 0")
    if amount >= 1e30:
        raise UserError(f"{flag} = {text!r} is not {what}")
    return amount


def bandwidth_text(bytes_per_second: float) -> str:
    return _with_prefix(bytes_per_second) + "B/s"


def flops_text(flops: float) -> str:
    return _with_prefix(flops) + "FLOP/s"


def _with_prefix(amount: float) -> str:
    """Formats with three digits and a decimal prefix, from mega on."""
    prefixes = {1e15: "P", 1e12: "T", 1e9: "G"}
    size = next((size for size in prefixes if amount >= 0.9995 * size), 1e6)
    return f"{amount / size:.3g} {prefixes.get(size, 'M')}"


def time_text(seconds: float) -> str:
    """Formats as milliseconds or seconds with three digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
