"""Columns that are made of others: parts of times, times between times, buckets, crosses, second names."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.encoders import Bucketing
from dlrmctl.data.formats.table_schema import TableSchema, read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.new_rows import read_new_rows
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.splits import Split
from dlrmctl.data.store.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
MADE: dict[str, Any] = {
    "label": "clicked",
    "dense": ["age", "clipped", "tenure", "elapsed"],
    "sparse": ["user", "age_bucket", "user_hour", "name"],
    "columns": {
        "age": {"transform": "sqrt"},
        "clipped": {"column": "age", "clip": [10, 50], "transform": "none"},
        "tenure": {"column": "at", "since": "joined"},
        "elapsed": {"column": "at", "since": "2026-01-01", "unit": "hours", "transform": "log1p"},
        "joined": {"epoch": "seconds"},
        "at": {"parts": ["hour", "weekday"]},
        "age_bucket": {"column": "age", "buckets": 8},
        "user_hour": {"cross": ["user", "at_hour"]},
        "name": {"column": "user", "type": "string"},
    },
}
SCHEMA = read_schema(MADE, "my.toml")


def _rows(number: int = 700) -> list[dict[str, Any]]:
    draw, rows = np.random.default_rng(0), []
    for row in range(number):
        at = START + timedelta(seconds=int(draw.integers(0, 30 * 86400)))
        joined = int((at - timedelta(days=int(draw.integers(0, 300)))).timestamp())
        age = None if row % 9 == 4 else float(draw.integers(0, 90)) + 0.5 * (row % 2)
        user = f"user {int(draw.integers(30))}" if row % 5 else row % 7
        rows.append(
            {
                "clicked": row % 2,
                "age": age,
                "user": str(user),
                "at": None if row % 50 == 3 else at.replace(tzinfo=None),
                "joined": joined,
            }
        )
    return rows


def _files(directory: Path, rows: list[dict[str, Any]]) -> dict[str, Path]:
    frame = pl.DataFrame(rows, infer_schema_length=None)
    texts = frame.with_columns(pl.col("at").dt.to_string("%Y-%m-%dT%H:%M:%SZ"))
    texts.write_csv(directory / "t.csv")
    texts.write_ndjson(directory / "t.jsonl")
    frame.with_columns(pl.col("at").dt.replace_time_zone("UTC")).write_parquet(directory / "t.parquet")
    return {suffix: directory / f"t.{suffix}" for suffix in ("csv", "jsonl", "parquet")}


def test_every_format_gives_the_values_that_plain_python_gives(tmp_path: Path):
    rows = _rows()
    pieces = {}
    for suffix, path in _files(tmp_path, rows).items():
        (pieces[suffix],) = [task.read() for task in TableInput(SCHEMA, [path]).tasks()]
    first = pieces["csv"]
    assert len(first) == len(rows)
    for other in pieces.values():
        assert np.array_equal(other.dense_IN, first.dense_IN, equal_nan=True)
        for one, two in zip(first.sparse, other.sparse, strict=True):
            assert np.array_equal(one.values, two.values)
            assert np.array_equal(one.present_N, two.present_N)
    for row, values in enumerate(rows):
        age, at = values["age"], values["at"]
        elapsed = None if at is None else (at.replace(tzinfo=UTC) - START) / timedelta(hours=1)
        tenure = None if at is None else (at.replace(tzinfo=UTC).timestamp() - values["joined"]) / 86400
        expected = [
            None if age is None else math.sqrt(age),
            None if age is None else min(max(age, 10), 50),
            tenure,
            None if elapsed is None else math.log1p(elapsed),
        ]
        expected = [math.nan if number is None else number for number in expected]
        # Numbers are rounded to float32 twice: before and after the transform.
        assert np.allclose(first.dense_IN[:, row], expected, rtol=2**-22, atol=0, equal_nan=True)
        hour, weekday = first.sparse[4], first.sparse[5]
        assert hour.present_N is not None
        assert hour.present_N[row] == (at is not None)
        if at is not None:
            assert (hour.values[row], weekday.values[row]) == (at.hour, at.isoweekday())
    assert SCHEMA.dense[1].formula == "min(max(x, 10), 50)"
    assert SCHEMA.dense[0].formula == "sqrt(max(x, 0))"


def test_a_store_knows_the_values_and_new_rows_get_the_same_ids(tmp_path: Path):
    rows = _rows()
    paths = _files(tmp_path, rows)
    for suffix, part_rows in (("csv", 100), ("parquet", 1000)):
        prepare(
            TableInput(SCHEMA, [paths[suffix]]), tmp_path / suffix, PrepareOptions(min_count=1), part_rows=part_rows
        )
    store = Store(tmp_path / "csv")
    for path in (tmp_path / "csv").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert path.read_bytes() == (tmp_path / "parquet" / path.relative_to(tmp_path / "csv")).read_bytes()
    store.features.save(tmp_path / "features")
    opened = store.features.open(tmp_path / "features")
    assert opened.table_schema is not None
    assert opened.table_schema.to_dict() == SCHEMA.to_dict()
    (piece,) = read_new_rows(TableInput(opened.table_schema, [paths["jsonl"]]), opened.encoders(), opened.schema)
    train = store.read_block("train", 0)
    for f, ids in enumerate(train.ids_F):
        assert np.array_equal(piece.block.ids_F[f][: len(train)], ids)
    assert np.array_equal(piece.block.dense_IN[:, : len(train)], train.dense_IN, equal_nan=True)
    names = store.schema.keys
    for row in (0, 1, 2, 4, 7):
        found = [store.features.values_of(name, [int(train.ids_F[f][row])])[0] for f, name in enumerate(names)]
        values = rows[row]
        assert found[0] == found[3] == values["user"]
        assert found[2] == f"{values['user']} \N{MULTIPLICATION SIGN} {values['at'].hour}"
        assert found[4:] == [str(values["at"].hour), str(values["at"].isoweekday())]


def test_buckets_have_like_counts_of_the_training_rows_and_missing_is_apart(tmp_path: Path):
    rows = _rows()
    for number, row in enumerate(rows[600:]):  # validation and test must not matter
        row["age"] = 1000.0 + number
    prepare(TableInput(SCHEMA, [_files(tmp_path, rows)["csv"]]), tmp_path / "s", PrepareOptions())
    store = Store(tmp_path / "s")
    encoder = store.features.encoder("age_bucket")
    assert isinstance(encoder, Bucketing)
    ages = sorted(row["age"] for row in rows[:600] if row["age"] is not None)
    assert len(encoder.edges) == 7
    assert max(encoder.edges) < 90
    counts = store.features.counts("age_bucket")
    assert counts is not None
    assert counts.tolist()[:2] == [600 - len(ages), 0]
    assert min(counts[2:]) > 0.6 * len(ages) / 8  # equal ages are in one bucket
    assert counts[2:].sum() == len(ages)
    held_out = store.read_block("test", 0).ids_F[1]
    assert set(held_out.tolist()) == {9}
    assert store.features.values_of("age_bucket", [0, 1, 2, 9]) == [
        None,
        None,
        f"below {encoder.edges[0]:g}",
        f"from {encoder.edges[-1]:g}",
    ]


def test_wrong_times_are_named_with_the_remedy(tmp_path: Path):
    (tmp_path / "t.csv").write_text("clicked,at,user\n1,soon,u\n0,2026-01-31 10:00:00,v\n1,,w\n")
    schema = read_schema({"label": "clicked", "sparse": ["user"], "columns": {"at": {"parts": ["hour"]}}}, "my.toml")
    (piece,) = [task.read() for task in TableInput(schema, [tmp_path / "t.csv"]).tasks()]
    assert piece.lines_N.tolist() == [3, 4]
    assert piece.bad[0].problem == "at is 'soon', expected a time such as 2026-01-31 or 2026-01-31T18:30:00"
    pl.DataFrame({"clicked": [1], "at": [1_767_225_600], "user": ["u"]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'at' is of type Int64") as error:
        TableInput(schema, [tmp_path / "t.parquet"])
    assert "epoch = 'seconds' under [columns.at]" in str(error.value.hint)


def test_times_of_later_files_in_another_unit_or_form_are_named(tmp_path: Path):
    for name, at in (("1", 1_767_225_600), ("2", 1_767_225_600_000), ("3", "2026-01-01")):
        (tmp_path / f"{name}.csv").write_text("clicked,at,user\n" + f"1,{at},u\n0,{at},v\n")
    described = {"label": "clicked", "sparse": ["user"], "columns": {"at": {"epoch": "seconds", "parts": ["hour"]}}}
    with pytest.raises(DataError, match=r"2\.csv: at has numbers such as .* probably milliseconds") as error:
        TableInput(read_schema(described, "my.toml"), [tmp_path / "1.csv", tmp_path / "2.csv"])
    assert error.value.hint == "give them in the unit of 1.csv"
    assert TableInput(read_schema(described, "my.toml"), [tmp_path / "1.csv", tmp_path / "3.csv"]).doubts == []
    plain = read_schema({"label": "clicked", "sparse": ["user"]}, "my.toml")
    with pytest.raises(DataError, match="column 'at' has times in some files and numbers in others"):
        TableInput(plain, [tmp_path / "1.csv", tmp_path / "3.csv"], split=Split("time", column="at"))


@pytest.mark.parametrize(
    ("epoch", "scale", "said"),
    [
        ("seconds", 1, None),
        ("milliseconds", 1000, None),
        ("seconds", 1000, "such as 1767225600000 (beyond the year 9999 in seconds): probably milliseconds since 1970"),
        ("milliseconds", 1, "such as 1767225600 (1970 in milliseconds): probably seconds since 1970"),
        ("microseconds", 1000, "such as 1767225600000 (1970 in microseconds): probably milliseconds since 1970"),
        (None, 1000, "such as 1767225600000 without a unit: probably milliseconds since 1970"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_another_unit_than_the_declared_one_is_named(
    epoch: str | None, scale: int, said: str | None, form: str, tmp_path: Path
):
    if epoch is None and form == "parquet":
        pytest.skip("refused by its type, see above")
    frame = pl.DataFrame({"clicked": [1, 0, 1], "at": [1_767_225_600 * scale, None, 1_767_225_600 * scale]})
    write = {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}
    write[form](tmp_path / f"t.{form}")
    at = {"parts": ["hour"]} | ({"epoch": epoch} if epoch else {})
    schema = read_schema({"label": "clicked", "sparse": [], "columns": {"at": at}}, "my.toml")
    try:
        found = TableInput(schema, [tmp_path / f"t.{form}"]).doubts
    except DataError as error:
        found = [f"{error.message}; {error.hint}"]
    assert len(found) == (said is not None)
    assert said is None or (said in found[0] and "set epoch = '" in found[0] and found[0].count("at has") == 1)


def test_a_plain_schema_is_written_as_before():
    schema = read_schema({"label": "clicked", "dense": ["age"], "sparse": ["user"]}, "my.toml")
    written = schema.to_dict()
    assert set(written["dense"][0]) == {"name", "transform", "missing", "missing_value"}
    assert set(written["sparse"][0]) == {"name", "max_ids", "truncate", "type", "missing"}
    assert "times" not in written
    assert TableSchema.from_dict(SCHEMA.to_dict(), "my.toml") == SCHEMA
