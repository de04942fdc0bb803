"""Lines that a pattern reads have the columns, rows and problems that a JSON parser finds."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrmctl.data.formats.raw import BadLine
from dlrmctl.data.formats.table_json import read_columns, read_objects, to_json_frame
from dlrmctl.data.formats.table_text import Records, split_records

WANTED = {"y": False, "user": False, "items": True}
SCALARS = [
    *("0", "-0", "12", "007", "1.50", "1.", "-", "2e5", "1E+03", "9" * 30, "NaN", "Infinity", "true", "false", "null"),
    *('""', '"a"', '"a, b: {}[]"', '"null"', '"\\u0041"', '"a\\"b"', '"Äpfel"', '"\ufffd"', '"\\ud800"', '"\t"', '"x'),
    *("{}", '{"y": 1}', "[]", "t", "1 2", " 5", "5 "),
]
LISTS = [
    "[]",
    "[1,2]",
    '["a", "b"]',
    '["a, b",1.0]',
    "[null]",
    "[1,[2]]",
    "null",
    '"a|b"',
    "[true , 1]",
    '[""]',
    "[1,]",
]
PARTS = st.sampled_from(SCALARS), st.sampled_from(SCALARS), st.sampled_from(LISTS)
FORMS = st.sampled_from(
    [
        '{{"y":{0},"user":{1},"items":{2}}}',
        '{{"y": {0}, "user": {1}, "items": {2}}}',
        '{{"y": {0}, "ü.*": {1}, "items": {2}}}\r',
        '{{"items":{2},"user":{1}}}',
        '{{"y":{0},"y":{1}}}',
        '{{"other":{0}}}',
        ' {{"y" : {0}, "user": {1} }}',
        '{{"y": {0}, "user": {1}',
        "[{0}]",
        "{0}",
        "",
    ]
)


def _parsed(records: Records, wanted: Mapping[str, bool]) -> tuple[pl.DataFrame, np.ndarray, list[BadLine]]:
    objects, lines_N, bad = read_objects(records)
    frame, good_N, wrong = to_json_frame(objects, lines_N, wanted, "|")
    return frame, lines_N[good_N], sorted([*bad, *wrong], key=lambda one: one.line)


def _check(content: bytes, wanted: Mapping[str, bool] = WANTED) -> None:
    records, _, _ = split_records(content, "", 1, ended=True)
    frame, lines_N, bad, _ = read_columns(records, wanted, "|")
    expected, expected_N, expected_bad = _parsed(records, wanted)
    assert (lines_N.tolist(), bad) == (expected_N.tolist(), expected_bad)
    assert frame.schema == expected.schema
    assert frame.to_dicts() == expected.to_dicts()


@settings(max_examples=150)
@given(st.lists(st.tuples(FORMS, *PARTS), max_size=8), st.sampled_from([1, 3]), st.booleans())
def test_lines_are_those_of_a_json_parser(lines: list[tuple[str, str, str, str]], times: int, broken: bool) -> None:
    content = "\n".join(form.format(*values) for form, *values in lines * times).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlrmctl.data.formats.table_json._FEW_LINES", 1)
        _check(content + b'\n{"y": 1, "user": "\xff"}\n' * broken)


def test_a_piece_of_one_form_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [
        {"y": n % 2, "user": f"u{n}", "items": ["a", "b"][: n % 3], "x": 1.5} for n in range(99)
    ]
    content = "\n".join(map(json.dumps, rows)).encode()
    _check(content)
    monkeypatch.setattr("dlrmctl.data.formats.table_json.read_objects", None)
    records = split_records(content, "", 1, ended=True)[0]
    frame, lines_N, bad, kept = read_columns(records, WANTED, "|", ["user", "x"])
    assert kept.frame.rows() == [(f"u{n}", "1.5") for n in range(99)]
    assert (len(frame), lines_N.tolist(), bad) == (99, list(range(1, 100)), [])


@pytest.mark.parametrize("keys", [15, 16, 17, 33, 257])
def test_lines_of_many_keys_are_those_of_a_json_parser(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number} $1.*\N{LATIN SMALL LETTER U WITH DIAERESIS}" for number in range(keys)]
    rows = [
        {name: [number, f"{number}"][k % 2] if k % 5 else [number] for k, name in enumerate(names)}
        for number in range(99)
    ]
    rows[7][names[-1]] = {names[-1]: 1}
    rows[8][names[0]] = f'"{names[-1]}":'
    rows[9][names[0]] = "\x1e"
    wanted = {name: k % 5 == 0 for k, name in enumerate(names) if k % 7 != 6 and not 16 <= k < 32} | {"absent": False}
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    _check(content, wanted)
    rows = rows[10:]
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    if keys < 257:
        monkeypatch.setattr("dlrmctl.data.formats.table_json.read_objects", None)
    assert len(read_columns(split_records(content, "", 1, ended=True)[0], wanted, "|")[0]) == len(rows)


KEPT = [
    (7, "7"),
    (1.50, "1.5"),
    (True, "true"),
    ("\N{SNOWMAN}", "\N{SNOWMAN}"),
    (None, None),
    ([1, 2.5, "3", None], '[1, 2.5, "3", null]'),
    ({"\N{SNOWMAN}": [True, 10**30]}, '{"\N{SNOWMAN}": [true, ' + "1" + 30 * "0" + "]}"),
    ([], "[]"),
]


@pytest.mark.parametrize("keep", [["k"], ["k", "user"], ["items", "k"]])
def test_columns_are_kept_as_they_are(keep: list[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"y": n % 2, "user": f"u{n}", "items": ["a"], "x": 1.5, "k": KEPT[n // 100][0]} for n in range(800)
    ]
    rows[5]["user"] = rows[705]["user"] = ["no single value"]
    lines = [json.dumps(row, ensure_ascii=n % 100 < 90) for n, row in enumerate(rows)]
    lines[3] = "no JSON"
    content = "\n".join(lines).encode()
    frame, lines_N, bad, kept = read_columns(split_records(content, "", 1, ended=True)[0], WANTED, "|", keep)
    assert ([one.line for one in bad], len(frame)) == ([4, 6, 706], 797)
    assert lines_N.tolist() == [n + 1 for n in range(800) if n not in (3, 5, 705)]
    assert kept.lines.tolist() == [n + 1 for n in range(800) if n != 3]
    assert kept.frame["k"].to_list() == [KEPT[n // 100][1] for n in range(800) if n != 3]
    if "user" in keep:
        user = ['["no single value"]' if n in (5, 705) else f"u{n}" for n in range(800) if n != 3]
        assert kept.frame["user"].to_list() == user
    if "items" in keep:
        assert kept.frame["items"].to_list() == ['["a"]'] * 799
