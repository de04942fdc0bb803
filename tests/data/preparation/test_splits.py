"""Splits at random, by group and by time give the rows that a plain reading gives, in the same bytes every time."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.raw import join_pieces
from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.preparation.arranging import KeyOrder, merge_parts, spans_of_passes
from dlrmctl.data.preparation.keys import final_keys, keys_of
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.parts import Parts
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.preparation.report import PrepareProgress
from dlrmctl.data.sealed import Values
from dlrmctl.data.source import SPLITS
from dlrmctl.data.splits import Split
from dlrmctl.data.store.store import Store
from dlrmctl.data.workers.pool import Workers
from tests.data.preparation.test_interrupted import content, kill_at, prepare_small
from tests.data.preparation.test_prepare_inputs import check, plain_ids, prepared, report_of
from tests.data.raw_inputs import FEATURES, ArrayInput

ROWS = [260, 160]
SCHEMA = read_schema({"label": "clicked", "dense": ["age"], "sparse": ["user", "page"]}, "my.toml")


@pytest.mark.parametrize("split", [Split("random", seed=3), Split("group", "user", fractions=(0.5, 0.25, 0.25))])
def test_rows_are_drawn_once_and_keep_their_order(tmp_path: Path, split: Split) -> None:
    input = ArrayInput(ROWS, features=FEATURES)
    store = prepared(input, tmp_path / "a", PrepareOptions(split=split, block_rows=64), part_rows=60, workers=1)
    rows = {name: _rows(store, input, name) for name in SPLITS}
    assert sorted(row for of_split in rows.values() for row in of_split) == [*range(sum(ROWS))]
    assert all(of_split == sorted(of_split) for of_split in rows.values())
    check(store, input, rows, plain_ids(input, rows["train"]))
    if split.by == "group":
        users = [
            {input.lists_FN[0][row][0] for row in of_split if input.lists_FN[0][row]} for of_split in rows.values()
        ]
        assert not (users[0] & users[1] | users[0] & users[2] | users[1] & users[2])
    again = prepared(input, tmp_path / "b", PrepareOptions(split=split, block_rows=64), part_rows=1000, workers=3)
    names = [path.name for path in tmp_path.glob("a/*") if path.name != "manifest.json"]
    assert all((store.path / name).read_bytes() == (again.path / name).read_bytes() for name in names if "." in name)


def _rows(store: Store, input: ArrayInput, split: str) -> list[int]:
    """The numbers of the rows of a split, by its rule."""
    assert store.manifest.preparation is not None
    rule = store.manifest.preparation.split
    keys = keys_of(rule, input)
    written = keys and keys([task.read() for task in input.tasks()])
    return np.flatnonzero(final_keys(rule, written, 0, sum(ROWS)) == SPLITS.index(split)).tolist()


def _frame(rows: int = 600) -> pl.DataFrame:
    draw = np.random.default_rng(1)
    seconds = draw.integers(0, 20 * 86400, rows) // 7200 * 7200
    return pl.DataFrame(
        {
            "clicked": draw.integers(0, 2, rows),
            "age": draw.integers(0, 90, rows),
            "user": [f"user {u}" for u in draw.zipf(1.5, rows) % 50],
            "page": draw.integers(0, 40, rows),
            "at": pl.Series(seconds * 1_000_000 + 1_767_225_600_000_000).cast(pl.Datetime("us")),
            "number": np.arange(rows),
        }
    )


def _written(frame: pl.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".arrow":
        frame.with_columns(pl.col("at").dt.cast_time_unit("ns")).write_ipc(path)
    else:
        texts = frame.with_columns(pl.col("at").dt.to_string("%Y-%m-%d %H:%M:%S"))
        texts.write_csv(path) if path.suffix == ".csv" else texts.write_ndjson(path)
    return path


@pytest.mark.parametrize(
    "split", [Split("time", "at", until=("2026-01-10T06:00:00", "2026-01-15")), Split("time", "at")]
)
def test_rows_are_in_the_order_of_time_in_every_format(tmp_path: Path, split: Split) -> None:
    frame, found = _frame(), []
    ordered = frame.sort("at", maintain_order=True)
    for suffix, part_rows in (("csv", 70), ("parquet", 1000), ("jsonl", 130), ("arrow", 200)):
        how: dict[str, Any] = {"piece_bytes": 2000} if suffix in ("csv", "jsonl") else {"piece_rows": 90}
        input = TableInput(SCHEMA, [_written(frame, tmp_path / f"t.{suffix}")], split=split, **how)
        options = PrepareOptions(split=split, block_rows=100, min_count=1)
        prepare(input, tmp_path / suffix, options, part_rows=part_rows, most_in_memory=20, workers=2)
        found.append({name: data for name, data in content(tmp_path / suffix).items() if name != "manifest.json"})
    assert all(other == found[0] for other in found)
    store = Store(tmp_path / "csv")
    report, start = report_of(store), 0
    for name in SPLITS:
        of_split = ordered[start : start + store.num_examples(name)]
        start += len(of_split)
        blocks = [store.read_block(name, index) for index in range(-(-len(of_split) // 100))]
        ids = np.concatenate([np.asarray(block.ids_F[0]) for block in blocks])
        assert store.features.values_of("user", ids.tolist()) == [
            user if id > 1 else None for user, id in zip(of_split["user"], ids.tolist(), strict=True)
        ]
        assert np.concatenate([block.labels_N for block in blocks]).tolist() == of_split["clicked"].to_list()
        assert report.splits[name].first == of_split["at"][0].isoformat().removesuffix("T00:00:00")
        if name != "test":  # the next split begins with another moment
            assert of_split["at"][-1] < ordered["at"][start]
    if split.until:
        assert store.num_examples("train") == frame.filter(pl.col("at") < datetime(2026, 1, 10, 6)).height
    else:
        assert abs(store.num_examples("train") - 600 * 6 / 7) < 30
    assert store.manifest.preparation is not None
    assert store.manifest.preparation.split == split


def test_many_parts_are_merged_like_one(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    parts = Parts(tmp_path / "parts", ("price", "age"), np.dtype(np.float16), FEATURES, keyed=True)
    input, keys = ArrayInput([200], piece_rows=20), draw.integers(0, 9, 200).astype(np.uint64)
    keys[50] = np.iinfo(np.uint64).max
    for number, task in enumerate(input.tasks()):
        parts.add(parts.write(number, [task.read()], {}, keys[20 * number : 20 * (number + 1)]))
    order, ranks = KeyOrder(parts), np.argsort(keys, kind="stable")
    for rank in (0, 1, 57, 120, 199, 200):
        expected = np.bincount(ranks[:rank] // 20, minlength=10)
        assert order.places(rank).tolist() == expected.tolist()
    assert [order.below(key) for key in (0, 4)] == [0, int((keys < 4).sum())]


@pytest.mark.parametrize("kind", ["drawn", "few", "sorted", "equal", "nearly sorted"])
def test_passes_leave_all_rows_in_order(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlrmctl.data.preparation.arranging.MOST_MERGED", 3)
    draw, rows = np.random.default_rng(0), 240
    keys = {
        "drawn": draw.integers(0, 1 << 63, rows),
        "few": draw.integers(0, 3, rows),
        "sorted": np.arange(rows) // 7,
        "equal": np.zeros(rows),
        "nearly sorted": np.arange(rows) + draw.integers(0, 20, rows),
    }[kind].astype(np.uint64)
    input = ArrayInput([rows], piece_rows=20)
    parts = Parts(tmp_path / "0", ("price", "age"), np.dtype(np.float16), FEATURES, keyed=True)
    for number, task in enumerate(input.tasks()):
        some = task.read().pick(np.arange(0 if number == 5 else 20))  # a part may have no good row
        keys_N = keys[20 * number : 20 * number + len(some)]
        parts.add(parts.write(number, [some], {}, keys_N))
    keys = np.delete(keys, np.arange(100, 120))
    whole = join_pieces([task.read() for number, task in enumerate(input.tasks()) if number != 5])
    expected = whole.pick(np.argsort(keys, kind="stable"))
    order = KeyOrder(parts)
    spans = spans_of_passes(order)
    assert spans == ([] if kind in ("sorted", "equal") else [3, 9, 27])
    with Workers(2) as workers:
        for number, span in enumerate(spans, 1):
            target = Parts(tmp_path / f"{number}", ("price", "age"), np.dtype(np.float16), FEATURES, keyed=True)
            merge_parts(parts, target, span, workers, lambda done, begun: None)
            assert len(target) == len(parts)
            parts = target
    found = join_pieces([parts.rows(part, 0, info.rows) for part, info in enumerate(parts.infos)])
    assert np.concatenate([parts.keys(part) for part in range(len(parts))]).tolist() == np.sort(keys).tolist()
    assert found.labels_N.tolist() == expected.labels_N.tolist()
    assert np.array_equal(found.dense_IN, expected.dense_IN, equal_nan=True)
    for ours, theirs in zip(found.sparse, expected.sparse, strict=True):
        assert ours.values.tolist() == theirs.values.tolist()
        for of_ours, of_theirs in ((ours.present_N, theirs.present_N), (ours.lengths_N, theirs.lengths_N)):
            assert of_ours is of_theirs is None or np.array_equal(of_ours, of_theirs)


@pytest.mark.parametrize(
    ("split", "event", "number"),
    [
        (Split("time", "at"), "arrange", 50),
        (Split("time", "at"), "sync", 150),
        (Split("group", "page", (0.5, 0.25, 0.25)), "arrange", 20),
        (Split("group", "page", (0.5, 0.25, 0.25)), "sync", 200),
    ],
)
def test_a_killed_split_goes_on_and_makes_the_same_bytes(tmp_path: Path, split: Split, event: str, number: int) -> None:
    path = _written(_frame(100), tmp_path / "t.csv")
    steps: dict[str, Any] = {"split": split, "part_rows": 2, "piece_bytes": 100}  # times are merged in two passes
    prepare_small([path], tmp_path / "whole", split=split)
    assert kill_at([path], tmp_path / "store", event, number, **steps) < 0
    told: list[PrepareProgress] = []
    prepare_small([path], tmp_path / "store", told.append, **steps)
    assert content(tmp_path / "store") == content(tmp_path / "whole")
    merged = [progress for progress in told if progress.phase == "arrange"]
    assert merged[-1].done == merged[-1].total == (200 if split.by == "time" else 100)
    if event == "arrange":
        assert merged[-1].total - 100 < merged[0].begun < merged[-1].total


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split("time", "at", until=("2027-01-01", "2027-02-01")), r"validation split empty .*at is from 2026-01-01"),
        (Split("time", "at", until=("5", "7")), r"column 'at' has times, but the splits end at numbers: 5"),
        (Split("time", "number", until=("2026-01-01", "2026-01-02")), r"column 'number' has numbers, .* times"),
        (Split("time", "user"), r"column 'user' has neither times nor numbers in its first rows"),
        (Split("time", "att"), r"t\.csv: no column 'att' to split by.*did you mean 'at'\?"),
        (Split("group", "clicked"), r"\d+ good rows leave the (validation|test) split empty.*too few groups"),
    ],
)
def test_a_split_that_does_not_fit_is_one_line(tmp_path: Path, split: Split, message: str) -> None:
    path = _written(_frame(100), tmp_path / "t.csv")
    with pytest.raises(DataError) as caught:
        prepare(TableInput(SCHEMA, [path], split=split), tmp_path / "store", PrepareOptions(split=split))
    assert re.search(message, f"{caught.value.message} {caught.value.hint}")
    assert not (tmp_path / "store.partial").exists()


@pytest.mark.parametrize(
    ("by", "column", "values"),
    [("group", "list", [[1]]), ("group", "bytes", [b"x"]), ("time", "span", [timedelta(1)]), ("time", "flag", [True])],
)
def test_a_column_of_another_type_is_one_line(tmp_path: Path, by: str, column: str, values: list[Any]) -> None:
    frame = pl.DataFrame({"clicked": [1], "age": [2], "user": ["u"], "page": ["p"], column: values})
    frame.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=rf"t\.parquet: column '{column}' is of type"):
        TableInput(SCHEMA, [tmp_path / "t.parquet"], split=Split(by, column))


def test_rows_without_a_time_are_bad_and_without_a_group_are_drawn_alone(tmp_path: Path) -> None:
    lines = [f"{i % 2},{i},user {i % 3},{i},{'' if i % 50 == 0 else f'2026-01-{1 + i % 28:02}'}" for i in range(200)]
    (tmp_path / "t.csv").write_text("\n".join(["clicked,age,user,page,at", *lines, ""]))
    split = Split("time", "at")
    report = prepare(TableInput(SCHEMA, [tmp_path / "t.csv"], split=split), tmp_path / "a", PrepareOptions(split=split))
    assert report.rejected == {"no time": 4}
    assert "t.csv, line 2: at is missing, expected a time such as" in str(report.examples[0])
    empty = [line.replace(f"user {i % 3}", "") for i, line in enumerate(lines)]
    (tmp_path / "t.csv").write_text("\n".join(["clicked,age,user,page,at", *empty, ""]))
    split = Split("group", "user")
    report = prepare(TableInput(SCHEMA, [tmp_path / "t.csv"], split=split), tmp_path / "b", PrepareOptions(split=split))
    assert 140 < report.splits["train"].examples < 195


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "radnom"}, "splitting by 'radnom' is not known"),
        ({"by": "time"}, "splitting by time needs a column"),
        ({"by": "order", "column": "at"}, "splitting by order has no column"),
        ({"by": "order", "fractions": (0.5, 0.6, -0.1)}, "must all be above 0"),
        ({"by": "order", "fractions": (0.5, 0.2, 0.2)}, "add up to 0.9, expected 1"),
        ({"by": "last-file", "fractions": (0.5, 0.2, 0.3)}, "contradict"),
        ({"by": "time", "column": "at", "until": ("5", "4")}, "the first must be before the second"),
        ({"by": "time", "column": "at", "until": ("5", "2026-01-01")}, "one is a number, the other is not"),
        ({"by": "time", "column": "at", "until": ("5", "soon")}, "'soon' is not a time"),
        ({"by": "time", "column": "at", "until": ("5",)}, "1 times at which splits end, expected 2"),
        ({"by": "random", "until": ("5", "6")}, "need a split by time"),
    ],
)
def test_a_wrong_rule_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Split(**arguments)


def test_rules_of_stores_of_before_have_a_name_alone() -> None:
    assert Split.from_values("last-file", None) == Split("last-file")
    rule = Split("group", "user", fractions=(0.5, 0.25, 0.25), seed=3)
    assert Split.from_values(rule.name, Values(rule.to_dict())) == rule
