"""Compares a benchmark result with an earlier one: changes beyond the noise, and differences of the settings."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrmctl.console.console import output, print_table
from dlrmctl.console.text import counted
from dlrmctl.data.errors import DataError
from dlrmctl.data.files import read_file
from dlrmctl.errors import UserError

_RANGE = {"median", "fastest", "slowest"}
CONDITIONS = ("environment", "options", "settings")
_STORE = ("data", "train_examples", "block_rows")  # what describes a store; its bytes per row are a result
_MACHINE = {"limits", "machine", "floor_ms", "floor_parts_ms"}  # measures the machine only
_ERRORS = 2.0  # standard errors of a difference at 5 % significance
_MEMORY = 0.05  # the allocator alone changes peak memory by a few percent
_LARGER_IS_BETTER = ("per_second", "gflops", "share", "to_base", "auc", "gap_closed")
_TIMES = ("_ms", "ns_per_row", "seconds", "per_second", "gflops")
_MOST_BYTES = 1 << 28
_LONGEST_INTEGER = 15  # digits; longer ones are read as floats, which become infinity instead of an error


@dataclass(frozen=True)
class Figure:
    """A measured value with its uncertainty: the range of its rounds, or a standard error."""

    value: float
    low: float
    high: float
    error: float | None = None

    def differs(self, other: "Figure") -> bool:
        """Returns whether ranges are disjoint, or the difference is above 2 of its standard errors."""
        if self.error is not None and other.error is not None:
            return abs(self.value - other.value) > _ERRORS * math.hypot(self.error, other.error)
        return self.high < other.low or other.high < self.low


def figures(result: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Figure]]:
    """Returns every value of a result that has a spread, and every size in bytes, by its place in the result."""
    if not isinstance(result, Mapping):
        return
    if set(result) >= _RANGE and all(isinstance(result[key], int | float) for key in _RANGE):
        values = [float(result[key]) for key in _RANGE]
        yield path, Figure(float(result["median"]), min(values), max(values))
        return
    for key, value in result.items():
        error = result.get(f"{key}_se")
        if isinstance(value, int | float) and isinstance(error, int | float):
            yield (*path, key), Figure(value, value, value, error)
        elif isinstance(value, int | float) and key.endswith("bytes"):
            yield (*path, key), Figure(value, value * (1 - _MEMORY), value * (1 + _MEMORY))
        elif key not in CONDITIONS:
            yield from figures(value, (*path, key))


def compare(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Compares two results of one command.

    Returns:
        "compared": figures that both have; "changes": those beyond the noise, each with "figure", "earlier", "now",
        "verdict", and whether it is "of_machine"; "different": settings, options, ranks, the store that was read and
        properties of the machine with other values.
    """
    before, after = dict(figures(earlier)), dict(figures(now))
    both = [path for path in after if path in before]
    changes = [
        {
            "of_machine": any(part in _MACHINE for part in path),
            "figure": ", ".join(path).replace("_", " "),
            "earlier": before[path].value,
            "now": after[path].value,
            "verdict": _verdict(path, before[path].value, after[path].value),
        }
        for path in both
        if after[path].differs(before[path])
    ]
    old, new = dict(_conditions(earlier)), dict(_conditions(now))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    different = [{"what": name, "earlier": old.get(name), "now": new.get(name)} for name in names]
    return {"compared": len(both), "changes": changes, "different": different}


def show_comparison(file: str, comparison: Mapping[str, Any]) -> None:
    """Prints the comparison."""
    changes, compared = comparison["changes"], comparison["compared"]
    for each in comparison["different"]:
        output.print(f"different: {each['what']} = {_text(each['now'])} now, {_text(each['earlier'])} in {file}")
    if not compared:
        output.print(f"against {file}: nothing to compare, no figure with a spread is in both")
        return
    if not changes:
        output.print(f"against {file}: nothing changed beyond the noise, of {counted(compared, 'figure')}")
        return
    print_table(
        f"against {file}: {len(changes)} of {counted(compared, 'figure')} changed beyond the noise",
        ["", "earlier", "now", "ratio", ""],
        [
            [
                each["figure"],
                f"{each['earlier']:,.4g}",
                f"{each['now']:,.4g}",
                f"{each['now'] / each['earlier']:.3f}" if each["earlier"] else "-",
                each["verdict"],
            ]
            for each in changes
        ],
    )
    if any(each["of_machine"] for each in changes):
        output.print("the machine itself was faster or slower: compare shares and ratios, not times")


def _verdict(path: tuple[str, ...], earlier: float, now: float) -> str:
    name = " ".join(path)
    if name.endswith("bytes"):
        return "larger" if now > earlier else "smaller"
    better = (now > earlier) == any(word in name for word in _LARGER_IS_BETTER)
    if any(word in name for word in _TIMES):
        return "faster" if better else "slower"
    return "better" if better else "worse"


def _conditions(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Returns names and values of what a result was measured with, and of its parts."""
    for section in CONDITIONS:
        yield from _leaves(result.get(section, {}))
    yield "ranks", result.get("ranks")
    if isinstance(store := result.get("store"), Mapping):
        yield from ((f"store.{name}", store.get(name)) for name in _STORE)
    for command, part in result.get("results", {}).items():
        yield from ((f"{command}: {name}", value) for name, value in _conditions(part))


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield ".".join(path), tree


def _text(value: Any) -> str:
    return "nothing" if value is None else str(value)


def read_result(path: Path, command: str) -> dict[str, Any]:
    """Reads a result that `--out` wrote.

    Raises:
        UserError: if it cannot be read, is not a result of this command, or has no figure to compare.
    """
    hint = f"`dlrmctl bench {command} -o FILE` writes one"
    try:
        result = json.loads(read_file(path, most=_MOST_BYTES), parse_int=_integer)
    except DataError as problem:
        raise UserError(problem.message, hint) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON, so not a benchmark result", hint) from None
    if not isinstance(result, dict) or not isinstance(result.get("command"), str):
        raise UserError(f"{path} is not a benchmark result", hint)
    if result["command"] != command:
        raise UserError(f"{path} is a result of `bench {result['command']}`, not of `bench {command}`", hint)
    damage = _damage(result)
    if damage:
        raise UserError(f"{path} is not a benchmark result: {damage}", hint)
    if not any(figures(result)):
        raise UserError(f"{path} has no figure with a spread to compare with", hint)
    return result


def _damage(result: Mapping[str, Any], where: str = "") -> str | None:
    """Returns the first thing that is missing in a result, or None."""
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
