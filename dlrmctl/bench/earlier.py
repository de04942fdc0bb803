"""An earlier result of a benchmark: read from its file, and refused where nothing can be held against it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrmctl.bench.against import CONDITIONS, figures
from dlrmctl.errors import UserError

_LONGEST_INTEGER = 15  # digits; longer ones are read as floats, which end in infinity and not in an error


def read_result(path: Path, command: str) -> dict[str, Any]:
    """A result that `--out` wrote.

    Raises:
        UserError: if it is not there, is no result of this command, or has no figure to compare with.
    """
    hint = f"`dlrmctl bench {command} -o FILE` writes one; give a file that is not there yet"
    try:
        result = json.loads(path.read_text(), parse_int=_integer)
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {(problem.strerror or str(problem)).lower()}", hint) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is no JSON, so no result of a benchmark", hint) from None
    if not isinstance(result, dict) or not isinstance(result.get("command"), str):
        raise UserError(f"{path}: is no result of a benchmark", hint)
    if result["command"] != command:
        raise UserError(f"{path}: is a result of `bench {result['command']}`, not of `bench {command}`", hint)
    damage = _damage(result)
    if damage:
        raise UserError(f"{path}: is no result of a benchmark: {damage}", hint)
    if not any(figures(result)):
        raise UserError(f"{path}: holds no figure with a spread, so nothing can be compared with it", hint)
    return result


def _damage(result: Mapping[str, Any], where: str = "") -> str | None:
    """What is not as every result has it, or None."""
    for name in ("environment", "options"):
        if name not in result:
            return f"it has no {where}{name}"
    for name in (*CONDITIONS, "results"):
        if name in result and not isinstance(result[name], Mapping):
            return f"its {where}{name} = {str(result[name])[:40]} must be an object with names"
    for name, part in result.get("results", {}).items():
        if not isinstance(part, Mapping):
            return f"its {where}results.{name} = {str(part)[:40]} must be an object with names"
        damage = _damage(part, f"{where}results.{name}.")
        if damage:
            return damage
    return None


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _LONGEST_INTEGER else float(text)
