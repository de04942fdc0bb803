"""Reads JSON lines as columns: one object per line.

Numbers keep their digits, so integers of any size are exact. Other keys are ignored; a missing key and null are missing
values. A line that is not an object is omitted.

Most lines of a file have the same keys in the same order, without escapes: a regular expression reads these, five times
as fast as a JSON parser, and only what a JSON parser reads in the same way. All other lines are parsed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any

import numpy as np
import polars as pl

from dlrmctl.data.formats.raw import BadLine, KeptColumns
from dlrmctl.data.formats.table_text import Records

_STRING = r'"[^"\\\x00-\x1f\x{FFFD}]*"'  # U+FFFD: bytes that are not UTF-8
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_ITEM = f"{_STRING}|{_NUMBER}|true|false"
_VALUE = f"{_ITEM}|null"
_ITEMS = rf"\[(?:(?:{_ITEM})(?:, ?(?:{_ITEM}))*)?\]|null"
_PLAIN_KEY = re.compile(r'[^"\\\x00-\x1f\x7f-\x9f]*')
_KEYS_OF_PATTERN = 16  # with more groups, a regular expression is many times slower
_MOST_KEYS = 256
_CUT = "\x1e"  # in no line of a form
_MOST_FORMS = 8  # of the lines of a piece
_FEW_LINES = 64  # are parsed

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_SHOWN = 40  # characters of a wrong value
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
_PAIRS = json.JSONDecoder(object_pairs_hook=list)
_TRUTHS = {True: "true", False: "false"}


class _Wrong(ValueError):
    """Raised for a bad line: the reason and the problem of a `BadLine`."""


def read_columns(
    records: Records, wanted: Mapping[str, bool], separator: str, keep: Sequence[str] = ()
) -> tuple[pl.DataFrame, np.ndarray, list[BadLine], KeptColumns]:
    """Reads the lines whose values fit the columns.

    Args:
        records: lines of a file.
        wanted: the columns, and whether each has lists.
        separator: separator of the values of a list that is written as one string.
        keep: columns to keep unchanged, also of objects whose values do not fit.

    Returns:
        The columns as strings, or lists of them; the line of each row, int64; the other lines, in order; and the
        columns of `keep` as strings, with lists and objects as JSON.
    """
    of_forms = _of_forms(_lines(records), wanted, keep)
    found = [(rows, frame) for rows, frame, _ in of_forms]
    kept = [(rows, frame) for rows, _, frame in of_forms]
    rest_N = np.ones(len(records.lines_R), dtype=bool)
    for rows, _ in found:
        rest_N[rows] = False
    bad: list[BadLine] = []
    if not found or rest_N.any() or records.bad:
        others = _some(records, np.flatnonzero(rest_N))
        objects, lines_N, bad = read_objects(others)
        frame, good_N, wrong = to_json_frame(objects, lines_N, wanted, separator)
        rows = np.searchsorted(records.lines_R, lines_N)
        found.append((rows[good_N], frame))
        kept.append((rows, _kept_texts(objects, _some(records, rows), keep)))
        bad = sorted([*bad, *wrong], key=lambda one: one.line)
    frame, rows = _in_order(found)
    kept_frame, kept_rows = _in_order(kept) if keep else (pl.DataFrame(), rows[:0])
    return frame, records.lines_R[rows], bad, KeptColumns(records.lines_R[kept_rows], kept_frame)


def _some(records: Records, rows: np.ndarray) -> Records:
    return replace(records, starts_R=records.starts_R[rows], ends_R=records.ends_R[rows], lines_R=records.lines_R[rows])


def _in_order(found: Sequence[tuple[np.ndarray, pl.DataFrame]]) -> tuple[pl.DataFrame, np.ndarray]:
    """Joins frames by their rows."""
    if len(found) == 1:
        rows, frame = found[0]
        return frame, rows
    rows = np.concatenate([rows for rows, _ in found])
    order = np.argsort(rows)
    return pl.concat([frame for _, frame in found])[order], rows[order]


def _lines(records: Records) -> pl.Series:
    """Returns the lines as strings, with U+FFFD for what is not UTF-8."""
    content, number = records.content, len(records.lines_R)
    start, end = (int(records.starts_R[0]), int(records.ends_R[-1])) if number else (0, 0)
    lines = content[start:end].decode(errors="replace").split("\n")
    if len(lines) != number:  # some are too long
        edges = zip(records.starts_R.tolist(), records.ends_R.tolist(), strict=True)
        lines = [content[start:end].decode(errors="replace") for start, end in edges]
    return pl.Series(lines, dtype=pl.String)


def _of_forms(
    lines: pl.Series, wanted: Mapping[str, bool], keep: Sequence[str]
) -> list[tuple[np.ndarray, pl.DataFrame, pl.DataFrame]]:
    """Returns the rows of the lines of a few forms, and their columns, wanted and kept.

    Each form is that of the first other line.
    """
    found: list[tuple[np.ndarray, pl.DataFrame, pl.DataFrame]] = []
    rest = np.arange(len(lines))
    for _ in range(_MOST_FORMS):
        if len(rest) < _FEW_LINES:
            break
        form = _Form.of(lines[0], wanted, keep)
        if form is None:
            rest, lines = rest[1:], lines[1:]
            continue
        groups, fits = form.match(lines)
        if fits.any():
            rows, groups = (rest, groups) if fits.all() else (rest[fits.to_numpy()], groups.filter(fits))
            found.append((rows, _columns(groups, form.names, wanted), _kept_columns(groups, form.names, keep)))
        if fits.all():
            break
        fits[0] = True  # is never the first again
        rest, lines = rest[~fits.to_numpy()], lines.filter(~fits)
    return found


@dataclass(frozen=True)
class _Form:
    """Lines with the same keys in the same order, cut before some keys, since patterns with many groups are slow.

    Attributes:
        cuts: the keys before which lines are cut, as they are written.
        patterns: of the pieces of a line; each has a group.
        names: the column of each group of all patterns; None for a key that is neither wanted nor kept.
    """

    cuts: list[str]
    patterns: list[str]
    names: list[str | None]

    @classmethod
    def of(cls, line: str, wanted: Mapping[str, bool], keep: Sequence[str]) -> "_Form | None":
        """Returns the form of a line; None if it has none, or so many keys that parsing is faster."""
        try:
            pairs = _PAIRS.decode(line)
        except (ValueError, RecursionError):
            return None
        keys = [pair[0] for pair in pairs if isinstance(pair, tuple)] if isinstance(pairs, list) else []
        if len(set(keys)) < len(keys) or not all(map(_PLAIN_KEY.fullmatch, keys)):
            return None
        if not wanted.keys() & set(keys) or len(keys) > _MOST_KEYS:
            return None
        form, used = cls([], [], []), {*wanted, *keep}
        for first in range(0, len(keys), _KEYS_OF_PATTERN):
            values, some = [], keys[first : first + _KEYS_OF_PATTERN]
            for key in some:
                kind = f"{_VALUE}|{_ITEMS}" if key not in wanted else _ITEMS if wanted[key] else _VALUE
                grouped = key in used or (key == some[0] and not used & set(some))
                values.append(f'"{re.escape(key)}": ?({"" if grouped else "?:"}{kind})')
                form.names.extend([key if key in used else None] * grouped)
            start = "" if first else r"\{"
            end = ", ?" if first + len(some) < len(keys) else r"\}\r?"
            form.patterns.append(f"^{start}{', ?'.join(values)}{end}$")
            form.cuts.extend([f'"{some[0]}":'] if first else [])
        return form

    def match(self, lines: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        """Returns the groups of lines, and which lines have the form."""
        for key in self.cuts:
            lines = lines.str.replace(key, _CUT + key, literal=True)
        pieces = lines.str.split_exact(_CUT, len(self.cuts)).struct.unnest()
        groups, fits = list[pl.Series](), pl.repeat(True, len(lines), dtype=pl.Boolean, eager=True)
        for piece, pattern in zip(pieces, self.patterns, strict=True):
            of_piece = piece.str.extract_groups(pattern).struct.unnest().get_columns()
            fits &= of_piece[0].is_not_null()
            groups += of_piece
        return pl.DataFrame([group.alias(f"{number}") for number, group in enumerate(groups)]), fits


def _columns(groups: pl.DataFrame, names: Sequence[str | None], wanted: Mapping[str, bool]) -> pl.DataFrame:
    """Returns the wanted columns of lines of one form, from the groups of its patterns."""
    columns = {name: pl.lit(None, pl.List(pl.String) if lists else pl.String) for name, lists in wanted.items()}
    for name, group in zip(names, groups.columns, strict=True):
        if name is None or name not in wanted:
            continue
        value = pl.col(group)
        read = value.str.strip_chars('"')
        if wanted[name]:
            read = value.str.extract_all(_ITEM).list.eval(pl.element().str.strip_chars('"'))
        columns[name] = pl.when(value != "null").then(read)
    return groups.select(column.alias(name) for name, column in columns.items())


def _kept_columns(groups: pl.DataFrame, names: Sequence[str | None], keep: Sequence[str]) -> pl.DataFrame:
    """Returns columns of lines of one form as they are written, strings without their quotes."""
    of_names = dict(zip(names, groups.columns, strict=True))
    values = {name: pl.col(of_names[name]) if name in of_names else pl.lit(None, pl.String) for name in keep}
    return groups.select(
        pl.when(value != "null").then(value.str.strip_chars('"')).alias(name) for name, value in values.items()
    )


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


def _kept_texts(objects: Sequence[Mapping[str, Any]], records: Records, names: Sequence[str]) -> pl.DataFrame:
    """Returns columns of objects, each of a record, as strings, with lists and objects as JSON."""
    edges = list(zip(records.starts_R.tolist(), records.ends_R.tolist(), strict=True))
    found: dict[str, list[str | None]] = {}
    for name in names:
        found[name] = [fields.get(name) for fields in objects]
        for row, value in enumerate(found[name]):
            if value is not None and not isinstance(value, str):
                start, end = edges[row]
                found[name][row] = _as_json(value, records.content[start:end], name)
    return pl.DataFrame(found, schema=dict.fromkeys(names, pl.String))


def _as_json(value: Any, line: bytes, name: str) -> str:
    """Returns a value of an object as JSON, with numbers as such, which `read_objects` makes strings."""
    with suppress(ValueError):  # an integer has more digits than Python converts
        value = json.loads(line)[name]
    return json.dumps(value, ensure_ascii=False)


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
