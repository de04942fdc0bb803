"""Settings of tables on GPUs, and what a CPU does with them."""

import json
import re
import shutil
from pathlib import Path

import pytest

from dlrmctl.assembly.storage import TableStorage, table_storage
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import process_group
from dlrmctl.rundir.checkpoint import Checkpoints
from dlrmctl.rundir.stored_tables import CheckpointTables
from dlrmctl.rundir.tensor_files import read_tensor, stored_tensors
from dlrmctl.settings.config import Config, resolve
from tests.dlrmctl.commands import SMALL, in_process, run_as_ranks
from tests.dlrmctl.damages import seal

RUN = [*SMALL, "--synthetic-rows", "4000", "--evaluations", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def of_gpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and the same with float16 tables and the settings for them, as a GPU would have written it."""
    path = tmp_path_factory.mktemp("runs") / "run"
    assert in_process("train", *RUN, "--max-steps", 6, "--run-dir", path).status == 0
    half = path.with_name("half")
    assert in_process("train", *RUN, "--max-steps", 6, "--run-dir", half).status == 0
    settings = half / "run.toml"
    written = settings.read_text()
    for name, value in (("table_precision", "fp16"), ("placement", "auto")):
        written, count = re.subn(rf'^{name} = "\w+"$', f'{name} = "{value}"', written, flags=re.MULTILINE)
        assert count == 1
    settings.write_text(written)
    with process_group("cpu") as ranks:
        checkpoints = Checkpoints(half / "checkpoints", ranks)
        (old,) = checkpoints.complete()
        tensors = {name: read_tensor(old, stored) for name, stored in stored_tensors(old).items()}
        for name in tensors:
            if name.startswith("tables.") and name.endswith("/weight"):
                tensors[name] = tensors[name].half()
        state = json.loads((old / "state.json").read_text())
        state["settings"]["embeddings"] |= {"table_precision": "fp16", "placement": "auto"}
        shutil.rmtree(old)
        checkpoints.save(6, tensors, state)
    seal(half)
    return path, half


def test_float16_tables_are_read_as_float32_and_rounded_once(of_gpu: tuple[Path, Path]):
    whole, half = (CheckpointTables(run / "checkpoints" / "step-6") for run in of_gpu)
    for table in whole.tables:
        assert whole.weight(table.name).half().float().equal(half.weight(table.name))
    assert [table.stored_bytes * 2 for table in half.tables] == [table.stored_bytes for table in whole.tables]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_of_gpus_is_scored_on_a_cpu(of_gpu: tuple[Path, Path], tmp_path: Path, ranks: int):
    losses = []
    for run in of_gpu:
        words = ("evaluate", run, "--device", "cpu", "--json")
        done = in_process(*words) if ranks == 1 else run_as_ranks(ranks, *words, cwd=tmp_path)
        assert done.status == 0, done.err
        losses.append(done.json()["test"]["log_loss"])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # float16 has 11 bits


def test_a_run_of_gpus_is_exported_and_compressed_on_a_cpu(of_gpu: tuple[Path, Path], tmp_path: Path):
    _, half = of_gpu
    checks = in_process("export", half, "-o", tmp_path / "model.pt2", "--json").json()["checks"]
    assert checks["largest_difference"] < 1e-5
    done = in_process("compress-embeddings", half, "-o", tmp_path / "small", "--method", "int8", "--min-rows", "1")
    assert done.status == 0, done.err


def test_a_run_of_gpus_continues_on_a_cpu_once_told_so(of_gpu: tuple[Path, Path]):
    _, half = of_gpu
    resume = ["train", "--resume", half, "--max-steps", 8, "--device", "cpu"]
    refused = in_process(*resume)
    assert refused.status == 2
    assert "error: embeddings.table_precision = fp16 needs a GPU" in refused.err
    assert "hint: --table-precision fp32" in refused.err
    done = in_process(*resume, "--table-precision", "fp32", "--placement", "hbm")
    assert done.status == 0, done.err
    kinds = {t.value_bytes for t in CheckpointTables(half / "checkpoints" / "step-8").tables}
    assert kinds == {4}


def test_a_run_starts_from_the_tables_of_gpus(of_gpu: tuple[Path, Path], tmp_path: Path):
    fp32 = ["--table-precision", "fp32", "--placement", "hbm"]
    start = ["train", *RUN, "--init-from", of_gpu[1], *fp32, "--max-steps", 2, "--run-dir", tmp_path / "next"]
    done = in_process(*start)
    assert done.status == 0, done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--table-precision", "fp16"], "embeddings.table_precision = fp16 needs a GPU"),
        (["--placement", "uvm"], "embeddings.placement = uvm needs a GPU"),
        (["--placement", "auto"], "embeddings.placement = auto needs a GPU"),
        (["--table-precision", "bf16"], "'bf16' must be one of fp32, fp16"),
    ],
)
def test_a_cpu_refuses_to_train_with_them(flags: list[str], message: str, tmp_path: Path):
    done = in_process("train", *RUN, *flags, "--run-dir", tmp_path / "run")
    assert done.status == 2
    assert message in done.err
    assert list(tmp_path.iterdir()) == []
    planned = in_process("plan", "--rows", "1000", "--ram", "8GiB", *flags)
    assert planned.status == 2
    assert message in planned.err


def test_settings_that_need_each_other():
    with pytest.raises(UserError, match=r"uvm_cache = 0.1 needs embeddings.placement = uvm or auto, not hbm"):
        resolve({}, {"uvm_cache": "0.1"})
    with pytest.raises(UserError, match=r"placement = uvm does not work with train.compress_a2a = topk:4"):
        resolve({}, {"placement": "uvm", "compress_a2a": "topk:4"})


def test_settings_hold_on_a_gpu():
    config = Config.of(table_precision="fp16", placement="auto", uvm_cache=0.1)
    assert table_storage(config, "cuda") == TableStorage("fp16", "auto", 0.1)
    assert table_storage(config, "cpu") == TableStorage("fp32", "hbm")
