"""Reads JSON lines as columns: one object per line.

Numbers keep their digits, so integers of any size are exact. Other keys are ignored; a missing key and null are missing
values. A line that is not an object is omitted.
"""

import json
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

import numpy as np
import polars as pl

from dlrmctl.data.formats.raw import BadLine
from dlrmctl.data.formats.table_text import Records

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_SHOWN = 40  # characters of a wrong value
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
_TRUTHS = {True: "true", False: "false"}


class _Wrong(ValueError):
    """Raised for a bad line: the reason and the problem of a `BadLine`."""


def read_objects(records: Records) -> tuple[list[dict[str, Any]], np.ndarray, list[BadLine]]:
    """Returns the objects, the line of each (int64), and the bad lines, in order.

    Numbers are strings.
    """
    objects: list[dict[str, Any]] = []
    lines, bad = [], list(records.bad)
    edges = zip(records.starts_R.tolist(), records.ends_R.tolist(), records.lines_R.tolist(), strict=True)
    for start, end, line in edges:
        try:
            objects.append(_object(records.content[start:end]))
            lines.append(line)
        except UnicodeError:
            bad.append(BadLine(line, "not UTF-8", "the line is not UTF-8"))
        except _Wrong as wrong:
            bad.append(BadLine(line, *wrong.args))
    return objects, np.array(lines, dtype=np.int64), sorted(bad, key=lambda one: one.line)


def _object(line: bytes) -> dict[str, Any]:
    """Raises:
    UnicodeError: for bytes that are not UTF-8, and for escapes of half a character.
    _Wrong: for anything but an object.
    """
    text = line.decode()
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        if not text.strip():
            raise _Wrong("blank", "the line is blank") from None
        detail = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise _Wrong("not JSON", f"not JSON: {detail[:1].lower()}{detail[1:]}") from None
    if not isinstance(value, dict):
        raise _Wrong("no JSON object", f"the line is {_short(text)}, expected a JSON object")
    if b"\\ud" in line.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def to_json_frame(
    objects: Sequence[Mapping[str, Any]], lines_N: np.ndarray, wanted: Mapping[str, bool], separator: str
) -> tuple[pl.DataFrame, np.ndarray, list[BadLine]]:
    """Selects the objects whose values fit the columns.

    Args:
        objects: as returned by `read_objects`.
        lines_N: the line of each.
        wanted: the columns, and whether each has lists.
        separator: separator of the values of a list that is written as one string.

    Returns:
        The columns as strings, or lists of them; bool [N], which objects are rows of it; and the lines of the others.
    """
    columns: dict[str, pl.Series] = {}
    wrong: dict[int, BadLine] = {}
    for name, lists in wanted.items():
        found = [fields.get(name) for fields in objects]
        if lists or not {*map(type, found)} <= {str, NoneType}:
            for row, value in enumerate(found):
                try:
                    found[row] = _list(value, separator) if lists else _scalar(value)
                except _Wrong:
                    expected = "a list of values" if lists else "one value"
                    problem = f"{name} is {_shown(value)}, expected {expected}"
                    found[row] = None
                    wrong.setdefault(row, BadLine(int(lines_N[row]), f"not {expected}", problem))
        columns[name] = pl.Series(found, dtype=pl.List(pl.String) if lists else pl.String)
    frame, good_N = pl.DataFrame(columns), np.ones(len(objects), dtype=bool)
    if wrong:
        good_N[list(wrong)] = False
        frame = frame.filter(good_N)
    return frame, good_N, list(wrong.values())


def kept_texts(objects: Sequence[Mapping[str, Any]], names: Sequence[str]) -> pl.DataFrame:
    """Returns columns of strings, with lists and objects as JSON."""
    found = {name: [fields.get(name) for fields in objects] for name in names}
    texts = {
        name: [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        for name, values in found.items()
    }
    return pl.DataFrame(texts, schema=dict.fromkeys(names, pl.String))


def _scalar(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return _TRUTHS[value]
    raise _Wrong


def _list(value: Any, separator: str) -> Sequence[str | None] | None:
    if isinstance(value, list):
        return [_scalar(item) for item in value]
    text = _scalar(value)
    return None if text is None else text.split(separator)


def _shown(value: Any) -> str:
    return _short(json.dumps(value))


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
