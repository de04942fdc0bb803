"""`--wide`: first-order weights are trained, resumed, scored, exported and kept by compression."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dlrmctl.assembly.compressed import WIDE_FILE
from dlrmctl.embeddings.wide import BUCKETS
from dlrmctl.rundir.stored_tables import CheckpointTables
from tests.dlrmctl.checkpoints import assert_bitwise_equal
from tests.dlrmctl.commands import SMALL, in_process
from tests.dlrmctl.training.test_ranks_agree import _losses
from tests.ranks import run_ranks

PLAIN = [*SMALL, "--synthetic-rows", "6000", "--evaluations", "2", "--wide"]
RUN = [*PLAIN, "--wide-start", "fitted"]
STEPS = 6000 // 256


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "run"
    done = in_process("train", *RUN, "--run-dir", path)
    assert done.status == 0, done.err
    assert "first-order weights, of rows and of the buckets of 13 dense features" in done.err
    return path


def test_a_run_that_was_cut_ends_like_a_whole_one(whole: Path, tmp_path: Path):
    for arguments in ([*RUN, "--run-dir", tmp_path / "cut", "--max-steps", "9"], ["--resume", tmp_path / "cut"]):
        done = in_process("train", *arguments, *(["--max-steps", "0"] if "--resume" in arguments else []))
        assert done.status == 0, done.err
    assert_bitwise_equal(*(run / "checkpoints" / f"step-{STEPS}" for run in (whole, tmp_path / "cut")))


def test_the_list_of_runs_tells_them_apart(whole: Path):
    [found] = in_process("runs", whole, "--json").json()
    assert found["tables"].endswith(" + wide")


def test_every_row_and_bucket_has_a_weight(whole: Path):
    tables = CheckpointTables(whole / "checkpoints" / "best")
    wide = tables.wide()
    assert len(wide) == 1 + len(tables.tables) + 13
    assert all(wide[f"{table.name}/weight"].shape == (table.rows,) for table in tables.tables)
    buckets = [wide[f"int_{column}/weight"] for column in range(1, 14)]
    assert all(weights.shape == (BUCKETS + 1,) and weights.any() for weights in buckets)


def test_every_score_has_the_first_order_part(whole: Path, tmp_path: Path):
    results = in_process("train", "--resume", whole, "--json").json()["test"]
    evaluated = in_process("evaluate", whole, "--split", "test", "--json").json()["test"]
    # Other lookups than in training, so to the rounding of float32.
    assert evaluated["log_loss"] == pytest.approx(results["log_loss"], rel=1e-6)
    done = in_process("export", whole, "-o", tmp_path / "run.pt2", "--precision", "int8", "--json")
    assert done.status == 0, done.err
    assert done.json()["checks"]["largest_difference"] < 0.01  # what 8 bits cost; without this part, 0.2


def test_compression_keeps_first_order_weights_as_they_are(whole: Path, tmp_path: Path):
    small = tmp_path / "small"
    done = in_process("compress-embeddings", whole, "-o", small, "--method", "fp32", "--json")
    assert done.status == 0, done.err
    assert done.json()["test"]["ne_increase"] == 0
    trained = CheckpointTables(whole / "checkpoints" / "best").wide()
    assert {name: value.tolist() for name, value in load_file(small / WIDE_FILE).items()} == {
        name: value.tolist() for name, value in trained.items()
    }
    done = in_process("export", small, "-o", tmp_path / "small.pt2", "--json")
    assert done.status == 0, done.err
    assert done.json()["checks"]["largest_difference"] < 1e-6
    (small / WIDE_FILE).unlink()
    refused = in_process("evaluate", small)
    assert refused.status == 2


def test_the_first_bias_is_the_logit_of_the_base_rate(tmp_path: Path):
    frozen = ["--sparse-lr", "0", "--qr-lr", "0", "--dense-lr", "0", "--wide-lr", "0", "--max-steps", "1"]
    done = in_process("train", *PLAIN, *frozen, "--run-dir", tmp_path / "run")
    assert done.status == 0, done.err
    network = CheckpointTables(tmp_path / "run" / "checkpoints" / "step-1").network()
    assert torch.sigmoid(network["top.layers.1.bias"]).item() == pytest.approx(0.26, abs=0.05)


def test_a_run_without_first_order_weights_goes_on_without_them(tmp_path: Path):
    without = ["--no-wide", "--run-dir", tmp_path / "run", "--max-steps", "2"]
    assert in_process("train", *PLAIN, *without).status == 0
    done = in_process("train", "--resume", tmp_path / "run", "--wide", "--max-steps", "4")
    assert done.status == 2
    assert "was trained with model.wide = false, not true" in done.err.lower()


@pytest.mark.parametrize("max_ids", [1, 3])
def test_two_ranks_take_the_same_steps_as_one(max_ids: int):
    flags = {"wide": "true", "embedding": "qr", "sharding": "row_wise", "dense_optimizer": "adagrad"}
    [alone] = run_ranks(_losses, 1, flags, max_ids)
    together = run_ranks(_losses, 2, flags, max_ids)
    assert together[0] == together[1]
    assert together[0] == pytest.approx(alone, rel=2e-6)  # sums in another order: test_ranks_agree.py
