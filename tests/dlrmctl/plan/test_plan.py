"""`dlrmctl plan`, and that `train` refuses what does not fit."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dlrmctl.data.store.writer import write_store
from dlrmctl.data.synthetic.cardinalities import MLPERF
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.datasets.open import open_source
from dlrmctl.errors import UserError
from dlrmctl.plan.cluster import CUDA_BYTES, described
from dlrmctl.plan.memory import plan_memory
from dlrmctl.plan.plan import answer
from dlrmctl.plan.tables import schema_of_data, schema_of_rows
from dlrmctl.settings.config import resolve
from tests.dlrmctl.commands import in_process

GIB = 2**30
CLUSTER = ["--world-size", "16", "--nodes", "2", "--intra-bw", "300GB/s", "--inter-bw", "25GB/s"]
FULL = ["plan", "--preset", "mlperf", "--embedding", "full", *CLUSTER]


def _refused(*arguments: str | Path, words: tuple[str, ...]) -> None:
    done = in_process("plan", *arguments)
    assert done.status == 2, done.out + done.err
    lines = done.err.strip().splitlines()
    assert [line.split(":")[0] for line in lines] in (["error"], ["error", "hint"]), done.err
    assert done.out == ""
    for word in words:
        assert word in done.err


def test_tables_of_a_terabyte_fit_sixteen_gpus_that_are_not_here():
    done = in_process(*FULL, "--hbm", "80GiB", "--flops", "60T", "--memory-bw", "2TB/s")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "mlperf tables on 16 GPUs on 2 nodes, batch 16,384"
    assert len(lines) <= 45
    assert "fits: the fullest rank needs" in lines[-1]
    # 40 million rows of 128 float32 and a sum each.
    assert any(
        line.split()[:8] == ["cat_1", "40,000,000", "128", "19.1", "GiB", "152.6", "MiB", "table_wise"]
        for line in lines
    )


def test_the_numbers_are_the_same_as_json():
    done = in_process(*FULL, "--hbm", "80GiB", "--json")
    plan = done.json()
    assert (done.status, plan["fits"]) == (0, True)
    assert [table["rows"] for table in plan["tables"]] == list(MLPERF)
    weights = plan["memory"]["parts_per_rank"]
    assert sum(weights["tables"]) == sum(MLPERF) * 128 * 4
    assert sum(weights["table state"]) == sum(MLPERF) * 4
    assert plan["memory"]["per_rank"] == [sum(values) for values in zip(*weights.values(), strict=True)]
    assert plan["step"]["estimate_seconds"] is None  # nothing says how fast those GPUs are
    assert plan["step"]["parts_seconds"]["exchange of tables"] > 0


def test_the_copy_for_checkpoints_is_counted_and_made_if_the_memory_suffices():
    schema, given = schema_of_rows([40_000_000]), {"embedding": "full", "wide": "false"}
    tables = 40_000_000 * 68

    def planned(memory: int, **flags: str) -> Any:
        return answer(resolve({}, given | flags), schema, described(1, 1, "cpu", memory), source="given")

    roomy, short = planned(16 * GIB).memory, planned(4 * GIB).memory
    assert roomy.fits
    assert roomy.parts["checkpoint copy"] == roomy.copy
    assert roomy.copy[0] == tables + roomy.dense.weights + roomy.dense.state[0]
    assert short.fits
    assert short.copy == (0,)
    asked = planned(4 * GIB, async_save="true")
    assert not asked.memory.fits
    assert asked.remedies[0].flags == "--no-async-save"
    assert not planned(16 * GIB, async_save="false").memory.copies


def test_what_does_not_fit_has_status_one_and_ways_out():
    done = in_process(*FULL, "--hbm", "4GiB")
    assert done.status == 1, done.err
    assert "does not fit: the fullest rank needs" in done.out
    for way in ("--compress-ratio", "--world-size"):
        assert way in done.out
    assert "for serving" not in done.out  # with 4 bits they are 13.7 GiB, and no command serves on several ranks


def _answer(flags: dict[str, str], size: int, nodes: int, memory: int, rows: list[int]) -> Any:
    cluster = described(size, nodes, "cuda", memory, intra_bandwidth=300e9, inter_bandwidth=25e9)
    return answer(resolve({}, flags), schema_of_rows(rows), cluster, source="given")


@pytest.mark.parametrize(
    ("flags", "size", "nodes", "gib"),
    [({"embedding": "full"}, 4, 2, 2.5), ({"embedding": "full", "sharding": "table_wise"}, 4, 1, 3.5), ({}, 2, 1, 1.7)],
)
def test_what_is_said_to_fit_does(flags: dict[str, str], size: int, nodes: int, gib: float):
    rows = [60_000_000, 40_000_000, 20_000_000, *[5000] * 10]
    found = _answer(flags, size, nodes, int(gib * GIB), rows)
    assert not found.memory.fits
    trained = [remedy for remedy in found.remedies if not remedy.serving]
    assert trained
    for remedy in trained:
        words = remedy.flags.removeprefix("--").replace(" --", " ").split()
        given = {name.replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)}
        ranks, hosts = int(given.pop("world_size", size)), int(given.pop("nodes", nodes))
        again = _answer(flags | given, ranks, hosts, int(gib * GIB), rows)
        assert again.memory.fits, remedy


def test_serving_is_offered_with_fewer_bits():
    found = _answer({"embedding": "full"}, 1, 1, 4 * GIB, [40_000_000, 40_000_000])
    [serving] = [remedy for remedy in found.remedies if remedy.serving]
    # 16 columns: 32 bytes as float16, 20 as 8 bits with scale and bias. What there is besides, float32.
    assert "fp16 tables, 2.4 GiB, on one rank" in serving.what
    process, dense = found.memory.cluster.process_bytes, found.memory.dense
    assert serving.bytes_per_rank == 80_000_000 * 32 + process + 4 * dense.num_weights


def test_serving_counts_what_a_process_takes():
    fp16 = 80_000_000 * 32  # fits without the process
    found = _answer({"embedding": "full"}, 1, 1, fp16 + CUDA_BYTES // 2, [40_000_000, 40_000_000])
    assert "int8 tables" in next(remedy.what for remedy in found.remedies if remedy.serving)


def test_dense_layers_that_do_not_fit_are_said_to_be_the_reason():
    found = _answer({"top_mlp": "200000-20000-1"}, 2, 1, 16 * GIB, [1000])
    assert not found.memory.fits
    [narrower] = found.remedies  # no batch makes room for 4 billion weights
    _, bottom, _, top = narrower.flags.split()
    again = _answer({"bottom_mlp": bottom, "top_mlp": top}, 2, 1, 16 * GIB, [1000])
    assert again.memory.fits
    assert max(again.memory.parts["tables"]) < 2**20  # which is all that equal parts of them may change
    assert abs(narrower.bytes_per_rank - max(again.memory.totals)) < 2**20


def test_a_batch_too_large_is_offered_as_the_one_that_fits():
    found = _answer({"batch_size": str(2**22)}, 1, 1, 4 * GIB, [1000])
    assert not found.memory.fits
    smaller = found.remedies[0]
    flag, batch = smaller.flags.split()
    again = _answer({"batch_size": batch}, 1, 1, 4 * GIB, [1000])
    assert flag == "--batch-size"
    assert again.memory.fits
    assert smaller.bytes_per_rank == max(again.memory.totals)
    assert not _answer({"batch_size": str(2 * int(batch))}, 1, 1, 4 * GIB, [1000]).memory.fits


def test_nothing_is_offered_where_the_process_alone_does_not_fit():
    done = in_process("plan", "--rows", "1000", "--hbm", "1GiB")
    assert done.status == 1
    assert "does not fit" in done.out.splitlines()[-2]
    assert done.out.splitlines()[-1] == "a rank needs 1.0 GiB before it has a model"


def test_a_network_that_is_not_given_is_missing():
    rows = ["plan", "--rows", "5000,7000", "--hbm", "8GiB", "--flops", "60T", "--memory-bw", "2TB/s"]
    for flags, missing in (
        (["--world-size", "4", "--nodes", "2", "--intra-bw", "25GB/s"], "--inter-bw"),
        (["--world-size", "4", "--nodes", "2", "--inter-bw", "25GB/s"], "--intra-bw"),
        (["--nodes", "2", "--intra-bw", "25GB/s"], "--inter-bw"),
    ):
        done = in_process(*rows, *flags)
        assert done.status == 0, done.err
        assert f"no estimate of the total without {missing}\n" in done.out
        assert "(given)" not in done.out
    alone = in_process(*rows, "--nodes", "2", "--inter-bw", "25GB/s")  # one rank per node: no other network
    assert "to other nodes 25 GB/s (given)" in alone.out


def test_more_ranks_than_any_machine_has_are_planned_without_memory_or_processes():
    schema, config = schema_of_rows([10**12, 1000]), resolve({}, {"embedding": "full"})
    plan = plan_memory(config, schema, described(512, 64, "cuda", 200 * GIB))
    assert plan.fits
    assert len(plan.totals) == 512
    assert sum(plan.parts["tables"]) == (10**12 + 1000) * 64


def test_the_tables_of_synthetic_data_are_known_without_making_it():
    config = resolve({}, {"dataset": "synthetic", "synthetic_rows": "1000"})
    assert schema_of_data(config) == open_source(config.data).schema


def test_tables_come_from_a_file_with_lists_of_ids(tmp_path: Path):
    (tmp_path / "t.toml").write_text("dense = 2\n[tables]\nuser = 4_000\ntags = { rows = 100, max_ids = 20 }\n")
    done = in_process("plan", "--tables", tmp_path / "t.toml", "--embedding", "full", "--json")
    assert done.status == 0, done.err
    assert [(t["table"], t["rows"]) for t in done.json()["tables"]] == [("user", 4000), ("tags", 100)]


def test_this_machine_is_planned_for_with_measured_rates():
    done = in_process("plan", "--dataset", "synthetic", "--nproc", "2", "--json")
    assert done.status == 0, done.err
    plan = done.json()
    assert plan["ranks"]["world_size"] == 2
    assert plan["step"]["rates"]["flops"]["source"] == "measured"
    assert 0 < plan["step"]["estimate_seconds"] < 60
    given = in_process("plan", "--dataset", "synthetic", "--flops", "1T", "--memory-bw", "10GB/s", "--json").json()
    assert given["step"]["rates"]["gather"] == {"value": 1e10, "source": "given"}


def test_training_is_refused_with_the_numbers_of_the_plan(tmp_path: Path):
    # 8 TiB of tables: more than any machine that runs tests has. All else takes a few GiB at this batch.
    flags = ["--dataset", "synthetic", "--synthetic-size", "kaggle", "--embedding", "full", "--dim", "65536"]
    flags += ["--bottom-mlp", "65536", "--top-mlp", "1", "--dense-optimizer", "sgd", "--batch-size", "32"]
    planned = in_process("plan", *flags, "--json")
    assert (planned.status, planned.err) == (1, "")
    tables = sum(planned.json()["memory"]["parts_per_rank"]["tables"])
    done = in_process("train", *flags, "--run-dir", tmp_path / "run")
    assert done.status == 2, done.err
    assert f"tables {tables / 2**40:.1f} TiB" in done.err
    assert "dlrmctl plan" in done.err
    assert len(done.err.strip().splitlines()) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "mlpref"], ("--preset = 'mlpref'", "did you mean 'mlperf'?")),
        (["--preset", "mlperf", "--rows", "5"], ("--preset and --rows both choose the tables",)),
        (["--dataset", "synthetic", "--rows", "5"], ("--rows and --dataset synthetic",)),
        (["--rows", "40M,x"], ("--rows, number 2 of 2, = 'x' is not a whole number",)),
        (["--rows", "40M,,39060"], ("--rows, number 2 of 3, = '' is not a whole number",)),
        (["--preset", "kaggle", "--inter-bw", "25GB/s"], ("--inter-bw is for ranks on several nodes", "--nodes 2")),
        (
            ["--preset", "kaggle", "--batch-size", "2048", "--nproc", "100"],
            ("cannot be split equally over 100 ranks",),
        ),
        (["--rows", "5", "--hbm", "80"], ("--hbm = '80' has no unit", "80GiB?")),
        (["--rows", "5", "--intra-bw", "200Mb/s"], ("bits per second", "25MB/s")),
        (["--rows", "0"], ("--rows = 0 must be at least 1",)),
        (["--rows", "99999999999999999999"], ("at most",)),
        (["--tables", "nowhere.toml"], ("nowhere.toml",)),
        (["--rows", "5", "--nproc", "0"], ("--nproc = 0 must be at least 1",)),
        (["--rows", "5", "--nproc", "2", "--hbm", "1GiB"], ("--nproc is for this machine and --hbm for a cluster",)),
        (["--rows", "5", "--world-size", "2"], ("--world-size needs the memory of the ranks", "--hbm 80GiB")),
        (["--rows", "5", "--hbm", "80GB", "--ram", "8GB"], ("--hbm is for GPUs",)),
        (["--rows", "5", "--hbm", "eighty"], ("--hbm = 'eighty' is not a size such as 80GiB",)),
        (["--rows", "5", "--hbm", "0GiB"], ("--hbm = '0GiB' must be above 0",)),
        (
            ["--rows", "5", "--hbm", "1GiB", "--world-size", "3", "--batch-size", "2048"],
            ("2048 cannot be split equally over 3 ranks",),
        ),
        (["--rows", "5", "--hbm", "1GiB", "--world-size", "10", "--nodes", "4"], ("10 ranks", "--world-size 12")),
        (["--rows", "5", "--hbm", "1GiB", "--world-size", "1000000"], ("--world-size = 1000000 must be at most",)),
        (["--rows", "5", "--hbm", "1GiB", "--nodes", "-1"], ("--nodes = -1 must be at least 1",)),
        (["--rows", "5", "--intra-bw", "300Gb/s"], ("bits per second", "37.5GB/s")),
        (["--rows", "5", "--inter-bw", "fast"], ("--inter-bw = 'fast' is not a bandwidth such as 25GB/s",)),
        (["--rows", "5", "--flops", "1e400"], ("--flops",)),
        (["--rows", "5", "--memory-bw", "-2GB/s"], ("--memory-bw",)),
        (["--rows", "5", "--dim", "6"], ("embeddings.dim = 6 must be a multiple of 4",)),
        (["--preset", "mlperf", "--dim", "64"], ("model.bottom_mlp = 512-256-128 ends in 128", "--bottom-mlp")),
        (["--rows", "500000", "--compress-ratio", "999999"], ("embeddings.compress_ratio",)),
        (["--data", "nowhere"], ("nowhere",)),
    ],
)  # fmt: skip
def test_wrong_values_are_one_line_and_status_two(arguments: list[str], words: tuple[str, ...]):
    _refused(*arguments, words=words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dense = 3\n", "has no tables"),
        ("[table]\na = 5\n", "did you mean 'tables'?"),
        ("[tables]\na = 'x'\n", "tables.a.rows = 'x' is not a whole number"),
        ("[tables]\na = { row = 5 }\n", "tables.a has no key 'row'\nhint: did you mean 'rows'?"),
        ("[tables]\na = { max_ids = 5 }\n", "tables.a.rows is missing\nhint: a = { rows = N, max_ids = N }"),
        ("[tables]\na = { rows = 5, max_ids = 0 }\n", "max_ids = 0"),
        ("[tables]\nint_1 = 5\n", "int_1"),
        ("[tables]\n'' = 5\n", "a sparse feature needs a name"),
        ("dense = -1\n[tables]\na = 5\n", "dense = -1"),
    ],
)
def test_a_wrong_file_of_tables_is_one_line_and_status_two(tmp_path: Path, text: str, words: str):
    (tmp_path / "t.toml").write_text(text)
    _refused("--tables", tmp_path / "t.toml", words=(words,))


def test_the_preset_of_dcnv2_has_its_shapes():
    words = ["plan", "--preset", "mlperf-dcnv2", "--embedding", "full", *CLUSTER, "--hbm", "80GiB", "--json"]
    plan = in_process(*words, "--no-wide").json()
    assert sum(table["rows"] for table in plan["tables"]) == sum(MLPERF)
    width, layers = 27 * 128, [13, 512, 256, 128]
    bottom = sum((a + 1) * b for a, b in pairwise(layers))
    layers = [width, 1024, 1024, 512, 256, 1]
    top = sum((a + 1) * b for a, b in pairwise(layers))
    assert set(plan["memory"]["parts_per_rank"]["MLPs"]) == {4 * (bottom + top + 3 * (2 * 512 * width + width))}
    more = in_process(*words).json()
    # Four float32 and the sum of AdaGrad.
    assert sum(more["memory"]["parts_per_rank"]["first-order"]) == 20 * (sum(MLPERF) + 13 * 33)


def test_help_answers_without_torch():
    program = (
        "import sys\nfrom dlrmctl.cli.main import run_command\nassert run_command(['plan', '--help']) == 0\n"
        "heavy = {'torch', 'torchrec', 'fbgemm_gpu', 'polars', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--world-size" in done.stdout
    assert "Read tables from [tables]" in " ".join(done.stdout.replace("│", " ").split())


def test_without_data_the_ways_that_need_none_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DLRMCTL_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _refused(words=("--data is not given", "--preset mlperf|kaggle", "--rows 40M,39060", "--tables FILE.toml"))


def test_the_tables_of_a_store_are_those_that_training_would_have(tmp_path: Path):
    source = Synthetic(0, 1000, 100, 100, cardinalities=[50, 3000])
    write_store(source, tmp_path / "store")
    done = in_process("plan", "--data", tmp_path / "store", "--embedding", "full", "--hbm", "8GiB", "--json")
    assert done.status == 0, done.err
    assert [table["rows"] for table in done.json()["tables"]] == [52, 3002]
    assert done.json()["settings"]["train"]["batch_size"] == 64  # as a training chooses it


def test_rows_wider_than_a_gpu_can_look_up_are_refused_before_the_training():
    flags = {"embedding": "qr", "operation": "path", "dim": "132", "bottom_mlp": "132"}
    config, schema = resolve({}, flags), schema_of_rows([10**6])
    with pytest.raises(UserError, match=r"has rows of 2,112 columns; on a GPU at most 2,048"):
        plan_memory(config, schema, described(1, 1, "cuda", 40 * GIB))
    plan_memory(config, schema, described(1, 1, "cpu", 40 * GIB))


def test_tables_beyond_the_memory_of_gpus_are_planned_in_that_of_the_host():
    words = ["plan", "--rows", "400M,30M,1000", "--embedding", "full", "--dim", "64", "--bottom-mlp", "64"]
    words += ["--world-size", "2", "--hbm", "40GiB", "--intra-bw", "25GB/s", "--flops", "60T", "--memory-bw", "2TB/s"]
    assert in_process(*words, "--json").status == 1
    done = in_process(*words, "--placement", "auto", "--json")
    assert done.status == 0, done.err
    plan = done.json()
    assert [table["kernel"] for table in plan["tables"]] == ["fused_uvm_caching", "fused", "fused"]
    memory, large = plan["memory"], plan["tables"][0]
    assert sum(memory["host_tables_per_rank"]) == 400_000_000 * 64 * 4
    in_gpus = sum(large["rank_cache_bytes"]) + (30_000_000 + 1000) * 64 * 4
    assert sum(memory["parts_per_rank"]["tables"]) == in_gpus
    assert sum(memory["parts_per_rank"]["table state"]) == (430_000_000 + 1000) * 4
    shown = in_process(*words, "--placement", "auto").out
    assert "host memory per rank, for tables with a cache on the GPU: " in shown


def test_a_checkpoint_copy_has_all_rows_and_no_cache():
    given = {"embedding": "full", "async_save": "true", "wide": "false"}
    schema, cluster = schema_of_rows([10_000_000]), described(1, 1, "cuda", 40 * GIB)
    here, there = (plan_memory(resolve({}, {**given, "placement": p}), schema, cluster) for p in ("hbm", "uvm"))
    assert here.copy == there.copy
    assert there.parts["tables"][0] < here.parts["tables"][0]
    assert (here.host_tables, there.host_tables) == ((0,), (10_000_000 * 16 * 4,))


def test_half_precision_halves_the_weights_of_tables_alone():
    schema, cluster = schema_of_rows([10_000_000]), described(1, 1, "cuda", 40 * GIB)
    full, half = (
        plan_memory(resolve({}, {"embedding": "full", "table_precision": p}), schema, cluster) for p in ("fp32", "fp16")
    )
    assert half.parts["tables"][0] * 2 == full.parts["tables"][0] == 10_000_000 * 16 * 4
    for part in ("table state", "first-order", "lookups", "MLPs"):
        assert half.parts[part] == full.parts[part]


def test_first_order_weights_take_time():
    given = ["plan", "--preset", "kaggle", "--embedding", "full", "--world-size", "2", "--intra-bw", "1GB/s"]
    given += ["--flops", "1T", "--memory-bw", "10GB/s", "--hbm", "80GiB", "--json"]
    seconds = [in_process(*given, flag).json()["step"]["parts_seconds"] for flag in ("--wide", "--no-wide")]
    for part in ("lookups", "exchange of tables"):
        assert seconds[0][part] > seconds[1][part]
    assert seconds[0]["MLPs"] == seconds[1]["MLPs"]
