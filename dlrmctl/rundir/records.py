"""The JSON files of a run, read with a check of all that is used: whatever they hold, there are values or one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import read_file
from dlrmctl.data.sealed import Values
from dlrmctl.errors import UserError

_MOST_BYTES = 1 << 30
_SHOWN = 200  # letters of what is wrong
_Content = TypeVar("_Content")


def read_record(path: Path, parse: Callable[[Values], _Content], hint: str | None = None) -> _Content:
    """What `parse` makes of the object in a JSON file.

    Args:
        parse: of the values; raises DataError.
        hint: if the file is damaged.

    Raises:
        UserError, DataError: if the file cannot be read, or is not as `parse` expects it.
    """
    content = read_file(path, most=_MOST_BYTES)
    try:
        return parse(_values(content))
    except DataError as problem:
        raise UserError(f"{path}: damaged: {problem.message[:_SHOWN]}", hint) from None


def read_lines(path: Path, parse: Callable[[Values], _Content], hint: str | None = None) -> list[_Content]:
    """What `parse` makes of each line of a file that grows; the last one may be cut short.

    Raises:
        UserError, DataError: as `read_record`, naming the line.
    """
    found = []
    lines = read_file(path, most=_MOST_BYTES).splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            found.append(parse(_values(line)))
        except DataError as problem:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise UserError(f"{path}, line {number}: damaged: {problem.message[:_SHOWN]}", hint) from None
    return found


def _values(content: bytes) -> Values:
    try:
        found: Any = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as problem:
        raise DataError(f"not JSON: {problem}") from None
    if not isinstance(found, dict):
        raise DataError(f"{str(found)[:_SHOWN]} is not an object")
    return Values(found)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")
