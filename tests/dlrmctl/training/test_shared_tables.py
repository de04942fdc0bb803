"""Commands on data whose columns share a table."""

import json
from pathlib import Path

import polars as pl
import pytest

from tests.data.visits import SHARED, visits, write, write_schema
from tests.dlrmctl.checkpoints import read_tensors
from tests.dlrmctl.commands import in_process

MODEL = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "128", "--epochs", "1"]
QR = ["--embedding", "qr", "--collisions", "3", "--qr-threshold", "10"]


def _done(*arguments: str | Path) -> str:
    done = in_process(*arguments)
    assert done.status == 0, done.err
    return done.out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of two days and runs on the first one, with full tables and with quotients and remainders."""
    place = tmp_path_factory.mktemp("shared")
    schema = write_schema(place / "my.toml", {**SHARED, "weight": "importance", "group": "user", "id": ["session"]})
    first, second = write(visits(), place / "1.csv"), write(visits(seed=1, items=90), place / "2.parquet")
    _done("prepare", "--schema", schema, first, "-o", place / "1", "--keep-rare")
    _done("prepare", "--schema", schema, second, "-o", place / "2", "--extend", place / "1")
    _done("train", "--data", place / "1", *MODEL, "--run-dir", place / "full")
    _done("train", "--data", place / "1", *MODEL, *QR, "--run-dir", place / "qr")
    return place


@pytest.mark.parametrize("run", ["full", "qr"])
def test_one_table_serves_all_its_columns(place: Path, run: str):
    tensors = read_tensors(next((place / run / "checkpoints").glob("step-*")))
    names = {name for name in tensors if name.startswith("tables.") and name.endswith("/weight")}
    parts = ["item@q", "item@r"] if run == "qr" else ["item"]
    users = ["user@q", "user@r"] if run == "qr" else ["user"]
    assert names == {f"tables.{name}/weight" for name in (*parts, *users)}
    wide = {name.removeprefix("wide.").split("/")[0].split("@")[0] for name in tensors if name.startswith("wide.")}
    assert wide >= {"item", "history", "last_item"}  # every column has first-order weights of its own
    evaluated = json.loads(_done("evaluate", place / run, "--json"))
    assert 0 < evaluated["test"]["log_loss"] < 1


@pytest.mark.parametrize("run", ["full", "qr"])
def test_what_is_made_of_a_run_scores_like_it(place: Path, run: str):
    _done("predict", place / run, place / "1.csv", "--labelled", "-o", place / f"{run}.parquet")
    _done("export", place / run, "-o", place / f"{run}.dlrm")
    _done("compress-embeddings", place / run, "-o", place / f"{run}-small", "--target-ratio", "2x")
    _done("evaluate", place / f"{run}-small")
    plan = json.loads(
        _done("plan", "--data", place / "1", *MODEL, *(QR if run == "qr" else []), "--nproc", "2", "--json")
    )
    assert "item" in str(plan)
    assert pl.read_parquet(place / f"{run}.parquet")["probability"].is_between(0, 1).all()


@pytest.mark.parametrize("run", ["full", "qr"])
def test_shared_tables_grow_for_new_ids(place: Path, run: str):
    more = QR if run == "qr" else []
    _done("train", "--data", place / "2", *MODEL, *more, "--init-from", place / run, "--run-dir", place / f"{run}-2")
    before, after = (read_tensors(next((place / r / "checkpoints").glob("step-*"))) for r in (run, f"{run}-2"))
    name = "tables.item@q/weight" if run == "qr" else "tables.item/weight"
    assert len(after[name]) >= len(before[name])
    if run == "full":
        assert len(after[name]) > len(before[name])


def test_columns_may_share_hashed_ids(place: Path):
    prepare = ("prepare", "--schema", place / "my.toml", place / "1.csv", "-o", place / "hashed")
    _done(*prepare, "--ids", "hash", "--hash-rows", "60")
    _done("train", "--data", place / "hashed", *MODEL, "--run-dir", place / "of-hashed")
    exported = json.loads(_done("export", place / "of-hashed", "-o", place / "hashed.dlrm", "--json"))
    assert exported["checks"]["largest_difference"] < 1e-6  # of raw rows, read anew
    tensors = read_tensors(next((place / "of-hashed" / "checkpoints").glob("step-*")))
    assert tensors["tables.item/weight"].shape == (60, 8)
