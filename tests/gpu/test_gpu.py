"""A GPU gives what the CPU gives: `pytest -m gpu`, in under three minutes.

DLRMCTL_TESTED_DEVICE=cpu tries the tests themselves on a machine without one.
"""

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from dlrmctl.assembly.model import build_model
from dlrmctl.assembly.optimizers import build_dense_optimizer
from dlrmctl.data.batch import Batch
from dlrmctl.data.reader import Reader
from dlrmctl.data.schema import SparseFeature
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.embeddings.ids import IdCheck
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import process_group
from dlrmctl.settings.config import Config
from dlrmctl.training.step import TrainingStep
from tests.dlrmctl.commands import Done, in_process
from tests.dlrmctl.small_tables import SCHEMA, rows_of_a_table

DEVICE = os.environ.get("DLRMCTL_TESTED_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 12
CUBLAS_BYTES = 64 * 2**20  # its workspaces, which torch allocates and the plan counts with the process
SHAPES = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "256", "--log-every", "1"]
GENERATED = ["--dataset", "synthetic", "--synthetic-rows", "8000", *SHAPES, "--evaluations", "1"]
# Another order of float32 sums, over a dozen steps of networks with ReLU.
CLOSE = {"rel": 2e-3, "abs": 2e-3}
Trained = Callable[..., Path]


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    """Trains on a device, and returns the directory of the run."""

    def train(device: str, *options: str, data: list[str] = GENERATED) -> Path:
        run = tmp_path / f"{device}-{len(list(tmp_path.iterdir()))}"
        steps = [] if "--max-steps" in options else ["--max-steps", str(STEPS)]
        done = in_process("train", *data, *options, *steps, "--device", device, "--run-dir", run)
        assert done.status == 0, done.err
        return run

    return train


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options for a small store with lists of ids."""
    place = tmp_path_factory.mktemp("lists")
    (place / "rows.csv").write_text(rows_of_a_table(6000))
    (place / "schema.toml").write_text(SCHEMA)
    done = in_process("prepare", "--schema", place / "schema.toml", place / "rows.csv", "-o", place / "store")
    assert done.status == 0, done.err
    return ["--data", str(place / "store"), *SHAPES, "--evaluations", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, lists: list[str]) -> Path:
    """A run on the tested device."""
    path = tmp_path_factory.mktemp("run") / "run"
    done = in_process("train", *lists, "--max-steps", STEPS, "--device", DEVICE, "--run-dir", path)
    assert done.status == 0, done.err
    return path


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def same_losses(trained: Trained, *options: str, data: list[str] = GENERATED) -> None:
    ours, cpu = (losses(trained(device, *options, data=data)) for device in (DEVICE, "cpu"))
    assert len(ours) == STEPS
    assert ours == pytest.approx(cpu, **CLOSE)


QR = ["--qr-threshold", "200", "--embedding", "qr", "--collisions", "4"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--embedding", "full"], id="full"),
        pytest.param([*QR, "--operation", "mult"], id="mult"),
        pytest.param([*QR, "--operation", "add"], id="add"),
        pytest.param([*QR, "--operation", "concat"], id="concat"),
        pytest.param(["--qr-threshold", "200", "--embedding", "hash", "--collisions", "4"], id="hash"),
        pytest.param(["--qr-threshold", "200", "--embedding", "crt", "--collisions", "4"], id="crt"),
        pytest.param(["--qr-threshold", "200", "--embedding", "kway"], id="kway"),
    ],
)
def test_every_kind_of_table_takes_the_same_steps(trained: Trained, options: list[str]):
    same_losses(trained, *options, "--dense-optimizer", "adagrad")


@pytest.mark.parametrize("operation", ["mult", "add"])
def test_lists_of_ids_take_the_same_steps(trained: Trained, lists: list[str], operation: str):
    same_losses(trained, "--qr-threshold", "20", "--embedding", "qr", "--operation", operation, data=lists)


@pytest.mark.parametrize("optimizer", ["shampoo", "adamw", "sgd", "signum", "muon"])
def test_every_dense_optimizer_takes_the_same_steps(trained: Trained, optimizer: str):
    same_losses(trained, "--dense-optimizer", optimizer, "--dense-lr", "0.001")


def test_roots_of_one_shape_together_take_the_same_steps(trained: Trained):
    same_losses(trained, "--shampoo-roots", "newton", "--shampoo-frequency", "5", "--dense-lr", "0.001")


@pytest.mark.parametrize("averaging", ["none", "ema", "schedule-free"])
def test_every_averaging_takes_the_same_steps(trained: Trained, averaging: str):
    same_losses(trained, "--averaging", averaging)


@pytest.mark.parametrize("embedding", ["full", "head"])
def test_batches_that_are_copied_while_a_step_computes_are_the_same(trained: Trained, lists: list[str], embedding: str):
    options = ["--qr-threshold", "20", "--embedding", embedding]
    same_losses(trained, *options, "--copy-stream")
    same_losses(trained, *options, "--copy-stream", data=lists)


def test_cross_layers_and_normalization_take_the_same_steps(trained: Trained):
    same_losses(trained, "--interaction", "dcn", "--layer-norm", "--sparse-weight-decay", "0.01")


@pytest.mark.parametrize("precision", ["medium", "bf16"])
def test_lower_precision_stays_near(trained: Trained, precision: str):
    low, full = (losses(trained(DEVICE, "--precision", name)) for name in (precision, "fp32"))
    assert low == pytest.approx(full, rel=0.03)  # bf16 has 8 bits


def of_gpus(*options: str) -> list[str]:
    """The options that a CPU refuses; none where the tests try themselves on one."""
    return [] if DEVICE == "cpu" else list(options)


def test_tables_in_half_precision_stay_near(trained: Trained):
    half = trained(DEVICE, *of_gpus("--table-precision", "fp16"))
    assert losses(half) == pytest.approx(losses(trained(DEVICE)), rel=0.01)  # float16 has 11 bits
    ours, cpu = (scored("evaluate", half, "--device", device, "--json").json()["test"] for device in (DEVICE, "cpu"))
    assert ours["log_loss"] == pytest.approx(cpu["log_loss"], rel=1e-5)


@pytest.mark.parametrize("share", ["0.01", "1"])
def test_tables_in_host_memory_take_the_same_steps(trained: Trained, lists: list[str], share: str):
    options = of_gpus("--placement", "uvm", "--uvm-cache", share)
    for data in (GENERATED, lists):
        runs = [trained(DEVICE, *placed, "--checkpoint-every", "4", data=data) for placed in (options, [])]
        ours, theirs = map(losses, runs)
        assert ours == pytest.approx(theirs, rel=1e-5)  # FBGEMM's atomics may add in any order
        scores = [scored("evaluate", run, "--device", "cpu", "--json").json()["test"]["log_loss"] for run in runs]
        assert scores[0] == pytest.approx(scores[1], rel=1e-5)  # what a checkpoint has was in the cache


def test_a_cut_run_ends_like_a_whole_one(trained: Trained):
    whole, cut = trained(DEVICE), trained(DEVICE, "--max-steps", "5")
    done = in_process("train", "--resume", cut, "--max-steps", STEPS, "--device", DEVICE)
    assert done.status == 0, done.err
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)  # FBGEMM's atomics may add in any order


@pytest.mark.parametrize(("first", "then"), [("cpu", DEVICE), (DEVICE, "cpu")])
def test_a_run_continues_on_another_device(trained: Trained, first: str, then: str):
    whole, cut = trained(first), trained(first, "--max-steps", "5")
    done = in_process("train", "--resume", cut, "--max-steps", STEPS, "--device", then)
    assert done.status == 0, done.err
    assert losses(cut) == pytest.approx(losses(whole), **CLOSE)


@pytest.mark.parametrize("late_checks", [False, True])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(late_checks: bool):
    config = Config.of(dim=8, bottom_mlp=(16, 8), top_mlp=(16, 1), batch_size=64, dense_optimizer="adagrad")
    source = Synthetic(0, 256, 64, 64, cardinalities=(3, 40, 300))
    with process_group(DEVICE) as ranks:
        model = build_model(config, source.features, ranks, batch_size=64)
        optimizer = build_dense_optimizer(config.optim, model.network, ranks.group)
        step = TrainingStep(model, optimizer, ranks, "fp32", late_checks=late_checks)
        good, bad = (next(Reader(source, "train", batch_size=64).batches(epoch)).to(DEVICE) for epoch in (0, 1))
        bad.labels_B[0] = float("nan")
        tables = [shard.tensor for table in model.tensors()["tables"].values() for shard in table.local_shards()]
        weights = [*tables, *model.network.parameters()]
        before = [tensor.clone() for tensor in weights]

        def refused() -> None:
            step(bad, 7)
            step.finish()

        with pytest.raises(UserError, match="step 7: the loss on rank 0 is not finite"):
            refused()
        assert all(torch.equal(*pair) for pair in zip(before, weights, strict=True))
        step(good, 8)
        assert not all(torch.equal(*pair) for pair in zip(before, weights, strict=True))


def test_ids_outside_a_table_are_refused_before_the_gpu_sees_them():
    check = IdCheck((SparseFeature("item", 10),))
    labels = torch.zeros(2)
    batch = Batch(torch.zeros(2, 1), torch.tensor([3, 10]), None, labels, ("item",), 2)
    with pytest.raises(ValueError, match="item"):
        check(batch)


def scored(*words: str | Path) -> Done:
    done = in_process(*words)
    assert done.status == 0, done.err
    return done


def test_a_run_is_evaluated_the_same_on_both(run: Path):
    ours, cpu = (scored("evaluate", run, "--device", device, "--json").json()["test"] for device in (DEVICE, "cpu"))
    for name in ("log_loss", "ne", "auc"):
        assert ours[name] == pytest.approx(cpu[name], rel=1e-5)


def test_predictions_are_the_same_on_both(run: Path, lists: list[str], tmp_path: Path):
    rows = Path(lists[1]).parent / "rows.csv"
    found = []
    for name, device in (("ours", DEVICE), ("cpu", "cpu")):
        scored("predict", run, rows, "--labelled", "-o", tmp_path / f"{name}.parquet", "--device", device)
        found.append(pl.read_parquet(tmp_path / f"{name}.parquet")["probability"].to_numpy())
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_a_run_is_compressed_exported_and_calibrated(run: Path, tmp_path: Path):
    scored("compress-embeddings", run, "-o", tmp_path / "small", "--method", "int8", "--min-rows", "1")
    scored("evaluate", tmp_path / "small", "--device", DEVICE)
    scored("calibrate", run, "--device", DEVICE)
    checks = scored("export", run, "-o", tmp_path / "model.pt2", "--json").json()["checks"]
    assert checks["largest_difference"] < 1e-5


def test_the_plan_covers_the_memory_of_the_gpu(tmp_path: Path):
    shapes = ["--bottom-mlp", "64-16", "--top-mlp", "256-64-1", "--dim", "16", "--batch-size", "4096"]
    data = ["--dataset", "synthetic", "--synthetic-size", "medium", "--synthetic-rows", "16384", *shapes]
    model = ["--embedding", "full", "--dense-optimizer", "adagrad", "--device", DEVICE]
    planned = in_process("plan", *data, *model, "--json")
    assert planned.status == 0, planned.err
    # What torch's allocator does not count: CUDA's context and libraries, and what is kept free.
    parts = {name: by_rank[0] for name, by_rank in planned.json()["memory"]["parts_per_rank"].items()}
    parts.pop("process")
    others = 0
    if DEVICE == "cuda":
        gc.collect()  # models of earlier tests are in cycles
        others = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    done = in_process("train", *data, *model, "--max-steps", "4", "--evaluations", "1", "--run-dir", tmp_path / "run")
    assert done.status == 0, done.err
    if DEVICE == "cuda":
        peak = torch.cuda.max_memory_allocated() - others
        held = sum(parts[name] for name in ("tables", "table state", "first-order", "MLPs"))
        assert held > 100 * 2**20
        assert held <= peak <= sum(parts.values()) + CUBLAS_BYTES


def test_ranks_that_would_share_a_gpu_are_refused(tmp_path: Path):
    if torch.cuda.device_count() != 1:
        pytest.skip("needs a machine with one GPU")
    done = in_process("train", *GENERATED, "--device", DEVICE, "--nproc", "2", "--run-dir", tmp_path / "run")
    assert done.status == 2
    assert "every rank needs its own" in done.err


def test_the_installation_is_sound():
    done = in_process("doctor", "--json")
    assert done.status == 0, done.err
