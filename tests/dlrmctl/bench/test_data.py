"""`bench data` measures reading and preparing on the same rows, and compares tools."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from dlrmctl.bench import data as bench
from dlrmctl.bench.reading import measure_first_read, measure_reading, write_multi_hot
from dlrmctl.console.text import bytes_text
from dlrmctl.data.store.writer import write_store
from dlrmctl.data.synthetic.synthetic import Synthetic
from tests.dlrmctl.commands import in_process


def test_bench_data_compares_on_the_same_rows(tmp_path: Path):
    done = in_process("bench", "data", "--quick", "--rounds", "1", "--json", "--plot", tmp_path / "data.png")
    assert done.status == 0, done.err
    result = done.json()
    assert (tmp_path / "data.png").read_bytes().startswith(b"\x89PNG")
    assert set(result) == {
        "command",
        "options",
        "environment",
        "machine",
        "store",
        "first_read",
        "reading",
        "preparing",
    }
    assert all(value > 0 for value in result["machine"].values())
    assert 0 < result["store"]["bytes_per_row"] < 100
    assert result["store"]["data"] == "generated rows"
    kinds = {
        f"{what}, {order}, batch {size}"
        for what in ("one id", "lists")
        for order in ("sequential", "shuffled")
        for size in ("2,048", "8,192")
    }
    assert set(result["reading"]) == kinds
    for kind, reading in result["reading"].items():
        cpu = reading["cpu_ns_per_row"]
        assert cpu["fastest"] == cpu["median"] == cpu["slowest"]
        assert reading["rows_per_cpu_second"] * cpu["median"] == pytest.approx(1e9)
        assert reading["values_per_row"] == 40 if kind.startswith("one id") else reading["values_per_row"] > 80
    few, many = result["preparing"].values()
    assert set(few) == {"polars, parsing alone", "prepare", "torchrec"}
    assert set(many) == {"polars, parsing alone", "prepare"}
    for methods in (few, many):
        ours = methods["prepare"]["cpu_ns_per_row"]["median"]
        for method in methods.values():
            assert method["times_ours"] == pytest.approx(method["cpu_ns_per_row"]["median"] / ours)
            assert method["peak_bytes"] > method["bytes_before"] > 0
    with redirect_stdout(io.StringIO()) as text:
        bench.show_bench_data(result)
    added = few["torchrec"]["peak_bytes"] - few["torchrec"]["bytes_before"]
    [header, line] = [line for line in text.getvalue().splitlines() if "memory" in line or "torchrec" in line][:2]
    assert header.split()[-2:] == ["memory", "imports"]
    assert bytes_text(added) in line
    assert line.endswith(bytes_text(few["torchrec"]["bytes_before"]))


def test_reading_is_measured_in_rows_of_the_store(tmp_path: Path):
    write_store(Synthetic(0, 9000, 10, 10), tmp_path / "store")
    store = write_multi_hot(tmp_path / "lists", rows=5000)
    assert store.num_examples("train") == 5000
    assert store.read_block("train", 0).lengths_FN is not None
    result = measure_reading({"lists": store}, rounds=1)
    assert list(result) == ["lists, sequential, batch 2,048", "lists, shuffled, batch 2,048"]  # 8,192 do not fit
    assert all(kind["rows"] == 4096 for kind in result.values())
    assert measure_first_read(tmp_path / "store", rounds=1)["rows_per_cpu_second"] > 0


def test_a_store_that_is_not_there_is_one_line(tmp_path: Path):
    done = in_process("bench", "data", "--quick", "--rounds", "1", "--data", tmp_path / "nowhere")
    assert done.status == 2
    assert f"error: {tmp_path / 'nowhere'}: no such directory" in done.err
