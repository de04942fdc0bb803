"""A messy table in every format of tables gives the same store and the same ids."""

import datetime as dt
import gzip
import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.formats.table_schema import BY_TYPE, TableSchema, read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.new_rows import read_new_rows
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.sealed import write_sealed
from dlrmctl.data.store.store import Store
from tests.data.criteo_files import without_nan

ROWS = 600
SPARSE = [
    "whole",
    "nullable",
    "flag",
    "day",
    "moment",
    "zoned",
    "time",
    "price",
    "text",
    "kind",
    "short",
    "long",
    "void",
]
SCHEMA = {"label": "clicked", "dense": ["age", "score", "warm"], "sparse": SPARSE}

USERS: dict[str, Any] = {"label": "clicked", "dense": ["age"], "sparse": ["user"]}


def messy(rows: int = ROWS) -> pl.DataFrame:
    """Values of every kind; some are missing, some look like others."""
    rng = np.random.default_rng(0)
    some = lambda values: [values[i] for i in rng.integers(0, len(values), rows)]  # noqa: E731
    moments = [dt.datetime(2024, 5, 1), dt.datetime(2024, 5, 1, 9, 30, 0, 500_000), dt.datetime(1969, 1, 2, 3), None]
    return pl.DataFrame(
        {
            "clicked": rng.random(rows) < 0.4,
            "age": pl.Series(some([3, 40, -7, None])),
            "score": pl.Series(rng.normal(size=rows), dtype=pl.Float32),
            "warm": pl.Series(some([0.1, 1e-7, 12345.678, math.nan, None])),
            "whole": pl.Series(rng.integers(-(2**63), 2**63 - 1, rows) // rng.choice([1, 2**40, 2**60], rows)),
            "nullable": pl.Series(some([13.0, 2.5, 1e17, 1e-9, math.nan, -0.0, math.inf, None])),
            "flag": pl.Series(some([True, False, None])),
            "day": pl.Series(some([dt.date(2024, 5, 1), dt.date(1960, 2, 29), None])),
            "moment": pl.Series(some(moments), dtype=pl.Datetime("us")),
            "zoned": pl.Series(some(moments), dtype=pl.Datetime("ns")).dt.replace_time_zone("Asia/Kolkata"),
            "time": pl.Series(some([dt.time(9, 30), dt.time(23, 59, 59, 1), None])),
            "price": pl.Series(some([Decimal("1.50"), Decimal("13.00"), None]), dtype=pl.Decimal(12, 2)),
            "text": pl.Series(some(["a,b", 'say "x"', "ß", "007", "7", "NA", "null", "two\twords", None])),
            "kind": pl.Series(some(["x", "y", None]), dtype=pl.Categorical),
            "short": pl.Series(some([0.1, 13.0, 3e10, None]), dtype=pl.Float32),
            "long": pl.Series(some([2**64 - 1, 5, None]), dtype=pl.UInt64),
            "void": pl.Series([None] * rows, dtype=pl.Null),
        }
    )


def write(frame: pl.DataFrame, path: Path) -> Path:
    """In the format of the name."""
    if path.name.endswith(".csv"):
        frame.write_csv(path)
    elif path.name.endswith(".tsv"):
        frame.write_csv(path, separator="\t")
    elif path.name.endswith(".tsv.gz"):
        path.write_bytes(gzip.compress(frame.write_csv(separator="\t").encode()))
    elif path.name.endswith(".jsonl"):
        # Polars writes infinity as null; as a string it stays.
        texts = (
            pl.when(pl.col("nullable").is_infinite()).then(pl.lit("Infinity")).otherwise(pl.col("nullable").cast(str))
        )
        frame.with_columns(texts.alias("nullable")).write_ndjson(path)
    elif path.name.endswith(".ndjson.gz"):
        path.write_bytes(gzip.compress(write(frame, path.with_suffix(".jsonl")).read_bytes()))
    elif path.name.endswith(".parquet"):
        frame.write_parquet(path, row_group_size=170)
    else:
        frame.write_ipc(path, compression="zstd" if path.suffix == ".feather" else "uncompressed")
    return path


def content(store: Path) -> dict[str, bytes]:
    """Every file of a store but the manifest."""
    files = {str(path.relative_to(store)): path for path in store.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "manifest.json"}


def prepared(sources: list[Path], out: Path, schema: dict[str, Any] | None = None) -> Store:
    source = TableInput(read_schema(schema or SCHEMA, "my.toml"), sources, piece_rows=64, piece_bytes=9000)
    prepare(source, out, PrepareOptions(min_count=1, block_rows=128))
    return Store(out)


NAMES = ["a.csv", "b.tsv", "c.tsv.gz", "d.jsonl", "e.ndjson.gz", "f.parquet", "g.arrow", "h.feather"]


def test_every_format_gives_the_same_store(tmp_path: Path) -> None:
    stores = [prepared([write(messy(), tmp_path / name)], tmp_path / f"{name}.store") for name in NAMES]
    first = content(stores[0].path)
    assert any(name.startswith("vocabulary/price") for name in first)
    manifest = json.loads((stores[0].path / "manifest.json").read_text())
    assert manifest["table_schema"]["values"] == "canonical-1"
    for store in stores[1:]:
        assert content(store.path) == first
        assert store.vocabulary_fingerprint() == stores[0].vocabulary_fingerprint()
        other = json.loads((store.path / "manifest.json").read_text())
        # What names the file and its format, and what follows from that: nothing else differs.
        for found in (manifest, other):
            found.pop("input", None), found.pop("crc32", None)
            found["report"].update(sources=[], lines=0, unit="", examples=[])
        assert other == manifest
    rows = {name: stores[0].schema.sparse[f].rows - 2 for f, name in enumerate(SPARSE)}
    assert rows | {"whole": 0} == {
        **{"whole": 0, "nullable": 6, "flag": 2, "day": 2, "moment": 3, "zoned": 3, "time": 2, "price": 2, "text": 6},
        **{"kind": 2, "short": 3, "long": 2, "void": 0},
    }


def test_new_rows_of_every_format_have_the_ids_of_the_data(tmp_path: Path) -> None:
    store = prepared([write(messy(), tmp_path / "a.csv")], tmp_path / "store")
    new = messy(90).drop("clicked").select(reversed([*SCHEMA["dense"], *SPARSE]))
    found = []
    for name in NAMES:
        assert store.features.table_schema is not None
        source = TableInput(store.features.table_schema, [write(new, tmp_path / f"new-{name}")], labelled=False)
        [rows] = read_new_rows(source, store.features.encoders(), store.schema)
        assert len(rows.block) == 90
        found.append((rows.block.dense_IN.tobytes(), [ids.tolist() for ids in rows.block.ids_F]))
    assert all(other == found[0] for other in found)


def test_integers_in_one_file_and_strings_in_the_next_are_the_same_ids(tmp_path: Path) -> None:
    columns = {"clicked": [0, 1] * 150, "age": [1] * 300, "user": [i % 7 for i in range(300)]}
    whole = pl.DataFrame(columns)
    texts = whole.with_columns(pl.col("user").cast(pl.String), pl.col("clicked").cast(pl.Boolean))
    floats = whole.with_columns(pl.col("user").cast(pl.Float64), pl.col("age").cast(pl.String)).select(
        "user", "age", "clicked"
    )
    paths = [write(frame, tmp_path / f"{i}.parquet") for i, frame in enumerate((whole, texts, floats))]
    store = prepared(paths, tmp_path / "store", USERS)
    assert store.schema.sparse[0].rows == 7 + 2
    (tmp_path / "one").mkdir()
    other = prepared([write(whole, tmp_path / "one" / f"{i}.csv") for i in range(3)], tmp_path / "other", USERS)
    assert content(store.path) == content(other.path)


def test_version_numbers_stay_apart_where_the_schema_says_that_a_column_is_of_strings(tmp_path: Path) -> None:
    frame = pl.DataFrame({"clicked": [0, 1] * 50, "version": ["1.1", "1.10", "1.1", "2.0"] * 25})
    schema: dict[str, Any] = {"label": "clicked", "sparse": ["version"]}
    merged = prepared([write(frame, tmp_path / "a.csv")], tmp_path / "merged", schema)
    schema["columns"] = {"version": {"type": "string"}}
    apart = [prepared([write(frame, tmp_path / name)], tmp_path / f"{name}.s", schema) for name in ("a.csv", "b.arrow")]
    assert [store.schema.sparse[0].rows for store in (merged, *apart)] == [4, 5, 5]
    assert content(apart[0].path) == content(apart[1].path)


def test_na_is_a_value_where_the_schema_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("clicked,land,age\n0,NA,NA\n1,NaN,nan\n0,,\n1,null,NULL\n0,DE,3\n")
    schema: dict[str, Any] = {"label": "clicked", "dense": ["age"], "sparse": ["land"]}
    for own, present in (({}, [0, 0, 0, 0, 1]), ({"land": {"missing": []}}, [1, 0, 0, 0, 1])):
        [task] = TableInput(read_schema(schema | {"columns": own}, "my.toml"), [path]).tasks()
        piece = task.read()
        assert without_nan(piece.dense_IN[0]) == [None, None, None, None, float(np.float32(np.log(6)))]
        assert piece.sparse[0].present_N is not None
        assert piece.sparse[0].present_N.tolist() == [bool(there) for there in present]


# JSON lines.


def read_lines(tmp_path: Path, text: bytes, schema: dict[str, Any], **how: Any) -> Any:
    path = tmp_path / "t.jsonl"
    path.write_bytes(text)
    [piece] = [task.read() for task in TableInput(read_schema(schema, "my.toml"), [path], **how).tasks()]
    return piece


def test_bad_json_lines_are_counted_and_shown_and_the_others_are_read(tmp_path: Path) -> None:
    schema = {"label": "c", "dense": ["d"], "sparse": ["u", "l"], "columns": {"l": {"max_ids": 3}}}
    lines = [
        b'{"c": 1, "d": 2, "u": 5, "l": [1, "1.0", true], "more": {"deep": [1]}}',
        b'{"c": 0, "u": "5"}',
        b"garbage",
        b"[1, 2]",
        b"",
        b'{"c": 0, "d": 1, "u": [5]}',
        b'{"c": 0, "d": 1, "u": "5", "l": [[1]]}',
        b'{"c": 0, "d": "x", "u": "5"}',
        b'{"c": true, "d": null, "u": 5.0, "l": "1|2"}',
        b'{"c": 0, "u": "\xff"}',
        b'{"c": 0, "u": "\\ud800"}',
        b"[" * 50_000,
        b'{"c": 0, "d": NaN, "u": 123456789012345678901234567890}',
        b'{"c": 0, "u": 1',
    ]
    piece = read_lines(tmp_path, b"\n".join(lines) + b"\n", schema)
    assert piece.lines_N.tolist() == [1, 2, 9, 13]
    assert piece.labels_N.tolist() == [1, 0, 1, 0]
    assert piece.sparse[0].values.tolist()[:3] == [5, 5, 5]
    assert piece.sparse[1].lengths_N.tolist() == [3, 0, 2, 0]
    assert piece.sparse[1].values.tolist() == [1, 1, 1, 1, 2]
    assert {bad.line: bad.problem for bad in piece.bad} == {
        3: "not JSON: expecting value",
        4: "the line is [1, 2], expected a JSON object",
        5: "the line is blank",
        6: 'u is ["5"], expected one value',
        7: 'l is [["1"]], expected a list of values',
        8: "d is 'x', expected a number",
        10: "the line is not UTF-8",
        11: "the line is not UTF-8",
        12: "not JSON: nested too deeply",
        14: "not JSON: expecting ',' delimiter",
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"c": 1, "u": 1, "items": 5}', ["no column 'item'", "did you mean 'items'?"]),
        (b'{"u": 1}', ["no column 'c'"]),
        (b'{"x": 1}', ["no column 'c'", "the columns are x"]),
    ],
)
def test_a_key_that_no_line_has_is_refused_where_it_must_be_an_error(tmp_path: Path, line: bytes, words: list[str]):
    with pytest.raises(DataError) as error:
        read_lines(tmp_path, line + b"\n", {"label": "c", "sparse": ["u", "item"]})
    for word in words:
        assert word in f"{error.value.message} {error.value.hint}"


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson.gz", "t.arrow"])
def test_pieces_are_the_same_from_any_position(tmp_path: Path, name: str) -> None:
    path = write(messy(300), tmp_path / name)
    source = TableInput(read_schema(SCHEMA, "my.toml"), [path], piece_bytes=5000, piece_rows=33)
    tasks = list(source.tasks())
    assert len(tasks) > 5
    pieces = [task.read() for task in tasks]
    assert sum(len(piece) for piece in pieces) == 300
    for at in range(len(tasks)):
        again = [task.read() for task in source.tasks(tasks[at].position)]
        assert [p.lines_N.tolist() for p in again] == [p.lines_N.tolist() for p in pieces[at + 1 :]]


# Arrow.


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda whole: whole[: len(whole) // 2], "Arrow file is cut short or damaged"),
        (lambda whole: whole[:10], "Arrow file is cut short or damaged"),
        (lambda whole: whole[:8] + bytes(len(whole) - 8), "Arrow file is cut short or damaged"),
        (lambda whole: b"\xff\xff\xff\xff" + whole[12:], "an Arrow stream, expected an Arrow file"),
        (lambda whole: b"FEA1" + whole[4:], "a Feather file of version 1"),
    ],
)
def test_a_damaged_arrow_file_is_refused_in_one_line(tmp_path: Path, damage: Callable[[bytes], bytes], words: str):
    path = write(messy(), tmp_path / "t.arrow")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=words) as error:
        [task.read() for task in TableInput(read_schema(SCHEMA, "my.toml"), [path]).tasks()]
    assert "\n" not in error.value.message


def test_files_of_two_formats_are_refused(tmp_path: Path) -> None:
    paths = [write(messy(), tmp_path / name) for name in ("a.csv", "b.jsonl")]
    with pytest.raises(DataError, match=r"b.jsonl: JSON lines, but .*a.csv is a text table"):
        TableInput(read_schema(SCHEMA, "my.toml"), paths)


# Stores of earlier versions.


def old_store(tmp_path: Path, frame: pl.DataFrame) -> tuple[Store, TableSchema]:
    """A store as it was made before values had a canonical form: integers by their type, strings by their hash."""
    schema = read_schema(USERS, "my.toml", values=BY_TYPE)
    prepare(TableInput(schema, [write(frame, tmp_path / "old.csv")]), tmp_path / "old", PrepareOptions(min_count=1))
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["table_schema"]["values"]
    format = manifest.pop("format")
    manifest.pop("crc32")
    write_sealed(tmp_path / "old" / "manifest.json", format, manifest)
    return Store(tmp_path / "old"), schema


def test_a_store_of_before_is_opened_as_it_was_and_reads_new_rows_as_it_did(tmp_path: Path) -> None:
    frame = pl.DataFrame({"clicked": [0, 1] * 100, "age": [1.0] * 200, "user": ["7", "7.0", "true", "NA"] * 50})
    store, schema = old_store(tmp_path, frame)
    assert store.features.table_schema is not None
    assert store.features.table_schema.values == BY_TYPE
    assert store.features.table_schema == TableSchema.from_dict(schema.to_dict(), store.features.table_schema.name)
    assert store.schema.sparse[0].rows == 4 + 2
    store.features.save(tmp_path / "features")
    kept = FeatureSpace.open(tmp_path / "features")
    assert kept.vocabulary_fingerprint() == store.vocabulary_fingerprint()
    assert kept.table_schema is not None
    rows = write(frame[:4], tmp_path / "new.csv")
    [piece] = read_new_rows(TableInput(kept.table_schema, [rows]), kept.encoders(), kept.schema)
    assert sorted(piece.block.ids_F[0].tolist()) == [2, 3, 4, 5]
    again = prepared([tmp_path / "old.csv"], tmp_path / "new", USERS)
    assert again.schema.sparse[0].rows == 2 + 2
    assert again.vocabulary_fingerprint() != store.vocabulary_fingerprint()


def test_a_store_of_before_that_was_made_of_texts_does_not_know_numbers(tmp_path: Path) -> None:
    frame = pl.DataFrame({"clicked": [0, 1] * 100, "age": [1.0] * 200, "user": ["7", "8"] * 100})
    store, _ = old_store(tmp_path, frame)
    schema = store.features.table_schema
    assert schema is not None
    [same] = TableInput(schema, [write(frame, tmp_path / "s.parquet")], trained_on="csv").tasks()
    assert len(same.read()) == 200
    numbers = write(frame.with_columns(pl.col("user").cast(pl.Int64)), tmp_path / "n.parquet")
    with pytest.raises(DataError, match="column 'user' is of type Int64, but the model knows") as error:
        TableInput(schema, [numbers], trained_on="csv")
    assert "prepare it again" in str(error.value.hint)
    TableInput(read_schema(USERS, "my.toml"), [numbers], trained_on="csv")


def test_a_vocabulary_of_before_is_not_lent_to_values_of_now(tmp_path: Path) -> None:
    frame = pl.DataFrame({"clicked": [0, 1] * 100, "age": [1.0] * 200, "user": ["7", "b"] * 100})
    store, _ = old_store(tmp_path, frame)
    schema = read_schema(USERS, "my.toml")
    options = PrepareOptions(vocabulary_from=store.path)
    with pytest.raises(DataError, match="another rule") as error:
        prepare(TableInput(schema, [tmp_path / "old.csv"]), tmp_path / "no", options)
    assert "prepare it again" in str(error.value.hint)


def test_a_rule_of_a_later_version_is_refused() -> None:
    later = read_schema({"label": "c", "sparse": ["u"]}, "my.toml").to_dict() | {"values": "canonical-2"}
    with pytest.raises(DataError, match=r"its values are 'canonical-2'.*prepare it again"):
        TableSchema.from_dict(later, "store")
