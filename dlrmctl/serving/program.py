"""A model as a list of ATen operators: what `torch.export` traced, without the time that its own reader takes to load.

Steps are plain values for JSON, `{"op": ..., "args": [...], "kwargs": {...}}`; an argument is

    {"is": 7}         the result of step 7; results of tensors and inputs come first
    {"dtype": "..."}  a type; {"float": "inf"} a number that JSON lacks
    [...], 1, "x"     a list of arguments, and plain values

Only operators of ATen and a few of Python are called, so a program can compute, and nothing else.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dlrmctl.serving.errors import BundleError

ATEN = "aten."
PYTHON: Mapping[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
}
_NAME = re.compile(r"aten\.([A-Za-z_0-9]+)\.([A-Za-z_0-9]+)")
_DTYPES = {
    str(kind): kind
    for kind in (
        *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
_FLOATS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}


class Program:
    """A function of tensors.

    Args:
        tensors: weights and constants.
        num_inputs: number of arguments.
        steps: see above; values are numbered: tensors, inputs, then the results of the steps.
        output: number of the value that is returned.

    Raises:
        BundleError: if a step is unknown.
    """

    def __init__(
        self, tensors: Sequence[Tensor], num_inputs: int, steps: Sequence[Mapping[str, Any]], output: int
    ) -> None:
        first = len(tensors) + num_inputs
        scope: dict[str, Any] = {f"v{number}": tensor for number, tensor in enumerate(tensors)}
        inputs = [f"v{len(tensors) + number}" for number in range(num_inputs)]
        lines = [f"def run({', '.join(inputs)}):"]
        last = self._last_uses(steps, first, output)
        for number, step in enumerate(steps):
            scope[f"f{number}"] = _function(step["op"])
            terms = [_term(argument, scope, first + number) for argument in step["args"]]
            terms += [f"{_word(key)}={_term(value, scope, first + number)}" for key, value in step["kwargs"].items()]
            lines.append(f"  v{first + number} = f{number}({', '.join(terms)})")
            # What is not needed any more is freed: a large batch would keep every intermediate result.
            lines += [f"  v{value} = None" for value in last.get(number, ()) if value >= len(tensors)]
        lines.append(f"  return {_term({'is': output}, scope, first + len(steps))}")
        code = compile("\n".join(lines), "<program of a bundle>", "exec")
        exec(code, scope)  # of lines made above from numbers and checked names
        self._run: Callable[..., Tensor] = scope["run"]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Returns the output."""
        return self._run(*inputs)

    @staticmethod
    def _last_uses(steps: Sequence[Mapping[str, Any]], first: int, output: int) -> dict[int, list[int]]:
        """Returns the values that are used by a step for the last time, by the number of the step."""
        uses: dict[int, int] = {}
        for number, step in enumerate(steps):
            for value in values_in([step["args"], list(step["kwargs"].values())]):
                uses[value] = number
            uses.setdefault(first + number, number)
        uses.pop(output, None)
        found: dict[int, list[int]] = {}
        for value, number in uses.items():
            found.setdefault(number, []).append(value)
        return found


def values_in(argument: Any) -> list[int]:
    """Returns the numbers of the values in an argument."""
    if isinstance(argument, list):
        return [value for one in argument for value in values_in(one)]
    return [argument["is"]] if isinstance(argument, dict) and "is" in argument else []


def _function(name: str) -> Callable[..., Any]:
    if name in PYTHON:
        return PYTHON[name]
    match = _NAME.fullmatch(name)
    try:
        if match is not None:
            return getattr(getattr(torch.ops.aten, match[1]), match[2])
    except AttributeError:
        pass
    raise BundleError(f"the program calls {name!r}, which torch {torch.__version__} does not have")


def _word(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise BundleError(f"the program has an argument {name!r}")
    return name


def _term(argument: Any, scope: dict[str, Any], before: int) -> str:
    """Returns an argument as Python."""
    if argument is None or isinstance(argument, bool | int | str):
        return repr(argument)
    if isinstance(argument, float):
        return repr(argument)
    if isinstance(argument, list):
        return f"[{', '.join(_term(one, scope, before) for one in argument)}]"
    if isinstance(argument, dict) and len(argument) == 1:
        ((kind, value),) = argument.items()
        if kind == "is" and type(value) is int and 0 <= value < before:
            return f"v{value}"
        found = _DTYPES.get(value) if kind == "dtype" else _FLOATS.get(value) if kind == "float" else None
        if found is not None:
            name = f"c{len(scope)}"
            scope[name] = found
            return name
    raise BundleError(f"the program has an argument {str(argument)[:60]!r}")
