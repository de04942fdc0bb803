"""Typer options made from the settings, so that a setting is written down once."""

import inspect
from collections.abc import Callable, Collection
from dataclasses import fields
from functools import partial
from typing import Annotated, Any, get_type_hints

import typer

from dlrmctl.config import SECTIONS
from dlrmctl.errors import UserError, nearest
from dlrmctl.settings import coerce, default_of, flag_of, plain_type, shown

LAUNCH_PANEL = "Launch and output"
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=LAUNCH_PANEL)]

_PANELS = {
    "data": "Data",
    "model": "Model",
    "embeddings": "Embeddings",
    "optim": "Optimizers",
    "schedule": "Learning-rate schedule",
    "train": "Training loop",
}


def with_settings(only: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one option per setting; those typed arrive as its argument `flags`, name -> text.

    Args:
        only: names of the settings that matter to the command; empty for all.
    """
    return partial(_with_settings, only=only)


def _with_settings(command: Callable[..., None], only: Collection[str]) -> Callable[..., None]:
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "flags"]
    options = [_parameter(section, item) for section, cls in SECTIONS.items() for item in fields(cls)]  # type: ignore[arg-type]
    options = [option for option in options if not only or option.name in only]

    def run(**values: Any) -> None:
        names = {option.name for option in options}
        flags = {name: value for name, value in values.items() if name in names and value is not None}
        command(**{name: value for name, value in values.items() if name not in names}, flags=flags)

    run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*own, *options]}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _parameter(section: str, item: Any) -> inspect.Parameter:
    hint = get_type_hints(SECTIONS[section])[item.name]
    choices = item.metadata["choices"]
    is_switch = plain_type(hint) is bool
    metavar = "|".join(choices) if choices else {int: "N", float: "X", str: "TEXT"}.get(plain_type(hint), "W-W-...")
    default = default_of(item)
    flag = flag_of(item)
    option = typer.Option(
        f"{flag}/--no-{flag.removeprefix('--')}" if is_switch else flag,
        help=item.metadata["help"] + ("" if default is None else rf" \[default: {shown(default)}]"),
        metavar=None if is_switch else metavar,
        show_default=False,
        rich_help_panel=_PANELS[section],
    )
    annotation = Annotated[bool | None, option] if is_switch else Annotated[str | None, option]
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


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
