"""Benchmarks measure what they say; their figures are for people and machines, not for tests."""

from pathlib import Path

import pytest
import torch

from dlrmctl.bench.floor import PARTS, Floor
from dlrmctl.bench.measurements import step_variants
from dlrmctl.bench.timing import Laps
from dlrmctl.bench.traced import peak_bytes
from dlrmctl.errors import UserError
from models import DenseNetwork
from tests.dlrmctl.commands import SMALL, in_process, run

TINY = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "64"]
SHORT = ["--rounds", "2", "--steps", "3", "--rows-cap", "50"]
STEP_PARTS = {
    *("load", "lookup", "bottom", "interaction", "top", "loss", "backward", "check", "sparse update", "dense update")
}


def test_bench_step_accounts_for_its_time():
    done = in_process("bench", "step", *TINY, *SHORT, "--json")
    assert done.status == 0, done.err
    result = done.json()
    assert (result["command"], result["options"]["rounds"]) == ("step", 2)
    assert set(result["parts_ms"]) == STEP_PARTS
    assert set(result["floor_parts_ms"]) == set(PARTS)
    assert all(figures["fastest"] > 0 for figures in result["parts_ms"].values())
    limits = result["limits"]
    assert list(limits["sgemm_gflops"])[-1] == str(torch.get_num_threads())
    assert all(limits[f"{kind}_gigabytes_per_second"]["slowest"] > 0 for kind in ("copy", "gather", "scatter"))
    (variant,) = result["variants"].values()
    assert variant["examples_per_second"] == pytest.approx(64e3 / variant["step_ms"]["median"])
    assert variant["to_base"] == {"median": 1, "fastest": 1, "slowest": 1}
    assert variant["floor_share"]["slowest"] <= variant["floor_share"]["median"] <= variant["floor_share"]["fastest"]
    share = result["against_limits"]["whole step, GFLOP/s"]
    assert share["share"] == pytest.approx(share["ours"] / share["limit"])
    # 13-16-8, then 8 + 27 * 26 / 2 = 359 into 16-1: forward and weight gradients, input gradients from the second on.
    products = [13 * 16, 16 * 8, 359 * 16, 16]
    flop = 2 * 64 * (3 * sum(products) - products[0])
    assert share["ours"] == pytest.approx(flop / variant["step_ms"]["median"] / 1e6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bench_step_on_a_gpu():
    done = in_process("bench", "step", *TINY, *SHORT, "--precisions", "fp32,bf16", "--device", "cuda", "--json")
    assert done.status == 0, done.err
    result = done.json()
    assert set(result["parts_ms"]) == STEP_PARTS
    assert all(variant["step_bytes"] > 0 for variant in result["variants"].values())


def test_every_variant_differs_in_one_setting():
    lists = {"precision": "fp32,bf16", "embedding": "full,qr", "dense_optimizer": "sgd", "batch_size": "64,128"}
    configs = step_variants({"batch_size": "64"}, lists)
    assert list(configs) == ["base", "bf16", "full", "sgd", "batch 128"]
    base = configs["base"]
    assert configs["sgd"].train == base.train
    assert (configs["sgd"].optim.dense_lr, base.optim.dense_lr) == (0.1, 0.01)  # what follows from it follows
    assert configs["batch 128"].train.batch_size == 128
    with pytest.raises(UserError, match="fp64"):
        step_variants({}, {"precision": "fp64"})


def test_bench_step_has_a_row_per_variant():
    lists = ["--precisions", "fp32,bf16", "--embeddings", "full", "--optimizers", "adagrad", "--batch-sizes", "64,256"]
    done = in_process("bench", "step", *TINY, *SHORT, *lists)
    assert done.status == 0, done.err
    rows = {line.split("  ")[0]: line for line in done.out.splitlines()}
    assert {"base", "bf16", "full", "adagrad", "batch 256"} <= set(rows)
    assert " 256 " in rows["batch 256"]
    assert "sparse update" in done.out
    assert "limits of the machine" in done.out


def test_two_ranks_show_their_collectives(tmp_path: Path):
    done = run("bench", "step", *TINY, *SHORT, "--nproc", "2", "--json", cwd=tmp_path)
    assert done.status == 0, done.err
    result = done.json()
    assert result["ranks"] == 2
    assert result["communication_ms"]["all reduce"] > 0
    assert set(result["parts_ms"]) == STEP_PARTS


def test_the_floor_leaves_the_table_as_it_is():
    network = DenseNetwork(num_dense=3, num_features=2, dim=4, bottom=[8, 4], top=[8, 1])
    table_RD = torch.randn(10, 4)
    before = table_RD.clone()
    floor = Floor(network, torch.tensor([[0, 7], [3, 7], [0, 9]]), table_RD, torch.float32)
    laps = Laps(torch.device("cpu"))
    floor(laps)
    assert torch.equal(table_RD, before)
    assert set(laps.take(1)) == set(PARTS)
    assert laps.take(1) == {}


def test_laps_add_up_to_the_time_between_start_and_end(monkeypatch: pytest.MonkeyPatch):
    clock = iter([1.0, 1.5, 2.0, 10.0, 10.25])
    monkeypatch.setattr("dlrmctl.bench.timing.time.perf_counter", lambda: next(clock))
    laps = Laps(torch.device("cpu"))
    for parts in (["a", "b"], ["a"]):
        laps.start()
        for part in parts:
            laps.end(part)
    monkeypatch.undo()
    assert laps.take(2) == {"a": 375.0, "b": 250.0}  # half of 500 + 250, half of 500


def test_the_peak_of_memory_is_what_was_held_at_once():
    def work() -> None:
        for _ in range(3):
            kept = torch.empty(1 << 20)  # 4 MiB, freed before the next
            del kept

    assert peak_bytes(work, torch.device("cpu")) == 4 << 20


def test_bench_convergence_compares_at_the_best_rate_of_each(tmp_path: Path):
    arguments = ["--synthetic-rows", "5000", "--evaluations", "3", "--lrs", "0.0001,0.05", "--seeds", "2", "--json"]
    done = in_process(
        "bench", "convergence", *SMALL, *arguments, "--optimizers", "adagrad,sgd", "--plot", tmp_path / "a.png"
    )
    assert done.status == 0, done.err
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    result = done.json()
    for optimizer in result["optimizers"].values():
        means = {float(lr): ne for lr, ne in optimizer["ne_by_rate"].items()}
        assert optimizer["ne"] == min(means.values())
        assert means[optimizer["lr"]] == optimizer["ne"]
    base = result["optimizers"]["adagrad"]
    assert (base["ne_difference"], base["steps_ratio"], base["step_cost"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--rounds", "0"], "--rounds = 0 must be at least 1"),
        (["step", "--rows-cap", "many"], "--rows-cap = 'many' is not a whole number"),
        (["step", "--precisions", "fp32,fp8"], "--precision = 'fp8' must be one of fp32, medium, bf16"),
        (["step", "--batch-sizes", "64,65", "--nproc", "2"], "train.batch_size = 65 cannot be cut into 2 equal parts"),
        (["shampoo", "--periods", "-1"], "--periods = -1 must be at least 1"),
        (["convergence", "--seeds", "0"], "--seeds = 0 must be at least 1"),
        (["data", "--rounds", "x"], "--rounds = 'x' is not a whole number"),
        (["all", "--only", "step,everything"], "--only = 'everything' must be one of step, shampoo, convergence"),
        (["convergence", "--optimizers", "adagard"], "--optimizers = 'adagard' must be one of"),
        (["convergence", "--lrs", "0.1,fast"], "--lrs = 'fast' is not a number"),
        (["embeddings", "--methods", "full,qrr"], "--methods qrr: embeddings.embedding = 'qrr' must be one of"),
        (["embeddings", "--methods", "qr,full,qr"], "--methods = 'qr,full,qr' names one method twice"),
        (["embeddings", "--factors", "1,0"], "--factors = '1,0' must all be above 0"),
        (["embeddings", "--methods", "qr:add"], "--methods: 'add' of 'qr:add' is not a setting and its value"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str):
    done = in_process("bench", *arguments)
    assert done.status == 2
    assert f"error: {message}" in done.err


def test_bench_shampoo_shows_parts_and_layers():
    done = in_process("bench", "shampoo", *TINY, "--shampoo-frequency", "4", "--periods", "2", "--json")
    assert done.status == 0, done.err
    result = done.json()
    assert result["ratio_to_adagrad"]["adagrad"]["median"] == 1
    assert {"statistics", "roots", "application", "elementwise"} <= set(result["parts_ms"])
    assert all(ms > 0 for part, ms in result["parts_ms"].items() if part in ("statistics", "roots", "application"))
    names = [layer["name"] for layer in result["layers"]]
    assert "bottom.layers.0.weight" in names
    assert sum(layer["share"] for layer in result["layers"]) == pytest.approx(1)
    table = in_process("bench", "shampoo", *TINY, "--shampoo-frequency", "4", "--periods", "1")
    assert table.status == 0, table.err
    assert "bottom.layers.0.weight" in table.out


def test_bench_embeddings_tunes_on_one_seed_and_pairs_the_others(tmp_path: Path):
    arguments = ["--synthetic-rows", "3000", "--evaluations", "1", "--dense-optimizer", "adagrad", "--json"]
    methods = ["--methods", "full,qr:operation=add:collisions=16", "--factors", "0.5,2", "--seeds", "2"]
    done = in_process("bench", "embeddings", *SMALL, *arguments, *methods, "--plot", tmp_path / "a.svg")
    assert done.status == 0, done.err
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    result = done.json()
    full, small = result["methods"]["full"], result["methods"]["qr:operation=add:collisions=16"]
    assert small["bytes"] < full["bytes"]
    for method in (full, small):
        tried = {float(factor): ne for factor, ne in method["validation_ne_by_factor"].items()}
        assert tried[method["factor"]] == min(tried.values())
        assert [run["seed"] for run in method["runs"]] == [1, 2]
    (pair,) = result["differences"]
    differences = [b["ne"] - a["ne"] for a, b in zip(full["runs"], small["runs"], strict=True)]
    assert small["ne_difference"] == pair["ne"] == pytest.approx(sum(differences) / 2)
    # The standard error of two values' mean is half their distance.
    assert pair["se"] == pytest.approx(abs(differences[0] - differences[1]) / 2)
    assert (full["ne_difference"], full["ne_difference_se"]) == (0, 0)
