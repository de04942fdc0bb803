"""`dlrmctl export --vectors`: the vectors of values, by value and by row."""

from pathlib import Path

import faiss
import numpy as np
import polars as pl
import pytest

import dlrmctl
from tests.dlrmctl.commands import in_process
from tests.dlrmctl.small_tables import SCHEMA, TRAIN, rows_of_a_table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vectors")
    (directory / "my.toml").write_text(SCHEMA)
    (directory / "rows.csv").write_text(rows_of_a_table(400))
    for command in (
        ("prepare", "--schema", directory / "my.toml", directory / "rows.csv", "-o", directory / "store"),
        ("train", *TRAIN, "--data", directory / "store", "--run-dir", directory / "run", "--epochs", "1"),
    ):
        done = in_process(*command)
        assert done.status == 0, done.err
    return directory / "run"


def test_vectors_are_those_of_the_model(run: Path, tmp_path: Path):
    for suffix in ("parquet", "faiss"):
        done = in_process("export", run, "--vectors", "item", "-o", tmp_path / f"items.{suffix}", "--json")
        assert done.status == 0, done.err
    frame = pl.read_parquet(tmp_path / "items.parquet")
    assert done.json()["vectors"] == len(frame) > 10
    vectors_ND = frame["vector"].to_numpy()
    np.testing.assert_array_equal(vectors_ND, dlrmctl.load(run).embedding("item", frame["value"].to_list()))
    index = faiss.read_index(str(tmp_path / "items.faiss"))
    np.testing.assert_array_equal(index.reconstruct(int(frame["row"][3])), vectors_ND[3])


def test_what_has_no_vectors_is_one_line(run: Path, tmp_path: Path):
    for arguments, message in (
        (["--vectors", "itemm", "-o", "a.parquet"], "has no such sparse feature"),
        (["--vectors", "item", "-o", "a.csv"], "must end in .parquet or .faiss"),
        (["--vectors", "item", "-o", "a.parquet", "--precision", "int8"], "--vectors and --precision contradict"),
    ):
        done = in_process("export", run, *arguments)
        assert done.status == 2
        assert message in done.err
