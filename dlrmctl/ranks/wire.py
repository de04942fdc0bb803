"""Values that ranks send to each other as JSON: reading them runs no code, unlike pickles."""

import json
from pathlib import Path
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.errors import UserError

_ERRORS: dict[str, type[UserError] | type[DataError]] = {"UserError": UserError, "DataError": DataError}


def encode(value: Any) -> bytes:
    """Encodes None, numbers, strings, paths, the errors for users, and lists, tuples and dictionaries of these.

    Raises:
        TypeError: for another value, or a key that is not a string.
    """
    return json.dumps(_plain(value)).encode()


def decode(content: bytes) -> Any:
    """Decodes what `encode` returned."""
    return _value(json.loads(content))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return ["path", str(value)]
    if isinstance(value, UserError | DataError):
        return ["error", type(value).__name__, value.message, value.hint]
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", *map(_plain, value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(one) for key, one in value.items()}
    raise TypeError(f"ranks cannot send each other a {type(value).__name__}")


def _value(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _value(one) for key, one in plain.items()}
    if not isinstance(plain, list):
        return plain
    kind, *parts = plain
    if kind == "path":
        return Path(parts[0])
    if kind == "error":
        return _ERRORS[parts[0]](parts[1], parts[2])
    values = map(_value, parts)
    return list(values) if kind == "list" else tuple(values)
