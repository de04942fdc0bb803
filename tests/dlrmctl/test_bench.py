"""Benchmarks measure what they say; their figures are for people and machines, not for tests."""

import pytest

from tests.dlrmctl.commands import SMALL, in_process

TINY = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "64"]


def test_bench_step_accounts_for_its_time():
    done = in_process("bench", "step", *TINY, "--rounds", "2", "--steps", "5", "--rows-cap", "50", "--json")
    assert done.status == 0, done.err
    result = done.json()
    assert set(result["parts_ms"]) == {
        *("load", "lookup", "dense forward", "dense backward", "check", "table update", "dense update")
    }
    # The parts are the step: what lies between the laps is a few function calls out of milliseconds.
    whole = result["step_ms"]
    assert whole["fastest"] * 0.8 <= sum(result["parts_ms"].values()) <= whole["slowest"] * 1.01
    assert result["examples_per_second"] == pytest.approx(64e3 / whole["median"])
    # 13-16-8, then 8 + 27 * 26 / 2 = 359 into 16-1: forward and weight gradients, input gradients from the second on.
    products = [13 * 16, 16 * 8, 359 * 16, 16]
    flop = 2 * 64 * (3 * sum(products) - products[0])
    assert result["bare_products_gflops"] == pytest.approx(flop / result["bare_products_ms"]["median"] / 1e6)


def test_bench_step_for_people():
    done = in_process("bench", "step", *TINY, "--rounds", "1", "--steps", "2", "--rows-cap", "50")
    assert done.status == 0, done.err
    assert "times its bare matrix products" in done.out
    assert "table update" in done.out


def test_bench_convergence_compares_at_the_best_rate_of_each():
    arguments = ["--synthetic-rows", "5000", "--evaluations", "3", "--lrs", "0.0001,0.05", "--seeds", "2", "--json"]
    done = in_process("bench", "convergence", *SMALL, *arguments, "--optimizers", "adagrad,sgd")
    assert done.status == 0, done.err
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


def test_bench_embeddings_tunes_on_one_seed_and_pairs_the_others():
    arguments = ["--synthetic-rows", "3000", "--evaluations", "1", "--dense-optimizer", "adagrad", "--json"]
    methods = ["--methods", "full,qr:operation=add:collisions=16", "--factors", "0.5,2", "--seeds", "2"]
    done = in_process("bench", "embeddings", *SMALL, *arguments, *methods)
    assert done.status == 0, done.err
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
