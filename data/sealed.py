"""JSON files with the name of their format and their own checksum, which is verified on reading."""

import json
import math
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import read_file, write_whole

_CHECKSUM = "crc32"
_KINDS = {int: "a whole number", bool: "true or false", str: "a string", dict: "an object", list: "a list"}
_MOST_BYTES = 1 << 30
_SHOWN = 200  # the most characters of an error
_Kind = TypeVar("_Kind", int, bool, str, dict, list)
_Content = TypeVar("_Content")


def write_sealed(path: Path, format: str, content: Mapping[str, Any]) -> None:
    """Writes the file atomically.

    Args:
        path: of the file.
        format: name and version of the format, such as "dlrmctl-store/3".
        content: plain values for JSON.

    Raises:
        DataError: if it cannot be written.
    """
    sealed = json.loads(json.dumps({"format": format, **content}))
    sealed[_CHECKSUM] = _checksum(sealed)
    write_whole(path, (json.dumps(sealed, indent=1) + "\n").encode())


def read_sealed(
    path: Path, formats: Collection[str], parse: Callable[["Values"], _Content], *, what: str, hint: str, again: str
) -> _Content:
    """Reads the file and parses its content.

    Args:
        path: of the file.
        formats: those that this version reads, the newest last.
        parse: parses the values; raises DataError, without the name of the file.
        what: what the file should be, such as "the manifest of a store".
        hint: the hint if it is something else.
        again: the hint if it has another version, was edited or is damaged.

    Raises:
        DataError: if it cannot be read, or was changed.
    """
    content = read_file(path, most=_MOST_BYTES)
    try:
        sealed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged: {error}", again) from error
    if not isinstance(sealed, dict) or "format" not in sealed:
        raise DataError(f"{path} is not {what}", hint)
    if sealed["format"] not in formats:
        found, newest = _short(repr(sealed["format"])), [*formats][-1]
        raise DataError(f"{path}: the format is {found}, this version reads {newest!r}", again)
    try:
        values = Values(sealed)
        parsed = parse(values)
        if values.whole(_CHECKSUM) != _checksum(sealed):
            raise DataError(f"its content does not match its checksum, {_CHECKSUM} = {sealed[_CHECKSUM]}")
    except DataError as error:
        raise DataError(f"{path}: edited or damaged: {_short(error.message)}", again) from error
    return parsed


def _checksum(sealed: Mapping[str, Any]) -> int:
    """Returns the CRC-32 of everything but the checksum, whatever the order and spaces."""
    content = {key: value for key, value in sealed.items() if key != _CHECKSUM}
    return zlib.crc32(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _short(text: str) -> str:
    """Shortens a text to one line."""
    line = " ".join(text.encode(errors="backslashreplace").decode().split())
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "..."


@dataclass(frozen=True)
class Values:
    """An object of a JSON file. Its entries are checked on access, and errors name them.

    Attributes:
        entries: plain values by name.
        where: prefix of their names in messages, such as "splits.train.".
    """

    entries: Mapping[str, Any]
    where: str = ""

    def whole(self, name: str, *, least: int = 0, most: int | None = None) -> int:
        """Returns a whole number.

        Raises:
            DataError: if it is missing, below `least` or above `most`.
        """
        number = self._take(name, int)
        if most is not None and number > most:
            raise DataError(f"{self.where}{name} = {number} must be at most {most}")
        if number < least:
            raise DataError(f"{self.where}{name} = {number} must be at least {least}")
        return number

    def number(self, name: str) -> float:
        """Returns a number, whole or not; true is not a number."""
        value = self.entries.get(name)
        if type(value) is float:
            return value
        try:
            return float(self._take(name, int))
        except OverflowError:
            raise DataError(f"{self.where}{name} has too many digits") from None

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers that must be there.

        Raises:
            DataError: if it is not, or one of them is something else.
        """
        items = self._take(name, list)
        for index, item in enumerate(items):
            if type(item) not in (int, float) or not abs(item) < math.inf:
                raise DataError(f"{self.where}{name}[{index}] = {_short(repr(item))} must be a finite number")
        return tuple(float(item) for item in items)

    def flag(self, name: str) -> bool:
        return self._take(name, bool)

    def text(self, name: str) -> str:
        return self._take(name, str)

    def inner(self, name: str) -> "Values":
        return Values(self._take(name, dict), f"{self.where}{name}.")

    def each(self, name: str) -> list["Values"]:
        """Returns the objects of a list."""
        items = self._take(name, list)
        for index, item in enumerate(items):
            if not isinstance(item, dict):
                raise DataError(f"{self.where}{name}[{index}] = {item!r} must be {_KINDS[dict]}")
        return [Values(item, f"{self.where}{name}[{index}].") for index, item in enumerate(items)]

    def optional(self, name: str, parse: Callable[["Values"], _Content]) -> _Content | None:
        """Returns a parsed object; None if it is missing."""
        return parse(self.inner(name)) if self.has(name) else None

    def has(self, name: str) -> bool:
        """Returns whether the entry exists and is not null."""
        return self.entries.get(name) is not None

    def require(self, name: str, expected: Any) -> None:
        """Checks that the entry has this value.

        Raises:
            DataError: if it has another value.
        """
        if name not in self.entries:
            raise DataError(f"{self.where}{name} is missing")
        found = self.entries[name]
        if type(found) is not type(expected) or found != expected:
            raise DataError(f"{self.where}{name} = {found!r} must be {expected!r}")

    def _take(self, name: str, kind: type[_Kind]) -> _Kind:
        if name not in self.entries:
            raise DataError(f"{self.where}{name} is missing")
        value = self.entries[name]
        if type(value) is not kind:
            raise DataError(f"{self.where}{name} = {_short(repr(value))} must be {_KINDS[kind]}")
        return value
