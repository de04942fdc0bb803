"""Columns that share a table have one vocabulary, counted over all of them, in every format."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.formats.table_schema import TableSchema, read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.store.store import Store
from tests.data.formats.test_same_values import content
from tests.data.visits import SHARED, visits, write

ROWS = 900
TRAIN = 771  # 6/7 of the rows
FEATURES = ("last_item", "item", "history")


def _prepared(place: Path, name: str, frame: Any = None, out: str | None = None, **options: Any) -> Store:
    frame = visits(ROWS) if frame is None else frame
    table = TableInput(read_schema(SHARED, "my.toml"), [write(frame, place / name)], piece_rows=300)
    out = out or f"{name}.store"
    prepare(table, place / out, PrepareOptions(block_rows=256, **options), part_rows=200, most_in_memory=16)
    return Store(place / out)


def test_columns_of_one_table_have_one_vocabulary(tmp_path: Path):
    stores = [_prepared(tmp_path, name) for name in ("a.csv", "b.jsonl", "c.parquet")]
    assert content(stores[0].path) == content(stores[1].path) == content(stores[2].path)
    store, frame = stores[0], visits(ROWS)[:TRAIN]
    assert [f.table for f in store.schema.sparse] == ["item", None, "item", "item"]
    counts = Counter(frame["item"].to_list())
    counts.update(name for name in frame["last_item"].to_list() if name is not None)
    counts.update(name for names in frame["history"].to_list() for name in names)
    kept = {name: count for name, count in counts.items() if count >= 2}
    missing = frame["last_item"].null_count()
    known = {}
    for name in FEATURES:
        features = store.features
        rows = next(f.rows for f in store.schema.sparse if f.name == name)
        values = features.values_of(name, range(rows))
        found = features.counts(name)
        assert found is not None
        assert dict(zip(values[2:], found[2:].tolist(), strict=True)) == kept
        assert found[0] == missing
        assert found[1] == sum(counts.values()) - sum(kept.values())
        known[name] = values
    assert known["item"] == known["history"] == known["last_item"]
    block = store.read_block("train", 0)
    assert block.lengths_FN is not None
    f = store.schema.keys.index("history")
    assert [known["item"][i] for i in block.ids_F[f][: block.lengths_FN[f][:20].sum()]] == [
        name if name in kept else None for names in frame["history"][:20].to_list() for name in names
    ]
    files = [path.name for path in (store.path / "vocabulary").iterdir()]
    assert not [name for name in files if name.startswith(("history", "last_item"))]
    store.features.save(tmp_path / "kept")
    assert set(FeatureSpace.open(tmp_path / "kept").encoders()) == {*FEATURES, "user"}


def test_hashed_columns_of_one_table_have_one_hash(tmp_path: Path):
    store = _prepared(tmp_path, "a.csv", hash_rows=50)
    item, last = (store.features.encoder(name) for name in ("item", "last_item"))
    assert item == last
    counts = store.features.counts("history")
    frame = visits(ROWS)[:TRAIN]
    assert counts is not None
    assert counts.sum() == 2 * TRAIN + sum(map(len, frame["history"].to_list()))


def test_new_values_of_any_column_extend_the_table(tmp_path: Path):
    first = _prepared(tmp_path, "a.csv", keep_rare=True)
    day = visits(ROWS, seed=1, items=80)
    second = _prepared(tmp_path, "b.csv", day, extend=first.path)
    before, after = (
        store.features.values_of("history", range(store.schema.sparse[2].rows)) for store in (first, second)
    )
    assert after[: len(before)] == before
    assert len(after) > len(before)
    frozen = _prepared(tmp_path, "b.csv", day, out="frozen", vocabulary_from=first.path)
    assert frozen.features.encoder("history").rows == len(before)
    total = second.features.counts("item")
    added = frozen.features.counts("item")
    old = first.features.counts("item")
    assert total is not None
    assert added is not None
    assert old is not None
    assert (total[2 : len(before)] == added[2:] + old[2:]).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"user": {"table": "item", "type": "string"}},
            "columns.user.table = 'item': 'item' has other values, of type any, not string",
        ),
        (
            {"late": {"column": "user", "cross": ["user", "item"], "table": "item"}},
            "columns.late.cross and table contradict",
        ),
        (
            {"user": {"table": "old"}, "old": {"column": "price", "buckets": 4}},
            "columns.user.table = 'old': 'old' is made of others, and cannot share its table",
        ),
    ],
)
def test_wrong_combinations_get_one_line(columns: dict[str, Any], message: str):
    sparse = [*SHARED["sparse"], *(name for name in columns if name not in SHARED["sparse"])]
    with pytest.raises(DataError) as error:
        read_schema({**SHARED, "sparse": sparse, "columns": columns}, "my.toml")
    assert str(error.value) == f"my.toml: {message}"


def test_a_schema_survives_json():
    schema = read_schema(SHARED, "my.toml")
    assert TableSchema.from_dict(schema.to_dict(), "my.toml") == schema
