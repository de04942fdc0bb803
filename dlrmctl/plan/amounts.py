"""Amounts as people write them, 80GiB or 25GB/s, and as text again."""

import re

from dlrmctl.errors import UserError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_UNITS |= {unit + "i": 1024**power for power, unit in enumerate("kmgtp", start=1)}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([a-z/]*)\s*", re.IGNORECASE)


def size_of(flag: str, text: str) -> int:
    """Bytes, from 80GiB, 80GB or a plain number.

    Raises:
        UserError: if it is no amount of memory, or nothing.
    """
    return int(_amount(flag, text, "b", "a size such as 80GiB"))


def bandwidth_of(flag: str, text: str) -> float:
    """Bytes per second, from 25GB/s; bits (200Gb/s) are not taken for bytes.

    Raises:
        UserError: if it is no bandwidth, or nothing.
    """
    if re.search(r"[a-z]bits?\b|[kmgtp]b(/s|ps)$", text) or text.endswith(("Gb/s", "Gbps", "Gbit/s")):
        raise UserError(f"{flag} = {text!r} is in bits per second", "an eighth of it in bytes: 200Gb/s is 25GB/s")
    return _amount(flag, text.removesuffix("/s"), "b", "a bandwidth such as 25GB/s")


def rate_of(flag: str, text: str) -> float:
    """Floating point operations per second, from 60T, 60TFLOP/s or 6e13.

    Raises:
        UserError: if it is no such rate, or nothing.
    """
    plain = re.sub(r"flops?(/s)?$", "", text, flags=re.IGNORECASE)
    return _amount(flag, plain, "", "a rate such as 60TFLOP/s")


def _amount(flag: str, text: str, unit: str, what: str) -> float:
    found = _NUMBER.fullmatch(text)
    prefix = found[2].lower().removesuffix(unit) if found else ""
    if not found or prefix not in _UNITS:
        raise UserError(f"{flag} = {text!r} is not {what}")
    amount = float(found[1]) * _UNITS[prefix]
    if not 0 < amount < 1e30:
        raise UserError(f"{flag} = {text!r} must be above 0" if amount <= 0 else f"{flag} = {text!r} is not {what}")
    return amount


def bandwidth_text(bytes_per_second: float) -> str:
    return _with_prefix(bytes_per_second) + "B/s"


def flops_text(flops: float) -> str:
    return _with_prefix(flops) + "FLOP/s"


def _with_prefix(amount: float) -> str:
    """Three digits and a decimal prefix, from mega on."""
    prefixes = {1e15: "P", 1e12: "T", 1e9: "G"}
    size = next((size for size in prefixes if amount >= 0.9995 * size), 1e6)
    return f"{amount / size:.3g} {prefixes.get(size, 'M')}"


def time_text(seconds: float) -> str:
    """Milliseconds with three digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
