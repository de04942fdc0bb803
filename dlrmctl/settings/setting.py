"""Definition of a single setting (type, default, bounds and help in one line of a dataclass), and its checks.

Strings from the command line and typed values from TOML both pass through `coerce` and give the same error messages.
"""

import math
import os
import re
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from decimal import Decimal
from typing import Any, Union, get_args, get_origin, get_type_hints

from dlrmctl.errors import UserError
from dlrmctl.settings.synonyms import names_meant, nearest, same_word

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_COUNT = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,8})?(?:e[0-9]{1,2})?)([kmgb]?)", re.IGNORECASE)


def setting(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
    flag: str | None = None,
    unit: str = "",
    open: bool = False,
    auto: bool = False,
    metavar: str | None = None,
) -> Any:
    """Defines a field of a settings dataclass: its default, help, bounds or choices.

    Args:
        default: None with a type that is not optional means that the value is derived from other settings.
        flag: name of the option, if it differs from the setting's.
        metavar: what help shows for the value; None follows from the type.
        auto: whether "auto" may stand for a value that is not given.
        unit: suffix that a string may have, such as "x" or "%"; the value is the number before it.
        open: whether values other than the choices are accepted here and checked later, with other settings.
    """
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    return field(
        default=default,
        metadata={
            "help": help,
            "bounds": {name: bound for name, bound in bounds.items() if bound is not None},
            "choices": choices,
            "flag": flag,
            "unit": unit,
            "open": open,
            "auto": auto,
            "metavar": metavar,
        },
    )


def flag_of(item: Field[Any]) -> str:
    return item.metadata["flag"] or "--" + item.name.replace("_", "-")


def plain_type(hint: Any) -> Any:
    """The type without its `| None`."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (arm for arm in get_args(hint) if arm is not type(None))
    return hint


def shown(value: Any) -> str:
    """A value as written on the command line."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Converts a string or TOML value to the type of a setting; integers may be written as 500k, 1.5M or 1e6.

    Raises:
        UserError: if the value cannot be converted; `where` names its origin.
    """
    kind = plain_type(hint)
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
            return value.lower() in _TRUE
        raise UserError(f"{where} = {value!r} is neither true nor false")
    if isinstance(value, bool):
        raise UserError(f"{where} = {str(value).lower()} is not {_described(kind)}")
    if kind is str:
        if isinstance(value, str | os.PathLike):
            return os.fspath(value)
    elif get_origin(kind) is tuple:
        if hint := _rewritten(value, kind):
            raise UserError(f"{where} = {value!r} is not {_described(kind)}", hint)
        parts = value.strip().split("-") if isinstance(value, str) else value
        if isinstance(parts, list | tuple) and parts:
            return tuple(coerce(part, int, where) for part in parts)
    elif kind in (int, float):
        try:
            if kind is int and isinstance(value, float) and not value.is_integer():
                raise ValueError
            plain = value.strip().replace("_", "") if isinstance(value, str) else value
            if kind is int and isinstance(plain, str) and (count := _COUNT.fullmatch(plain)):
                scaled = Decimal(count[1]) * _SCALES[count[2].lower()]
                plain = int(scaled) if scaled == int(scaled) else None
            if isinstance(plain, int | float | str) and math.isfinite(number := kind(plain)):
                return number
        except (ValueError, OverflowError):
            pass
    raise UserError(f"{where} = {value!r} is not {_described(kind)}", _rewritten(value, kind))


def _described(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "a list of widths such as 512-256-16"
    return {int: "a whole number", float: "a number", str: "a string"}[kind]


def _rewritten(value: Any, kind: Any) -> str | None:
    """A hint for a number with a comma, or a list of widths without hyphens."""
    if not isinstance(value, str):
        return None
    if get_origin(kind) is tuple:
        is_list = re.fullmatch(r"[\[(]?\s*[0-9]+([,;\sx]+[0-9]+)+\s*[\])]?", value)
        return f"did you mean {'-'.join(re.findall('[0-9]+', value))}?" if is_list else None
    if kind is int and re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+", value):
        return f"did you mean {value.replace(',', '')}?"
    if kind is float and re.fullmatch(r"-?[0-9]*,[0-9]+", value):
        return f"did you mean {value.replace(',', '.')}?"
    return None


def chosen(value: str, choices: Collection[str], where: str) -> str:
    """The choice that matches, ignoring case and `_` in place of `-`.

    Raises:
        UserError: if none matches.
    """
    found = same_word(value, choices)
    if found is None:
        close = nearest(value, choices)
        raise UserError(
            f"{where} = {value!r} must be one of {', '.join(choices)}", f"did you mean {close!r}?" if close else None
        )
    return found


def check_value(item: Field[Any], value: Any, where: str) -> None:
    """Checks a coerced value against the bounds of its setting."""
    for single in value if isinstance(value, tuple) else (value,):
        for name, bound in item.metadata["bounds"].items():
            kept = {
                "above": lambda x, b: x > b,
                "at_least": lambda x, b: x >= b,
                "below": lambda x, b: x < b,
                "at_most": lambda x, b: x <= b,
            }[name](single, bound)
            if not kept:
                raise UserError(f"{where} = {shown(value)} must be {name.replace('_', ' ')} {_bound_text(bound)}")


def _bound_text(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def checked_values(cls: type, given: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    """Converts the values of `name -> (value, where it came from)` to the types of a section and checks their bounds.

    Raises:
        UserError: for an unknown setting, or a value that is mistyped or out of range.
    """
    known = {item.name: item for item in fields(cls)}
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, (raw, where) in given.items():
        if name not in known:
            raise UserError(f"{where} is not a setting", did_you_mean(names_meant(name, known)))
        if known[name].metadata["auto"] and isinstance(raw, str) and raw.strip().lower() == "auto":
            raw = None
        if raw is None and known[name].default is None:
            values[name] = None
            continue
        if isinstance(raw, str) and (unit := known[name].metadata["unit"]):
            raw = raw.strip().removesuffix(unit)
        values[name] = coerce(raw, hints[name], where)
        if choices := known[name].metadata["choices"]:
            text = values[name]
            is_other = known[name].metadata["open"] and same_word(text, choices) is None
            values[name] = text if is_other else chosen(text, choices, where)
        check_value(known[name], values[name], where)
    return values


def did_you_mean(names: Sequence[str]) -> str | None:
    """A hint with the settings found by `names_meant`; None if there are none."""
    parts = [words.partition(" ") for words in names]
    shown = [f"{name} = {value!r}" if value else repr(name) for name, _, value in parts]
    return f"did you mean {' or '.join(shown)}?" if shown else None


def default_of(item: Field[Any]) -> Any:
    return None if item.default is MISSING else item.default
