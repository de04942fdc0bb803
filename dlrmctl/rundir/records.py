"""Reading the JSON files of a run: all values are checked, and damage is reported in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import read_file
from dlrmctl.data.sealed import Values
from dlrmctl.errors import UserError

MOST_BYTES = 1 << 30
_SHOWN = 200  # characters of a problem
_Content = TypeVar("_Content")


def read_record(path: Path, parse: Callable[[Values], _Content], hint: str | None = None) -> _Content:
    """Parses the object in a JSON file with `parse`.

    Args:
        parse: converts the values; raises DataError.
        hint: for a damaged file.

    Raises:
        UserError, DataError: if the file cannot be read or parsed.
    """
    content = read_file(path, most=MOST_BYTES)
    try:
        return parse(_values(content))
    except DataError as problem:
        raise UserError(f"{path}: damaged: {problem.message[:_SHOWN]}", hint) from None


def read_lines(path: Path, parse: Callable[[Values], _Content], hint: str | None = None) -> list[_Content]:
    """Parses each line of a file that is appended to; the last line may be truncated.

    Raises:
        UserError, DataError: see `read_record`; the message names the line.
    """
    found = []
    lines = read_file(path, most=MOST_BYTES).splitlines(keepends=True)
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
