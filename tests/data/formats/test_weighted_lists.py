"""Lists with weights, and lists that are pooled by their mean: the same in every format, through every step."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.table_schema import TableSchema, read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.new_rows import read_new_rows
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.reader import Reader
from dlrmctl.data.splits import Split
from dlrmctl.data.store.store import Store
from tests.data.formats.test_same_values import content
from tests.data.visits import WEIGHTED, visits, write

ROWS = 700


def _input(path: Path) -> TableInput:
    return TableInput(read_schema(WEIGHTED, "my.toml"), [path], piece_rows=300, piece_bytes=20_000)


def _prepared(place: Path, name: str, frame: pl.DataFrame, **options: Any) -> Store:
    path = write(frame, place / name)
    prepare(_input(path), place / f"{name}.store", PrepareOptions(block_rows=128, **options), part_rows=200)
    return Store(place / f"{name}.store")


def _bags(block: Any, f: int) -> list[tuple[list[int], list[float]]]:
    ends = np.cumsum(block.lengths_FN[f])
    ids, weights = block.ids_F[f], block.id_weights_F[f]
    return [(ids[a:b].tolist(), weights[a:b].tolist()) for a, b in zip([0, *ends], ends, strict=False)]


def test_weights_are_the_same_in_every_format_and_follow_their_values(tmp_path: Path):
    frame = visits(ROWS)
    stores = [_prepared(tmp_path, name, frame) for name in ("a.csv", "b.jsonl", "c.parquet")]
    assert content(stores[0].path) == content(stores[1].path) == content(stores[2].path)
    store = stores[0]
    block = store.read_block("train", 0)
    assert block.id_weights_F is not None
    assert block.id_weights_F[0] is None
    known = store.features.encoder("item")
    assert known is not None
    histories, seconds = frame["history"].to_list(), frame["seconds"].to_list()
    for row, (ids, weights) in enumerate(_bags(block, 1)):
        assert len(ids) == min(4, len(histories[row]))
        assert weights == [np.float32(second) for second in seconds[row][-4:]]
    for row, (ids, weights) in enumerate(_bags(block, 2)):
        count = min(3, len(histories[row]))
        assert len(ids) == count
        assert weights == [np.float32(1 / count)] * count if count else not weights
    new = next(read_new_rows(_input(tmp_path / "c.parquet"), store.features.encoders(), store.schema)).block
    assert new.id_weights_F is not None
    assert _bags(new, 1)[:100] == _bags(block, 1)[:100]
    assert _bags(new, 2)[:100] == _bags(block, 2)[:100]


def test_a_sample_in_another_order_keeps_weights_with_their_values(tmp_path: Path):
    # A weight that is made of its value shows where it went.
    frame = visits(ROWS)
    number = lambda name: float(name.removeprefix("item-")) + 1  # noqa: E731
    frame = frame.with_columns(seconds=pl.Series([[number(name) for name in names] for names in frame["history"]]))
    store = _prepared(tmp_path, "a.csv", frame, split=Split("random", seed=1), sample_negatives=0.5, min_count=1)
    names = store.features.values_of("history", range(store.schema.sparse[1].rows))
    seen = 0
    for shuffle in (True, False):
        reader = Reader(store, "train", batch_size=64, world_size=2, rank=1, shuffle=shuffle, seed=3)
        for batch in reader.batches(0):
            assert batch.lengths_FB is not None
            assert batch.id_weights is not None
            first, second = batch.lengths_FB.sum(1).tolist()[:2]
            assert bool((batch.id_weights[:first] == 1).all())
            mine = slice(first, first + second)
            for id_, weight in zip(batch.ids[mine].tolist(), batch.id_weights[mine].tolist(), strict=True):
                value = names[id_]
                assert value is None or weight == number(value)
                seen += 1
    assert seen > 500


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [
        ([1.0], "lists of different lengths"),
        (None, "lists of different lengths"),
        ([1.0, float("nan")], "not a number"),
    ],
)
def test_wrong_weights_make_a_bad_row(tmp_path: Path, seconds: list[float] | None, reason: str):
    rows = visits(300)
    histories, weights = rows["history"].to_list(), rows["seconds"].to_list()
    histories[7], weights[7] = ["item-1", "item-2"], seconds
    kinds = {"history": pl.List(pl.String), "seconds": pl.List(pl.Float32)}
    rows = rows.with_columns(
        history=pl.Series(histories, dtype=kinds["history"]), seconds=pl.Series(weights, dtype=kinds["seconds"])
    )
    for name in ("a.parquet", "b.csv"):
        made = _prepared(tmp_path, name, rows, max_bad_rows=1).manifest.preparation
        assert made is not None
        assert made.report["rejected"] == {reason: 1}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"weights": "seconds"}, "weights is for lists"),
        ({"pooling": "mean"}, "pooling is for lists"),
        ({"max_ids": 4, "pooling": "max"}, "pooling = 'max' must be one of sum, mean"),
        ({"max_ids": 4, "weights": "price"}, "weights = 'price' is a feature or the label"),
        ({"max_ids": 4, "weights": "history"}, "weights = 'history' is a feature or the label"),
    ],
)
def test_wrong_combinations_get_one_line(section: dict[str, Any], message: str):
    columns = {**WEIGHTED["columns"], "history": section}
    sparse = ["item", "history"] if section.get("max_ids") is None else WEIGHTED["sparse"]
    columns = {name: columns[name] for name in sparse if name in columns}
    with pytest.raises(DataError, match=r"my\.toml: columns\.history\.") as error:
        read_schema({**WEIGHTED, "sparse": sparse, "columns": columns}, "my.toml")
    assert message in str(error.value)


def test_a_schema_survives_json():
    schema = read_schema(WEIGHTED, "my.toml")
    assert TableSchema.from_dict(schema.to_dict(), "my.toml") == schema
