"""Benchmarks run and report all their figures."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dlrmctl.assembly.tables import feature_tables
from dlrmctl.bench.embeddings import method_settings
from dlrmctl.bench.measurements import EmbeddingsMeasurement, step_variants
from dlrmctl.bench.step import _against_limits
from dlrmctl.bench.timing import Laps, peak_bytes
from dlrmctl.bench.variants import PARTS, Floor
from dlrmctl.console.text import rate_text
from dlrmctl.models import DenseNetwork
from dlrmctl.plan.tables import schema_of_rows
from tests.dlrmctl.commands import SMALL, in_process, run_as_ranks

TINY = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "64"]
SHORT = ["--rounds", "2", "--steps", "3", "--rows-cap", "50"]
STEP_PARTS = {
    *("load", "lookup", "bottom", "interaction", "top", "loss", "backward", "check", "sparse update", "dense update")
}


def test_bench_step_accounts_for_its_time_and_its_waits(tmp_path: Path):
    trace = tmp_path / "trace.json"
    model = ["--interaction", "dot", "--dense-optimizer", "adagrad"]
    done = in_process("bench", "step", *TINY, *SHORT, *model, "--json", "--trace", trace)
    assert done.status == 0, done.err
    result = done.json()
    assert json.loads(trace.read_text())["traceEvents"]
    waits = result["waits"]["base"]
    assert (waits["synchronizations_per_step"], waits["synchronizations"]) == (None, {})  # on CPU
    # The sums of a step, once for metrics and the check.
    (name,) = waits["host_reads"]
    assert name.startswith("tolist, dlrmctl.training.outcomes:")
    assert waits["host_reads"][name] == waits["host_reads_per_step"] == 1
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
    assert all(row["share"] <= 1 for row in result["against_limits"].values())
    # The parts lie within their rounds, whose time is taken around them.
    parts = sum(figures["fastest"] for figures in result["parts_ms"].values())
    assert parts <= result["step_of_parts_ms"]["slowest"]
    share = result["against_limits"]["whole step, GFLOP/s"]
    assert share["share"] == pytest.approx(share["ours"] / share["limit"])
    # 13 numbers and 11 indicators of missing ones into 16-8, then 8 + 27 * 26 / 2 = 359 into 16-1: forward and weight
    # gradients, input gradients from the second on.
    products = [(13 + 11) * 16, 16 * 8, 359 * 16, 16]
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


def test_kinds_of_tables_that_are_compared_differ_on_small_tables():
    variants = step_variants({}, {"embedding": "full,hash"})
    schema = schema_of_rows([100, 1000])
    found = {name: [t.embedding for t in feature_tables(config, schema)] for name, config in variants.items()}
    assert found == {"base": ["full", "qr"], "full": ["full", "full"], "hash": ["full", "hash"]}
    typed = step_variants({"qr_threshold": "50"}, {"embedding": "hash"})["hash"]
    assert [t.embedding for t in feature_tables(typed, schema)] == ["hash", "hash"]
    for config in EmbeddingsMeasurement.read({"dataset": "synthetic"}, {}, quick=False).configs:
        assert [t.embedding for t in feature_tables(method_settings(config, "qr"), schema)] == ["full", "qr"]


def test_bench_step_has_a_row_per_variant():
    lists = ["--precisions", "fp32,bf16", "--embeddings", "full", "--optimizers", "adagrad", "--batch-sizes", "64,256"]
    done = in_process("bench", "step", *TINY, *SHORT, *lists)
    assert done.status == 0, done.err
    rows = {line.split("  ")[0]: line for line in done.out.splitlines()}
    assert {"base", "bf16", "full", "adagrad", "batch 256"} <= set(rows)
    assert " 256 " in rows["batch 256"]
    assert "sparse update" in done.out
    assert "limits of the machine" in done.out
    assert "parts of the step, base, ms, in rounds of their own, in which the whole step takes" in done.out
    assert rows["whole step"].endswith(" 100.0 %")
    assert f"{torch.get_num_threads()} thread" in rows[next(iter(rows))]


def test_two_ranks_show_their_collectives(tmp_path: Path):
    model = ["--late-checks", "--sharding", "table_wise", "--trace", "trace.json"]
    done = run_as_ranks(2, "bench", "step", *TINY, *SHORT, *model, "--json", cwd=tmp_path)
    assert done.status == 0, done.err
    result = done.json()
    assert result["ranks"] == 2
    # Only a refresh of roots reads values of the device: LAPACK's status, and whether the roots are usable.
    reads = {name.removeprefix("aten::").partition(":")[0] for name in result["waits"]["base"]["host_reads"]}
    assert reads <= {"linalg_eigh", "tolist, dlrmctl.optim.shampoo.factors"}
    assert result["communication_ms"]["all reduce"] > 0
    assert set(result["parts_ms"]) == STEP_PARTS


def test_the_floor_leaves_the_table_as_it_is():
    network = DenseNetwork(num_dense=3, num_vectors=2, dim=4, bottom=[8, 4], top=[8, 1])
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
    arguments = ["--synthetic-rows", "2000", "--evaluations", "2", "--lrs", "0.001,0.004", "--seeds", "2", "--json"]
    done = in_process(
        "bench", "convergence", *SMALL, *arguments, "--optimizers", "adagrad,adamw", "--plot", tmp_path / "a.png"
    )
    assert done.status == 0, done.err
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    result = done.json()
    for optimizer in result["optimizers"].values():
        means = {float(lr): ne for lr, ne in optimizer["ne_by_rate"].items()}
        assert optimizer["ne"] == min(means.values())
        assert means[optimizer["lr"]] == optimizer["ne"]
        assert len(set(means.values())) == 2  # 0.001 is the default of adamw, 0.004 that of others
    base = result["optimizers"]["adagrad"]
    assert (base["ne_difference"], base["steps_ratio"], base["step_cost"]) == (0, 1, 1)


def test_one_seed_has_no_standard_error(tmp_path: Path):
    short = ["--synthetic-rows", "1000", "--evaluations", "1", "--seeds", "1"]
    done = in_process("bench", "convergence", *SMALL, *short, "--optimizers", "sgd", "--lrs", "0.1")
    assert done.status == 0, done.err
    assert "validation NE, 1 seed, ratios" in done.out
    assert "0.00000 ±-" in done.out
    kept = tmp_path / "one.json"
    done = in_process("bench", "embeddings", *SMALL, *short, "--methods", "full,hash", "--factors", "1", "-o", kept)
    assert done.status == 0, done.err
    assert "mean of 1 seed," in done.out
    assert " ±-" in done.out


def test_what_was_measured_is_no_more_than_the_limit_and_shares_are_of_the_whole_step():
    def times(median: float, fastest: float) -> dict[str, float]:
        return {"median": median, "fastest": fastest, "slowest": 2 * median}

    config = step_variants({"precision": "medium"}, {})["base"]
    floor = SimpleNamespace(flop=4e6, taken_ND=torch.zeros(1, 250_000))  # 4 MFLOP, 1 MB
    rates = {
        "sgemm_gflops": {"1": {"fastest": 3.0}, "2": {"fastest": 2.0}},
        "bf16_gemm_gflops": {"2": {"fastest": 1.0}},
    }
    result = {
        "limits": rates,
        "parts_ms": {"lookup": times(0.5, 0.25), "sparse update": times(8, 4)},
        "floor_parts_ms": {"products": times(1, 0.5), "gather": times(1, 1), "scatter": times(2, 1)},
        "variants": {"base": {"step_ms": times(16, 8)}},
    }
    found = _against_limits(result, cast(Any, SimpleNamespace(config=config, floor=floor)))
    # Products: 4 at the median, 8 at the fastest round, more than the 3 of any product. Lookups were faster than rows.
    assert found == {
        "bare products, GFLOP/s": {"ours": 4, "limit": 8, "share": 0.5},
        "whole step, GFLOP/s": {"ours": 0.25, "limit": 8, "share": 0.25 / 8},
        "lookup, GB/s": {"ours": 2, "limit": 4, "share": 0.5},
        "sparse update, GB/s": {"ours": 0.25, "limit": 1, "share": 0.25},
    }


@pytest.mark.parametrize(
    ("value", "text"), [(1234.56, "1,234.6"), (51.84, "51.8"), (4.2, "4.20"), (0.00123, "0.00123"), (0, "0.0")]
)
def test_a_small_rate_has_digits(value: float, text: str):
    assert rate_text(value) == text


def test_bench_shampoo_shows_parts_and_layers():
    done = in_process("bench", "shampoo", *TINY, "--shampoo-frequency", "4", "--periods", "2", "--json")
    assert done.status == 0, done.err
    result = done.json()
    assert result["ratio_to_adagrad"]["adagrad"]["median"] == 1
    assert all(ratios["shampoo"] > ratios["adagrad"] == 1 for ratios in result["ratio_to_adagrad_over"].values())
    assert {"statistics", "roots", "application", "elementwise"} <= set(result["parts_ms"])
    assert all(ms > 0 for part, ms in result["parts_ms"].items() if part in ("statistics", "roots", "application"))
    names = [layer["name"] for layer in result["layers"]]
    assert "bottom.layers.0.weight" in names
    assert sum(layer["share"] for layer in result["layers"]) == pytest.approx(1)
    schedule = ["--shampoo-schedule", "doubling"]
    table = in_process("bench", "shampoo", *TINY, *schedule, "--shampoo-frequency", "4", "--periods", "1")
    assert table.status == 0, table.err
    assert "bottom.layers.0.weight" in table.out


def test_bench_embeddings_tunes_on_one_seed_and_pairs_the_others(tmp_path: Path):
    arguments = ["--synthetic-rows", "2000", "--evaluations", "1", "--dense-optimizer", "adagrad", "--json"]
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


def test_bench_compression_reaches_its_ratio(tmp_path: Path):
    arguments = ("--rows", "3000", "--tables", "2", "--ratio", "5", "--rounds", "2", "--plot", tmp_path / "a.svg")
    done = in_process("bench", "compression", *arguments, "--json")
    assert done.status == 0, done.err
    result = done.json()
    assert (result["rows"], result["tables"], sum(result["methods"].values())) == (3000, 2, 2)
    assert 5 <= result["ratio"] < 8
    assert 0 < result["weighted_relative_error"] < 0.2
    assert 0 < result["seconds"]["fastest"] <= result["seconds"]["slowest"]
    assert (tmp_path / "a.svg").is_file()


def test_noise_is_reported_in_every_geometry_and_drawn(tmp_path: Path):
    arguments = [*SMALL, "--steps", "40", "--dense-optimizer", "muon", "--plot", tmp_path / "a.png", "--json"]
    done = in_process("bench", "noise", *arguments)
    assert done.status == 0, done.err
    result = done.json()
    assert [entry["step"] for entry in result["curve"]] == [20, 40]
    for entry in result["curve"]:
        assert all(entry[geometry] is None or entry[geometry] > 1 for geometry in ("l2", "l1", "spectral"))
    assert result["own"] == "spectral"
    assert (tmp_path / "a.png").stat().st_size > 1000
