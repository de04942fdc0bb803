"""Lists of values with commas between them, as options of benchmarks take them."""

from collections.abc import Mapping
from dataclasses import fields

from dlrmctl.config import SECTIONS, Config, resolve
from dlrmctl.errors import UserError
from dlrmctl.settings import coerce

BASE = "base"  # the variant of the settings themselves
_FLAGS = {"precision": "--precisions", "embedding": "--embeddings", "dense_optimizer": "--optimizers"}
_FLAGS |= {"batch_size": "--batch-sizes"}


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


def step_variants(flags: Mapping[str, str], lists: Mapping[str, str]) -> dict[str, Config]:
    """The settings, and for every value in a list the settings with this value, where they are others.

    Args:
        flags: typed settings.
        lists: setting -> values with commas between them.

    Raises:
        UserError: for a value that the setting does not take, naming the option of the list.
    """
    configs = {BASE: resolve({}, flags)}
    for name, text in lists.items():
        section = next(key for key, cls in SECTIONS.items() if name in {item.name for item in fields(cls)})  # type: ignore[arg-type]
        others = {key: value for key, value in flags.items() if key != name}
        for value in names_of(_FLAGS[name], text):
            config = resolve({section: {name: value}}, others, file_name=_FLAGS[name])
            if config not in configs.values():
                configs[f"batch {value}" if name == "batch_size" else value] = config
    return configs
