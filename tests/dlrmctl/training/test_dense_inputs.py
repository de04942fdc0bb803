"""Dense inputs: fitted values are part of the model; data and runs of earlier versions are raw."""

import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from dlrmctl.data.sealed import write_sealed
from dlrmctl.data.source import SPLITS, Block
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import write_store
from dlrmctl.rundir.stored_tables import CheckpointTables
from dlrmctl.settings.config import AUTO_INPUTS
from dlrmctl.settings.toml import read_settings
from tests.dlrmctl.checkpoints import assert_bitwise_equal
from tests.dlrmctl.commands import in_process

MODEL = [
    *("--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "64"),
    *("--no-wide", "--shampoo-frequency", "5", "--evaluations", "2", "--epochs", "1"),
]
SCHEMA = """label = "y"
dense = ["year", "price"]
sparse = ["user", "item"]
transform = "log1p"
"""


def _table(path: Path, rows: int, *, seed: int, gaps: float) -> Path:
    draw = random.Random(seed)
    lines = ["y,year,price,user,item"]
    for _ in range(rows):
        year, price = draw.randint(1930, 1998), draw.paretovariate(1)
        label = int(draw.random() < (0.7 if year > 1970 else 0.2))
        shown = "" if draw.random() < gaps else f"{price:.2f}"
        lines.append(f"{label},{year},{shown},u{draw.randint(0, 20)},i{draw.randint(0, 9)}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, its store, a store of another day without gaps, and a run for each kind of inputs."""
    place = tmp_path_factory.mktemp("inputs")
    (place / "my.toml").write_text(SCHEMA)
    schema = ["--schema", place / "my.toml"]
    table = _table(place / "t.csv", 1400, seed=0, gaps=0.2)
    assert in_process("prepare", *schema, table, "-o", place / "store").status == 0
    other = _table(place / "other.csv", 700, seed=1, gaps=0.0)
    options = ["--vocabulary-from", place / "store", "-o", place / "other"]
    assert in_process("prepare", *schema, other, *options).status == 0
    for kind in ("raw", "standard", "quantile"):
        done = in_process(
            *("train", "--data", place / "store", "--run-dir", place / kind, "--dense-inputs", kind, *MODEL)
        )
        assert done.status == 0, done.err
    return place


def test_years_are_kept_apart_and_gaps_are_told(place: Path) -> None:
    store = Store(place / "store")
    assert store.schema.float32 == ("year",)
    assert store.schema.gaps == ("price",)
    years = np.concatenate([store.read_block(split, 0).dense_IN[0] for split in SPLITS])
    assert len(np.unique(years)) == 69  # 1930 to 1998; float16 has ten numbers there
    assert Store(place / "other").schema.gaps == ()


def test_statistics_are_of_the_training_rows(place: Path) -> None:
    store = Store(place / "store")
    train = store.read_block("train", 0).dense_IN[1].astype(np.float64)
    price = store.features.dense[1]
    assert (price.present, price.missing) == (int((~np.isnan(train)).sum()), int(np.isnan(train).sum()))
    assert price.mean == pytest.approx(np.nanmean(train), rel=1e-6)  # NumPy sums float16 as float64
    assert price.deviation == pytest.approx(np.nanstd(train), rel=1e-6)


@pytest.mark.parametrize("kind", ["standard", "quantile"])
def test_the_fit_is_in_every_checkpoint_and_missing_values_have_an_input(place: Path, kind: str) -> None:
    network = CheckpointTables(place / kind / "checkpoints" / "best").network()
    assert network["inputs.indicated_I"].tolist() == [0.0, 1.0]
    assert network["bottom.layers.0.weight"].shape == (16, 3)
    assert read_settings(place / kind / "run.toml")["model"]["dense_inputs"] == kind


def test_raw_models_have_no_more_than_before(place: Path) -> None:
    network = CheckpointTables(place / "raw" / "checkpoints" / "best").network()
    assert not [name for name in network if name.startswith("inputs")]
    assert network["bottom.layers.0.weight"].shape == (16, 2)


@pytest.mark.parametrize("kind", ["raw", "standard", "quantile"])
def test_every_score_uses_the_fit_of_the_training(place: Path, kind: str, tmp_path: Path) -> None:
    """On another day's store, whose own statistics are others and which has no gaps, and on raw rows."""
    run, other = place / kind, place / "other"
    evaluated = in_process("evaluate", run, "--data", other, "--split", "train", "--json")
    assert evaluated.status == 0, evaluated.err
    _table(tmp_path / "rows.csv", 700, seed=1, gaps=0.0)
    rows = (tmp_path / "rows.csv").read_text().splitlines(keepends=True)
    (tmp_path / "train.csv").write_text("".join(rows[:601]))
    predicted = in_process("predict", run, tmp_path / "train.csv", "-o", tmp_path / "p.csv", "--labelled", "--json")
    assert predicted.status == 0, predicted.err
    one, two = evaluated.json()["train"]["log_loss"], predicted.json()["metrics"]["log_loss"]
    assert one == pytest.approx(two, rel=1e-12)  # sums in another order


@pytest.mark.parametrize("kind", ["raw", "standard", "quantile"])
def test_exported_and_compressed_models_score_like_the_run(place: Path, kind: str, tmp_path: Path) -> None:
    exported = in_process("export", place / kind, "-o", tmp_path / "m.pt2", "--json")
    assert exported.status == 0, exported.err
    model = torch.export.load(tmp_path / "m.pt2").module()
    gap = torch.tensor([[7.6, float("nan")], [7.5, 1.0]])
    assert torch.isfinite(model(gap, torch.zeros(2, 2, dtype=torch.int64))).all()
    compressed = in_process(
        *(
            "compress-embeddings",
            place / kind,
            "-o",
            tmp_path / "small",
            "--method",
            "int8",
            "--min-rows",
            "1",
            "--json",
        )
    )
    assert compressed.status == 0, compressed.err
    scored = in_process("evaluate", tmp_path / "small", "--split", "test", "--json")
    assert scored.status == 0, scored.err
    whole = json.loads((place / kind / "results.json").read_text())["test"]["log_loss"]
    assert scored.json()["test"]["log_loss"] == pytest.approx(whole, rel=0.01)  # what 8 bits cost


def test_a_resumed_run_ends_like_one_that_was_not_stopped(place: Path, tmp_path: Path) -> None:
    train = ["train", "--data", place / "store", "--run-dir", tmp_path / "run", *MODEL]
    assert in_process(*train, "--dense-inputs", "quantile", "--max-steps", "7").status == 0
    assert in_process("train", "--resume", tmp_path / "run", "--max-steps", "0").status == 0
    last = max((place / "quantile" / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:])).name
    assert_bitwise_equal(tmp_path / "run" / "checkpoints" / last, place / "quantile" / "checkpoints" / last)


@pytest.fixture
def old_store(place: Path, tmp_path: Path) -> Path:
    """The store as an earlier version wrote it: a number for a missing value, and nothing fitted."""
    new = Store(place / "store")

    class Old:
        schema, block_rows = new.schema, new.block_rows
        num_examples, vocabulary_fingerprint = new.num_examples, new.vocabulary_fingerprint
        features = type("Features", (), {"dense": ()})

        def read_block(self, split: str, index: int) -> Block:
            block = new.read_block(split, index)
            block.dense_IN[np.isnan(block.dense_IN)] = -1
            return block

    write_store(Old(), tmp_path / "old")  # type: ignore[arg-type]
    content = Store(tmp_path / "old").manifest.to_dict()
    (tmp_path / "old" / "manifest.json").unlink()
    write_sealed(tmp_path / "old" / "manifest.json", "dlrmctl-store/2", content)
    return tmp_path / "old"


def test_a_store_of_an_earlier_version_is_taken_raw(place: Path, old_store: Path, tmp_path: Path) -> None:
    done = in_process("train", "--data", old_store, "--run-dir", tmp_path / "run", *MODEL)
    assert done.status == 0, done.err
    assert "dense features are not normalized" in done.err
    assert read_settings(tmp_path / "run" / "run.toml")["model"]["dense_inputs"] == "raw"
    # NaN becomes -1 in a raw model: the same trajectory, bit for bit.
    ours, theirs = (
        CheckpointTables(run / "checkpoints" / "best").network() for run in (tmp_path / "run", place / "raw")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_store_of_an_earlier_version_cannot_be_normalized(place: Path, old_store: Path, tmp_path: Path) -> None:
    refused = in_process("train", "--data", old_store, "--dense-inputs", "standard", "--run-dir", tmp_path / "run")
    assert refused.status == 2
    assert "an earlier version prepared it" in refused.err
    assert "prepare it again" in refused.err
    scored = in_process("evaluate", place / "raw", "--data", old_store, "--split", "test", "--json")
    assert scored.json()["test"] == json.loads((place / "raw" / "results.json").read_text())["test"]
    refused = in_process("evaluate", place / "quantile", "--data", old_store)
    assert refused.status == 2
    assert "an earlier version prepared it" in refused.err


def test_buckets_need_a_store_that_tells_missing_values_from_others(
    place: Path, old_store: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained = in_process(
        *("train", "--data", place / "store", "--run-dir", run, *MODEL, "--wide", "--dense-inputs", "raw"),
        *("--max-steps", "2"),
    )
    assert trained.status == 0, trained.err
    refused = in_process("evaluate", run, "--data", old_store)
    assert refused.status == 2
    assert "without what bucketed dense inputs need" in refused.err


def test_the_settings_of_a_run_of_an_earlier_version_mean_raw(place: Path, tmp_path: Path) -> None:
    text = (place / "raw" / "run.toml").read_text().replace('dense_inputs = "raw"\n', "")
    (tmp_path / "run.toml").write_text(text)
    assert read_settings(tmp_path / "run.toml")["model"]["dense_inputs"] == "raw"
    (tmp_path / "mine.toml").write_text("[train]\nseed = 3\n")
    assert "model" not in read_settings(tmp_path / "mine.toml")


def test_new_runs_are_normalized(place: Path, tmp_path: Path) -> None:
    done = in_process("train", "--data", place / "store", "--run-dir", tmp_path / "run", *MODEL, "--max-steps", "1")
    assert done.status == 0, done.err
    assert read_settings(tmp_path / "run" / "run.toml")["model"]["dense_inputs"] == AUTO_INPUTS != "raw"


def test_values_beyond_float16_are_kept_and_new_ones_count_as_its_largest(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(
        'label = "y"\ndense = ["income", "rate"]\nsparse = ["user"]\ntransform = "none"\n'
    )
    draw = random.Random(3)
    rows = [
        f"{draw.randint(0, 1)},{draw.randint(10_000, 900_000)},{draw.randint(0, 8) / 8},u{draw.randint(0, 9)}"
        for _ in range(700)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["y,income,rate,user", *rows]) + "\n")
    prepared = in_process("prepare", "--schema", tmp_path / "my.toml", tmp_path / "t.csv", "-o", tmp_path / "s")
    assert prepared.status == 0, prepared.err
    store = Store(tmp_path / "s")
    assert store.schema.float32 == ("income",)
    assert store.read_block("train", 0).dense_IN[0].tolist() == [float(row.split(",")[1]) for row in rows[:600]]
    trained = in_process(
        "train", "--data", tmp_path / "s", "--run-dir", tmp_path / "r", "--dense-inputs", "standard", *MODEL
    )
    assert trained.status == 0, trained.err
    (tmp_path / "new.csv").write_text("income,rate,user\n50000,65504,u1\n50000,1e6,u1\n1e38,1,u1\n1e39,1,u1\n")
    done = in_process("predict", tmp_path / "r", tmp_path / "new.csv", "-o", tmp_path / "p.csv")
    assert done.status == 0, done.err
    assert done.err == "new.csv, line 5: income is '1e39', expected at most 1e+38, or transform = 'log'\n"
    *scores, of_bad_row = pl.read_csv(tmp_path / "p.csv")["probability"]
    assert of_bad_row is None
    assert scores[0] == scores[1]
    assert np.isfinite(scores).all()
