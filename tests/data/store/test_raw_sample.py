"""A store keeps raw rows of its validation split, whatever the format and the split."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.arrays import NpyInput
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.raw import Input
from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.splits import Split
from dlrmctl.data.store.manifest import RAW_SAMPLE as FILE
from dlrmctl.data.store.raw_sample import read_raw_sample
from dlrmctl.data.store.store import Store
from tests.data.criteo_files import as_text, make_rows

SCHEMA = read_schema(
    {"label": "clicked", "dense": ["age"], "sparse": ["user", "tags"], "columns": {"tags": {"max_ids": 9}}}, "my.toml"
)


def _sample(input: Input, out: Path, rows: int = 25, **options: object) -> tuple[pl.DataFrame, Store]:
    prepare(input, out, PrepareOptions(raw_sample=rows, **options), part_rows=60)  # type: ignore[arg-type]
    frame = read_raw_sample(out)
    assert frame is not None
    return frame, Store(out)


@pytest.mark.parametrize("split", [Split(), Split("random", seed=1), Split("group", "cat_1"), Split("last-file")])
def test_the_first_validation_rows_of_a_text_are_kept_as_they_are(tmp_path: Path, split: Split):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    rows = make_rows(700)
    bad = b"0\tnonsense\n"
    paths[0].write_bytes(bad + as_text(rows[:500]))
    paths[1].write_bytes(as_text(rows[500:], end="\r\n"))
    frame, store = _sample(CriteoInput(paths, piece_bytes=4000), tmp_path / "store", split=split, limit=690)
    if split.by == "last-file":
        assert frame.rows() == [tuple(row) for row in rows[500:525]]
    block = store.read_block("validation", 0)
    (tmp_path / "again.txt").write_bytes(as_text([list(row) for row in frame.rows()]))
    (task,) = CriteoInput([tmp_path / "again.txt"]).tasks()
    piece = task.read()
    count = min(25, len(block))
    assert len(piece) == count
    np.testing.assert_array_equal(piece.labels_N, block.labels_N[:count])
    np.testing.assert_array_equal(piece.dense_IN, block.dense_IN[:, :count])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("split", [Split(), Split("time", "at")])
def test_rows_of_tables_keep_their_columns(tmp_path: Path, suffix: str, split: Split):
    draw = np.random.default_rng(0)
    rows = [
        {
            **{"clicked": int(draw.random() < 0.4), "age": int(draw.integers(99)), "user": f"u{draw.integers(30)}"},
            "tags": [str(tag) for tag in draw.integers(9, size=draw.integers(4)).tolist()],
            "at": f"2026-01-{draw.integers(1, 29):02}",
        }
        for _ in range(400)
    ]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        pl.DataFrame(rows).with_columns(pl.col("tags").list.join("|")).write_csv(path)
    frame, store = _sample(
        TableInput(SCHEMA, [path], split=split, piece_bytes=2000, piece_rows=70), tmp_path / "s", split=split
    )
    found = [{**row, "age": int(row["age"]), "clicked": int(row["clicked"])} for row in frame.to_dicts()]
    wanted = rows[400 * 6 // 7 :][:25]
    if split.by == "time":
        assert store.manifest.preparation is not None
        ends = store.manifest.preparation.report["splits"]["validation"]
        first, last = ends["first"], ends["last"]
        wanted = [row for row in rows if first <= str(row["at"]) <= last][:25]
    if suffix == "csv":
        for row in wanted:
            row["tags"] = "|".join(row["tags"])  # type: ignore[arg-type]
    assert [{name: row.get(name) for name in found[0]} for row in wanted] == found


def test_arrays_are_kept_as_numbers_and_lists(tmp_path: Path):
    draw = np.random.default_rng(0)
    dense, labels = draw.random((300, 2), np.float32), draw.integers(2, size=(300, 1))
    ids = {"0": draw.integers(9, size=(300, 1)), "1": draw.integers(9, size=(300, 3))}
    np.save(tmp_path / "d_dense.npy", dense)
    np.save(tmp_path / "d_labels.npy", labels)
    np.savez(tmp_path / "d_sparse_multi_hot.npz", **ids)  # type: ignore[arg-type]
    frame, _ = _sample(NpyInput([tmp_path / "d_dense.npy"], piece_rows=50), tmp_path / "s", rows=1000)
    first, count = 300 * 6 // 7, len(frame)
    np.testing.assert_array_equal(frame["int_2"].to_numpy(), dense[first : first + count, 1])
    np.testing.assert_array_equal(np.array(frame["cat_2"].to_list()), ids["1"][first : first + count])


def test_a_store_without_a_sample_is_complete_and_a_damaged_one_is_named(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(as_text(make_rows(100)))
    prepare(CriteoInput([tmp_path / "a.txt"]), tmp_path / "plain", PrepareOptions())
    assert read_raw_sample(tmp_path / "plain") is None
    _sample(CriteoInput([tmp_path / "a.txt"]), tmp_path / "sampled")
    assert Store(tmp_path / "plain").fingerprint() == Store(tmp_path / "sampled").fingerprint()
    file = tmp_path / "sampled" / FILE
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"raw_sample.arrow: damaged"):
        read_raw_sample(tmp_path / "sampled")
