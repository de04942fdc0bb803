"""`weight`, `group` and `id` of a schema: the same in every format, and wrong combinations."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.table_schema import TableSchema, read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.reader import Reader
from dlrmctl.data.splits import Split
from dlrmctl.data.store.store import Store
from tests.data.formats.test_same_values import content
from tests.data.visits import SCHEMA, visits, write


def _prepared(place: Path, frame: pl.DataFrame, name: str, schema: dict[str, Any] = SCHEMA, **options: Any) -> Store:
    table = TableInput(read_schema(schema, "my.toml"), [write(frame, place / name)], piece_rows=300, piece_bytes=20_000)
    prepare(table, place / f"{name}.store", PrepareOptions(block_rows=256, **options), part_rows=500)
    return Store(place / f"{name}.store")


@pytest.mark.parametrize("options", [{}, {"split": Split("random", seed=3), "sample_negatives": 0.5}])
def test_weights_and_groups_are_the_same_in_every_format(tmp_path: Path, options: dict[str, Any]):
    frame = visits()
    stores = [_prepared(tmp_path, frame, name, **options) for name in ("a.csv", "b.jsonl", "c.parquet")]
    assert content(stores[0].path) == content(stores[1].path) == content(stores[2].path)
    store = stores[0]
    assert (store.schema.weight, store.schema.group) == ("importance", "user")
    if options:
        return
    blocks = [store.read_block("train", i) for i in range(-(-store.num_examples("train") // 256))]
    blocks += [store.read_block(split, 0) for split in ("validation", "test")]
    weights_N = np.concatenate([block.weights_N for block in blocks])
    groups_N = np.concatenate([block.groups_N for block in blocks])
    assert np.array_equal(weights_N, frame["importance"].to_numpy())
    users = frame["user"].to_list()
    assert len(set(zip(users, groups_N.tolist(), strict=True))) == len(set(users)) == len(set(groups_N.tolist()))
    assert set(groups_N[[user is None for user in users]].tolist()) == {2**64 - 1}
    plain = {key: value for key, value in SCHEMA.items() if key not in ("weight", "group", "id")}
    without = _prepared(tmp_path, frame, "plain.csv", plain)
    assert "weight" not in (without.path / "manifest.json").read_text().replace("weighted", "")
    assert np.array_equal(without.read_block("test", 0).ids_F[0], blocks[-1].ids_F[0])


def test_batches_have_the_weights_and_groups_of_their_rows(tmp_path: Path):
    store = _prepared(tmp_path, visits(), "a.parquet")
    block = store.read_block("validation", 0)
    known = {(w, g): y for w, g, y in zip(block.weights_N, block.groups_N.view(np.int64), block.labels_N, strict=True)}
    assert known
    for shuffle in (False, True):
        reader = Reader(store, "validation", batch_size=64, world_size=2, rank=1, shuffle=shuffle, drop_last=False)
        for batch in reader.batches(0):
            assert batch.weights_B is not None
            assert batch.groups_B is not None
            pairs = zip(batch.weights_B.numpy(), batch.groups_B.numpy(), strict=True)
            assert all(pair in known for pair in pairs)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), None, 1e39])
def test_a_wrong_weight_makes_a_bad_row(tmp_path: Path, weight: float | None):
    frame = visits(300).with_columns(pl.col("importance").cast(pl.Float64))
    frame[7, "importance"] = weight
    store = _prepared(tmp_path, frame, "a.csv", max_bad_rows=1)
    made = store.manifest.preparation
    assert made is not None
    assert made.report["rejected"] == {"not a weight": 1}
    with pytest.raises(DataError, match=r"line 9: importance is .*, expected a weight of at least 0"):
        _prepared(tmp_path, frame, "b.csv", max_bad_rows=0)


def test_weights_that_are_all_0_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="all weights in column 'importance' are 0"):
        _prepared(tmp_path, visits(300).with_columns(importance=pl.lit(0)), "a.csv")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": "clicked"}, "weight = 'clicked' is the label too"),
        ({"weight": "price"}, "weight = 'price' is dense too"),
        ({"weight": "item"}, "weight = 'item' is a column of ids"),
        ({"group": "clicked"}, "group = 'clicked' is the label too"),
        ({"group": "importance"}, "group = 'importance' is the weight too"),
        ({"sparse": ["user"], "columns": {"user": {"max_ids": 3}}}, "group = 'user' is a column of lists"),
        ({"id": ["line"]}, "id: predictions have a column 'line' of their own"),
        ({"id": ["row", "row"]}, "id = ['row', 'row'] repeats a column"),
        ({"weight": 3}, "weight = 3 must be a string"),
    ],
)
def test_wrong_combinations_get_one_line(changes: dict[str, Any], message: str):
    with pytest.raises(DataError) as error:
        read_schema({**SCHEMA, **changes}, "my.toml")
    assert str(error.value) == f"my.toml: {message}"


@pytest.mark.parametrize("key", ["weight", "group", "id"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_missing_column_is_named(tmp_path: Path, key: str, name: str):
    with pytest.raises(DataError, match="no column 'rov', which my"):
        TableInput(
            read_schema({**SCHEMA, key: ["rov"] if key == "id" else "rov"}, "my.toml"),
            [write(visits(50), tmp_path / name)],
        )


def test_a_schema_survives_json():
    schema = read_schema(SCHEMA, "my.toml")
    assert TableSchema.from_dict(schema.to_dict(), "my.toml") == schema
