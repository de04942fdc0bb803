"""A user's own tables: each value becomes what the schema says, and each that cannot is named with its file and row."""

import bz2
import datetime
import gzip
import zipfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.raw import RawPiece
from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput

SCHEMA: dict[str, Any] = {"label": "clicked", "dense": ["age"], "sparse": ["user"]}


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _text(tmp_path: Path, content: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return path


def _parquet(tmp_path: Path, columns: dict[str, Any], name: str = "t.parquet", **how: Any) -> Path:
    path = tmp_path / name
    pl.DataFrame(columns).write_parquet(path, **how)
    return path


def _read(path: Path | list[Path], schema: dict[str, Any] = SCHEMA, **how: Any) -> RawPiece:
    """The one piece of small files."""
    paths = path if isinstance(path, list) else [path]
    [piece] = [task.read() for task in TableInput(read_schema(schema, "my.toml"), paths, **how).tasks()]
    return piece


def _problems(piece: RawPiece) -> list[tuple[int, str]]:
    return [(bad.line, bad.problem) for bad in piece.bad]


# Dense values.


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ("log", [np.log(3), np.log(10), np.log(1), np.log(5.5), np.nan]),
        ("log1p", [0, np.log(8), 0, np.log(3.5), np.nan]),
        ("none", [0, 7, -5, 2.5, np.nan]),
    ],
)
def test_dense_values_are_transformed_and_missing_is_apart_from_zero(tmp_path: Path, transform: str, expected: Any):
    schema = SCHEMA | {"transform": transform}
    text = _text(tmp_path, "clicked,age,user\n1,0,a\n0,7,b\n0,-5,c\n0,2.5,d\n1,,e\n")
    ages = {"clicked": [1, 0, 0, 0, 1], "age": [0.0, 7.0, -5.0, 2.5, None], "user": list("abcde")}
    for piece in (_read(text, schema), _read(_parquet(tmp_path, ages), schema)):
        assert np.array_equal(piece.dense_IN[0], np.array(expected, np.float32), equal_nan=True)
        assert piece.labels_N.tolist() == [1, 0, 0, 0, 1]


def test_a_column_can_differ_from_the_others(tmp_path: Path):
    own = {"age": {"transform": "none", "missing": ["?", -999], "missing_value": 50}}
    schema = SCHEMA | {"dense": ["age", "price"], "columns": own, "missing": "NA"}
    piece = _read(_text(tmp_path, "user,age,price,clicked\nu,?,1,1\nu,-999,NA,0\nu,3,0,0\n"), schema)
    expected = np.array([[np.nan, np.nan, 3], [np.log(4), np.nan, np.log(3)]], np.float32)
    assert np.array_equal(piece.dense_IN, expected, equal_nan=True)
    numbers = {"user": ["u"] * 3, "age": [None, -999, 3], "price": [1.0, None, 0.0], "clicked": [1, 0, 0]}
    again = _read(_parquet(tmp_path, numbers), schema)
    assert np.array_equal(again.dense_IN, piece.dense_IN, equal_nan=True)


def test_wrong_dense_values_are_named(tmp_path: Path):
    schema = SCHEMA | {"transform": "none"}
    ages = ["x", "-inf", "inf", "2e38", "0x10", "5"]
    piece = _read(_text(tmp_path, "clicked,age,user\n" + "".join(f"0,{age},u\n" for age in ages)), schema)
    assert piece.lines_N.tolist() == [7]
    assert _problems(piece)[0] == (2, "age is 'x', expected a number")
    assert [bad.reason for bad in piece.bad] == ["not a number"] * 3 + ["too large", "not a number"]
    values = {"clicked": [0] * 4, "age": [float("nan"), float("inf"), 2e38, 5.0], "user": ["u"] * 4}
    piece = _read(_parquet(tmp_path, values), schema)
    assert piece.lines_N.tolist() == [1, 4]
    assert _problems(piece)[0] == (2, "age is inf, expected a number")


# Labels.


@pytest.mark.parametrize(
    ("positive", "labels", "expected", "wrong"),
    [
        (None, ["0", "1", "true", "False", "1.0", "", "2", "yes"], [0, 1, 1, 0, 1], [7, 8, 9]),
        (">= 4", ["5", "4", "3.9", "x", "", "-1"], [1, 1, 0, 0], [5, 6]),
        ("< 0.5", ["0.4", "0.5"], [1, 0], []),
        (["buy", "cart"], ["buy", "view", "", "cart"], [1, 0, 1], [4]),
        (3, ["3", "30", "1"], [1, 0, 0], []),
        (True, ["true", "false", "0"], [1, 0, 0], []),
    ],
)
def test_labels_of_text(tmp_path: Path, positive: Any, labels: list[str], expected: list[int], wrong: list[int]):
    schema = SCHEMA if positive is None else SCHEMA | {"label_positive": positive}
    piece = _read(_text(tmp_path, "clicked,age,user\n" + "".join(f"{label},1,u\n" for label in labels)), schema)
    assert piece.labels_N.tolist() == expected
    assert [bad.line for bad in piece.bad] == wrong


@pytest.mark.parametrize(
    ("positive", "labels", "expected", "wrong"),
    [
        (None, [0, 1, None, 2], [0, 1], [3, 4]),
        (None, [True, False, None], [1, 0], [3]),
        (None, [0.0, 1.0, 0.5, float("nan")], [0, 1], [3, 4]),
        (">= 4", [5.0, 4.0, 3.9, float("nan")], [1, 1, 0], [4]),
        ([1, 2], [0, 1, 2, None], [0, 1, 1], [4]),
        (["buy"], ["buy", "view"], [1, 0], []),
    ],
)
def test_labels_of_parquet(tmp_path: Path, positive: Any, labels: list[Any], expected: list[int], wrong: list[int]):
    schema = SCHEMA if positive is None else SCHEMA | {"label_positive": positive}
    piece = _read(
        _parquet(tmp_path, {"clicked": labels, "age": [1] * len(labels), "user": ["u"] * len(labels)}), schema
    )
    assert piece.labels_N.tolist() == expected
    assert [bad.line for bad in piece.bad] == wrong


def test_files_without_labels_can_be_read(tmp_path: Path):
    piece = _read(_text(tmp_path, "age,user\n1,u\n"), labelled=False)
    assert piece.labels_N.tolist() == [0]


# Sparse values.


def test_texts_are_hashed_and_integers_are_words(tmp_path: Path):
    strings = _read(_text(tmp_path, "clicked,age,user\n0,1,a\n0,1,007\n0,1,ß\n0,1,\n"))
    column = strings.sparse[0]
    assert column.values.tolist() == [_hash("a"), _hash("007"), _hash("ß"), 0]
    assert column.present_N is not None
    assert column.present_N.tolist() == [True, True, True, False]
    schema = SCHEMA | {"columns": {"user": {"type": "integer", "missing": -1}}}
    values = ["7", "-2", str(2**64 - 1), "-1", "", "x", "1.5", str(2**64)]
    piece = _read(_text(tmp_path, "clicked,age,user\n" + "".join(f"0,1,{value}\n" for value in values)), schema)
    assert piece.sparse[0].values.tolist()[:3] == [7, 2**64 - 2, _hash(str(2**64 - 1))]
    assert piece.sparse[0].present_N is not None
    assert piece.sparse[0].present_N.tolist() == [True, True, True, False, False]
    assert _problems(piece)[0] == (7, "user is 'x', expected an integer")
    assert [bad.line for bad in piece.bad] == [7, 8, 9]


def test_parquet_says_itself_what_a_sparse_column_holds(tmp_path: Path):
    columns = {
        "clicked": [0, 1],
        "age": [1, 2],
        "u8": pl.Series([200, None], dtype=pl.UInt8),
        "i64": [-(2**63), 5],
        "u64": pl.Series([2**64 - 1, 0], dtype=pl.UInt64),
        "flag": [True, False],
        "text": ["a", None],
        "kind": pl.Series(["x", "y"], dtype=pl.Categorical),
        "enum": pl.Series(["x", "y"], dtype=pl.Enum(["y", "x"])),
        "whole": [3.0, None],
    }
    sparse = list(columns)[2:]
    schema = SCHEMA | {"sparse": sparse, "columns": {"whole": {"type": "integer"}}}
    piece = _read(_parquet(tmp_path, columns), schema)
    values = {name: column.values.tolist() for name, column in zip(sparse, piece.sparse, strict=True)}
    assert values == {
        "u8": [200, 0],
        "i64": [2**63, 5],
        "u64": [_hash(str(2**64 - 1)), 0],
        "flag": [1, 0],
        "text": [_hash("a"), 0],
        "kind": [_hash("x"), _hash("y")],
        "enum": [_hash("x"), _hash("y")],
        "whole": [3, 0],
    }
    present = {name: column.present_N.tolist() for name, column in zip(sparse, piece.sparse, strict=True)}  # type: ignore[union-attr]
    assert [name for name, there in present.items() if there != [True, True]] == ["u8", "text", "whole"]


@pytest.mark.parametrize(
    ("truncate", "kept", "rows", "repaired"),
    [
        ("reject", [["a"], ["a", "b"], [], ["b"]], [2, 3, 5, 6], {}),
        ("first", [["a"], ["a", "b"], ["a", "b"], [], ["b"]], [2, 3, 4, 5, 6], {"tags cut to its first 2 values": 1}),
        ("last", [["a"], ["a", "b"], ["b", "c"], [], ["b"]], [2, 3, 4, 5, 6], {"tags cut to its last 2 values": 1}),
    ],
)
def test_lists(tmp_path: Path, truncate: str, kept: list[list[str]], rows: list[int], repaired: dict[str, int]):
    own = {"tags": {"max_ids": 2, "truncate": truncate}}
    schema = {"label": "clicked", "sparse": ["tags", "user"], "columns": own}
    text = _text(tmp_path, "clicked,tags,user\n0,a,u\n1,a|b,u\n0,a|b|c,u\n0,,u\n1,|b|,u\n")
    lists = {
        "clicked": [0, 1, 0, 0, 1],
        "tags": [["a"], ["a", "b"], ["a", "b", "c"], [], [None, "b"]],
        "user": ["u"] * 5,
    }
    for piece, shift in ((_read(text, schema), 0), (_read(_parquet(tmp_path, lists), schema), 1)):
        column = piece.sparse[0]
        assert piece.lines_N.tolist() == [row - shift for row in rows]
        assert column.lengths_N is not None
        assert column.lengths_N.tolist() == [len(values) for values in kept]
        assert column.values.tolist() == [_hash(value) for values in kept for value in values]
        assert piece.repaired == repaired
        assert piece.dense_IN.shape == (0, len(kept))
        assert [bad.reason for bad in piece.bad] == ["list too long"] * (truncate == "reject")


def test_a_wrong_value_in_a_list_leaves_its_row_out(tmp_path: Path):
    schema = {
        "label": "clicked",
        "sparse": ["tags"],
        "columns": {"tags": {"max_ids": 3, "type": "integer"}},
        "list_separator": ";",
    }
    piece = _read(_text(tmp_path, "clicked,tags\n0,1;2\n1,3;x;4\n1,5\n"), schema)
    assert piece.sparse[0].values.tolist() == [1, 2, 5]
    assert piece.labels_N.tolist() == [0, 1]
    assert _problems(piece) == [(3, "tags is '3;x;4', expected integers")]


def test_lists_of_integers_of_every_layout(tmp_path: Path):
    schema = {"label": "clicked", "sparse": ["a", "b"], "columns": {"a": {"max_ids": 4}, "b": {"max_ids": 2}}}
    columns = {
        "clicked": [0, 1, 1],
        "a": pl.Series([[1, -1], None, [5]], dtype=pl.List(pl.Int32)),
        "b": pl.Series([[1, 2], [3, 4], None], dtype=pl.Array(pl.UInt16, 2)),
    }
    piece = _read(_parquet(tmp_path, columns), schema)
    assert piece.sparse[0].values.tolist() == [1, 2**64 - 1, 5]
    assert piece.sparse[0].lengths_N is not None
    assert piece.sparse[0].lengths_N.tolist() == [2, 0, 1]
    assert piece.sparse[1].values.tolist() == [1, 2, 3, 4]


# Files.


def _many(count: int) -> dict[str, list[Any]]:
    return {
        "clicked": [i % 2 for i in range(count)],
        "age": [i % 90 for i in range(count)],
        "user": [f"user {i * 7919 % 1000}" for i in range(count)],
    }


def _csv(columns: dict[str, list[Any]], separator: str = ",") -> str:
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def test_text_and_parquet_of_the_same_rows_are_the_same_examples(tmp_path: Path):
    columns = _many(500)
    pieces = [
        _read(_text(tmp_path, _csv(columns))),
        _read(_text(tmp_path, _csv(columns, "\t"), "t.tsv")),
        _read(_text(tmp_path, _csv(columns, "\t"), "t.tsv.gz")),
        _read(_text(tmp_path, _csv(columns, ";"), "s.csv"), SCHEMA | {"separator": ";"}),
        _read(_parquet(tmp_path, columns)),
    ]
    for piece in pieces[1:]:
        assert np.array_equal(piece.labels_N, pieces[0].labels_N)
        assert np.array_equal(piece.dense_IN, pieces[0].dense_IN)
        assert np.array_equal(piece.sparse[0].values, pieces[0].sparse[0].values)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_pieces_are_the_same_from_any_position(tmp_path: Path, kind: str):
    columns = _many(300)
    if kind == "parquet":
        paths = [_parquet(tmp_path, columns, f"{n}.parquet", row_group_size=70) for n in range(2)]
    else:
        paths = [_text(tmp_path, _csv(columns), f"{n}.{kind}") for n in range(2)]
    source = TableInput(read_schema(SCHEMA, "my.toml"), paths, piece_bytes=700, piece_rows=33)
    tasks = list(source.tasks())
    pieces = [task.read() for task in tasks]
    assert len(tasks) > 10
    assert sum(len(piece) for piece in pieces) == 600
    assert [task.bytes_done for task in tasks] == sorted(task.bytes_done for task in tasks)
    assert tasks[-1].bytes_done == sum(file.num_bytes for file in source.sources)
    for at in range(len(tasks)):
        again = [task.read() for task in source.tasks(tasks[at].position)]
        assert [p.lines_N.tolist() for p in again] == [p.lines_N.tolist() for p in pieces[at + 1 :]]
        assert [p.sparse[0].values.tolist() for p in again] == [p.sparse[0].values.tolist() for p in pieces[at + 1 :]]


@pytest.mark.parametrize(("name", "header"), [("empty.csv", "clicked,age,user\n"), ("empty.jsonl", "")])
def test_a_file_without_rows_is_read_beside_others(tmp_path: Path, name: str, header: str):
    rows = {".csv": "clicked,age,user\n1,5,u\n", ".jsonl": '{"clicked": 1, "age": 5, "user": "u"}\n'}
    full, empty = (_text(tmp_path, text, f) for text, f in ((rows[Path(name).suffix], "full" + name), (header, name)))
    for paths in ([empty, full], [full, empty]):
        pieces = [task.read() for task in TableInput(read_schema(SCHEMA, "my.toml"), paths).tasks()]
        assert [label for piece in pieces for label in piece.labels_N.tolist()] == [1]


def test_each_file_may_order_its_columns_as_it_likes(tmp_path: Path):
    one = _text(tmp_path, "clicked,age,user\n1,5,u\n", "1.csv")
    two = _text(tmp_path, "user,other,age,clicked\nu,x,5,1\n", "2.csv")
    first, second = (task.read() for task in TableInput(read_schema(SCHEMA, "my.toml"), [one, two]).tasks())
    assert np.array_equal(first.dense_IN, second.dense_IN)
    assert first.sparse[0].values.tolist() == second.sparse[0].values.tolist()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("clicked,ages,user\n", ["no column 'age'", "my.toml", "did you mean 'ages'?", "clicked, ages, user"]),
        ("age,user,x\n", ["no column 'clicked'"]),
        ("clicked,age,user,age\n", ["two columns are named 'age'"]),
        ("clicked;age;user\n", ["one column, 'clicked;age;user'", 'separator = ";"']),
        ("clicked\tage\tuser\n", ["one column", r'separator = "\t"']),
        ("", ["empty"]),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, content: str, words: list[str]):
    with pytest.raises(DataError) as error:
        _read(_text(tmp_path, content))
    assert "t.csv" in error.value.message
    for word in words:
        assert word in f"{error.value.message} {error.value.hint}"


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"age": ["x"], "clicked": [[1]]}, ["column 'clicked' is of type List(Int64)"]),
        ({"age": [[1]]}, ["column 'age' is of type List(Int64)", "numbers"]),
        ({"age": [datetime.date(2020, 1, 1)]}, ["column 'age' is of type Date"]),
        ({"user": [datetime.timedelta(1)]}, ["column 'user' is of type Duration"]),
        ({"user": [["a"]]}, ["column 'user' has lists", "max_ids", "[columns.user]"]),
        ({"user": [b"a"]}, ["column 'user' is of type Binary"]),
        ({"user": [{"a": 1}]}, ["column 'user' is of type Struct"]),
    ],
)
def test_a_type_that_does_not_fit_is_refused(tmp_path: Path, column: dict[str, Any], words: list[str]):
    path = _parquet(tmp_path, {"clicked": [1], "age": [1], "user": ["u"]} | column)
    with pytest.raises(DataError) as error:
        _read(path)
    for word in words:
        assert word in f"{error.value.message} {error.value.hint}"


def test_files_of_two_formats_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="is a Parquet file"):
        _read([_parquet(tmp_path, _many(3)), _text(tmp_path, _csv(_many(3)))])


def test_what_is_no_table_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("t.csv", "clicked,age,user\n")
    (tmp_path / "t.csv.bz2").write_bytes(bz2.compress(b"clicked,age,user\n"))
    for name, message in (("t.zip", "an archive"), ("t.csv.bz2", "bzip2"), (".", "a directory")):
        with pytest.raises(DataError, match=message):
            _read(tmp_path / name)
    with pytest.raises(DataError, match="standard input"):
        _read(Path("-"))


def test_a_damaged_parquet_file_is_refused(tmp_path: Path):
    path = _parquet(tmp_path, _many(500))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"t\.parquet: the Parquet file is cut short or damaged"):
        _read(path)
    path.write_bytes(whole[:40] + b"\xff" * 400 + whole[440:])
    with pytest.raises(DataError, match=r"t\.parquet: the Parquet file is cut short or damaged"):
        _read(path)


def test_identity_changes_with_the_schema_and_the_files(tmp_path: Path):
    path = _text(tmp_path, _csv(_many(3)))

    def identity(schema: dict[str, Any]) -> Any:
        return TableInput(read_schema(schema, "my.toml"), [path]).identity()

    first = identity(SCHEMA)
    assert identity(SCHEMA) == first
    assert identity(SCHEMA | {"transform": "none"}) != first
    path.write_text(_csv(_many(4)))
    assert identity(SCHEMA) != first


# Schemas.


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"lable": "x"}, "lable is not a key", "'label'"),
        ({"label": 3}, "label = 3 must be a string", ""),
        ({"label": None}, "label is missing", 'label = "..."'),
        ({"dense": "age"}, "dense = 'age' must be a list of names", ""),
        ({"dense": [1]}, "dense = 1 must be a list of names", ""),
        ({"sparse": []}, "sparse has no columns", "buckets = 32"),
        ({"dense": ["user"]}, "the column 'user' is repeated", "either label, dense or sparse"),
        ({"transform": "lgo"}, "transform = 'lgo' must be one of log, log1p, sqrt, none", "'log'"),
        ({"missing_value": "x"}, "missing_value = 'x' must be a number", ""),
        ({"missing_value": float("nan")}, "missing_value = nan must be a number", ""),
        ({"missing": [[1]]}, "missing = .* must be a value or a list of values", ""),
        ({"label_positive": ">= x"}, "label_positive = '>= x'", ""),
        ({"label_positive": "> nan"}, "label_positive = '> nan'", ""),
        ({"separator": "||"}, r"separator = '\|\|' must be one character", ""),
        ({"columns": 3}, "columns = 3 must be a table of keys", ""),
        ({"columns": {"usr": {}}}, "columns.usr is listed neither in dense nor in sparse", "'user'"),
        ({"columns": {"user": {"transform": "log"}}}, "columns.user.transform is not a key of a sparse column", ""),
        ({"columns": {"user": {"max_ids": 0}}}, "columns.user.max_ids = 0 must be a whole number", ""),
        ({"columns": {"user": {"max_ids": True}}}, "columns.user.max_ids = True", ""),
        ({"columns": {"user": {"truncate": "last"}}}, "columns.user.truncate is for lists", "max_ids"),
        ({"columns": {"user": {"max_ids": 2, "truncate": "lats"}}}, "columns.user.truncate = 'lats'", "'last'"),
        ({"columns": {"user": {"type": "int"}}}, "columns.user.type = 'int' must be one of", ""),
        ({"columns": {"age": {"max_ids": 3}}}, "columns.age.max_ids is not a key of a dense column", ""),
        ({"columns": {"age": {"clip": [3, 1]}}}, r"columns.age.clip = \[3, 1\] must be two numbers", ""),
        ({"columns": {"age": {"clip": 3}}}, "columns.age.clip = 3 must be a list of two numbers", ""),
        ({"columns": {"age": {"since": "at"}}}, "columns.age.since needs a column of times", "column = "),
        ({"columns": {"age": {"unit": "days"}}}, "columns.age.unit is for the time since another", "since"),
        ({"columns": {"at": {"parts": ["huor"]}}}, "columns.at.parts: 'huor' is not a part", "'hour'"),
        ({"columns": {"at": {"epoch": "secs"}}}, "columns.at.epoch = 'secs' must be one of seconds", "'seconds'"),
        ({"columns": {"at": {"max_ids": 2}}}, "columns.at is listed neither in dense nor in sparse", "list 'at' there"),
        ({"columns": {"user": {"parts": ["hour"]}}}, "'user' is listed in sparse", "remove 'user'"),
        ({"columns": {"user": {"buckets": 1}}}, "columns.user.buckets = 1 must be a whole number from 2", ""),
        ({"columns": {"user": {"buckets": 9, "type": "string"}}}, "columns.user.buckets and type contradict", "omit"),
        ({"columns": {"user": {"part": "hour", "buckets": 9}}}, "columns.user.part and buckets contradict", "omit"),
        ({"columns": {"user": {"cross": ["user"]}}}, r"columns.user.cross = \['user'\] must name two", ""),
        ({"columns": {"user": {"cross": ["usr", "b"]}}}, "columns.user.cross: 'usr' is not a sparse column", "'user'"),
        (
            {"sparse": ["user", "g", "x"], "columns": {"g": {"max_ids": 2}, "x": {"cross": ["user", "g"]}}},
            "columns.x.cross: 'g' has lists",
            "",
        ),
        (
            {"sparse": ["user", "g"], "columns": {"g": {"max_ids": 2, "column": "user"}}},
            "'user' has lists for one of 'user' and 'g'",
            "max_ids",
        ),
    ],
)
def test_a_schema_that_is_wrong_names_the_key(change: dict[str, Any], message: str, hint: str):
    values = {key: value for key, value in (SCHEMA | change).items() if value is not None}
    with pytest.raises(DataError, match=message) as error:
        read_schema(values, "my.toml")
    assert error.value.message.startswith("my.toml: ")
    assert hint in str(error.value.hint)
