"""A manifest's entry of a column restores its encoder and counts, and wrong entries are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.columns import (
    ColumnEntry,
    KeptArray,
    columns_fingerprint,
    counts_file,
    read_columns,
    vocabulary_file,
)
from dlrmctl.data.features.encoders import AsRows, Hashing
from dlrmctl.data.sealed import Values


def kept(directory: Path, file: str, array: np.ndarray) -> KeptArray:
    (directory / "vocabulary").mkdir(exist_ok=True)
    (directory / file).write_bytes(array.tobytes())
    return KeptArray.describe(directory, file, array.dtype)


def columns(directory: Path) -> list[ColumnEntry]:
    found = []
    for name, values in {"a": np.array([9, 3, 7], "<u4"), "b/c": np.array([2**40, 3], "<u8")}.items():
        vocabulary = kept(directory, vocabulary_file(name, values.dtype), values)
        counts = kept(directory, counts_file(name), np.arange(len(values) + 2, dtype="<u4"))
        found.append(ColumnEntry(name, vocabulary, counts))
    return [*found, ColumnEntry("d", Hashing(10, 1)), ColumnEntry("e", AsRows(12))]


def test_a_column_survives_json(tmp_path: Path) -> None:
    before = columns(tmp_path)
    ids = {"missing_row": 0, "rare_row": 1, "columns": [column.to_dict() for column in before]}
    after = read_columns(Values(json.loads(json.dumps(ids))))
    assert list(after) == before
    assert [column.rows for column in after] == [5, 4, 10, 12]
    assert [column.scheme for column in after] == ["vocabulary", "vocabulary", "hash", "rows"]
    assert [kept.file for kept in after[1].files] == ["vocabulary/b%2Fc.u8", "vocabulary/b%2Fc.counts"]
    a, b, d, e = (column.load(tmp_path) for column in after)
    asked, present = np.arange(12, dtype=np.uint32), np.arange(12) > 0
    assert a.encode(asked, present).tolist() == [0, 1, 1, 3, 1, 1, 1, 4, 1, 2, 1, 1]
    assert b.encode(np.array([2**40, 2**40 + 3, 3], np.uint64), None).tolist() == [2, 1, 3]
    assert (d, e) == (Hashing(10, 1), AsRows(12))
    assert after[0].counts is not None
    assert after[0].counts.load(tmp_path).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"\0" * 12, b"\0" * 11, b"", b"\0" * 16])
def test_a_changed_file_is_refused(tmp_path: Path, content: bytes) -> None:
    column = columns(tmp_path)[0]
    (tmp_path / "vocabulary" / "a.u4").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.u4: changed since it was prepared") as caught:
        column.load(tmp_path)
    assert caught.value.hint == "prepare it again from the raw files"


EDITS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c.pop("name"), "columns[0].name is missing"),
    (lambda c: c.update(rows=1), "columns[0].rows = 1 must be at least 2"),
    (lambda c: c.update(rows="5"), "columns[0].rows = '5' must be a whole number"),
    (lambda c: c.update(scheme="guess"), "columns[0].scheme = 'guess' must be one of vocabulary, hash, rows, buckets"),
    (lambda c: c.update(scheme="hash"), "columns[0].column is missing"),
    (lambda c: c.update(crc32=True), "columns[0].crc32 = True must be a whole number"),
    (lambda c: c.update(file="../a.u4"), "columns[0].file = '../a.u4' must lie beside the manifest"),
    (lambda c: c.update(file="/etc/a.u4"), "columns[0].file = '/etc/a.u4' must lie beside the manifest"),
    (lambda c: c.update(file="a.f4"), "columns[0].file = 'a.f4' must end in .u4 or .u8"),
    (lambda c: c["counts"].update(type="<f4"), "columns[0].counts.type = '<f4' must be one of <u4, <u8"),
    (lambda c: c.update(scheme="rows"), "rare_row = 1 must be None"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS, ids=[message for _, message in EDITS])
def test_a_wrong_value_is_named(tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    column = columns(tmp_path)[0].to_dict()
    edit(column)
    with pytest.raises(DataError) as caught:
        read_columns(Values({"missing_row": 0, "rare_row": 1, "columns": [column]}))
    assert caught.value.message == message


def test_only_equal_encoders_have_equal_fingerprints(tmp_path: Path) -> None:
    column = columns(tmp_path)[0]
    assert isinstance(column.encoder, KeptArray)
    assert columns_fingerprint([column], None) == columns_fingerprint([replace(column, counts=None)], None)
    others = [
        replace(column, encoder=replace(column.encoder, crc32=7)),
        replace(column, name="b"),
        replace(column, encoder=AsRows(5)),
        replace(column, encoder=Hashing(5, 0)),
        replace(column, encoder=Hashing(5, 1)),
    ]
    found = {columns_fingerprint([other], None) for other in (column, *others)}
    assert len(found | {columns_fingerprint([column], "canonical-1")}) == 7
