"""Training in one call, and a trainer with given parts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrmctl.assembly.model import Model
from dlrmctl.data.reader import Reader
from dlrmctl.data.sealed import Values
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.sharding.shard import shard
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.errors import UserError
from dlrmctl.models import DenseNetwork
from dlrmctl.models.inputs import RawInputs
from dlrmctl.ranks.group import process_group
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.state import RunState, SavedState, StepSums
from dlrmctl.settings.config import Config
from dlrmctl.training.run import run_training
from dlrmctl.training.train import Trainer
from tests.dlrmctl.commands import in_process

TINY: dict[str, Any] = {
    "dataset": "synthetic",
    "synthetic_rows": 4096,
    "batch_size": 256,
    "bottom_mlp": (16, 8),
    "top_mlp": (16, 1),
    "dim": 8,
    "evaluations": 2,
    "log_every": 5,
}


def _without_place(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key != "run"}


def test_the_function_and_the_command_train_the_same(tmp_path: Path):
    ours = run_training(Config.of(**TINY), run_dir=tmp_path / "function")
    (tmp_path / "settings.toml").write_bytes((tmp_path / "function" / "run.toml").read_bytes())
    done = in_process("train", "--config", tmp_path / "settings.toml", "--run-dir", tmp_path / "command", "--json")
    assert done.status == 0, done.err
    assert _without_place(done.json()) == _without_place(ours)
    assert (tmp_path / "command" / "run.toml").read_bytes() == (tmp_path / "function" / "run.toml").read_bytes()
    assert json.loads((tmp_path / "function" / "environment.json").read_text())["arguments"] == []


def test_it_resumes_with_the_settings_of_the_run(tmp_path: Path):
    part = run_training(Config.of(**TINY, max_steps=8), run_dir=tmp_path / "run")
    assert part["steps"] == 8
    assert run_training(run_dir=tmp_path / "run", resume=True)["steps"] == 8
    with pytest.raises(UserError, match="resume needs the directory"):
        run_training(resume=True)


def test_what_cannot_be_trained_is_an_exception(tmp_path: Path):
    with pytest.raises(UserError, match=r"train\.batch_size = 256 cannot be split equally over 3 ranks"):
        run_training(Config.of(**TINY), run_dir=tmp_path / "run", nproc=3)
    source = Synthetic(0, 512, 256, 256, cardinalities=(5, 7))
    with pytest.raises(UserError, match="cannot be used with a source"):
        run_training(Config.of(**TINY), run_dir=tmp_path / "run", nproc=2, source=source)


def test_a_source_that_is_handed_over_is_trained_on(tmp_path: Path):
    source = Synthetic(0, 1024, 256, 256, cardinalities=(5, 700))
    results = run_training(Config.of(**TINY), run_dir=tmp_path / "run", source=source)
    assert results["steps"] == 4
    assert results["test"]["examples"] == 256


def test_a_run_leaves_the_precision_of_the_process_alone(tmp_path: Path):
    before = torch.get_float32_matmul_precision()
    run_training(Config.of(**TINY, max_steps=2, precision="medium"), run_dir=tmp_path / "run")
    assert torch.get_float32_matmul_precision() == before


def test_a_trainer_takes_parts_that_were_built_elsewhere(tmp_path: Path):
    source = Synthetic(0, 1024, 256, 256, cardinalities=(5, 7))
    with process_group("cpu") as ranks:
        tables = [FeatureTable(feature.name, feature.rows) for feature in source.schema.sparse]
        sharded = shard(
            CompositionalEmbeddings(tables, 4),
            device=ranks.device,
            group=ranks.group,
            local_world_size=1,
            batch_size=128,
            seed=3,
            sparse_lr=0.1,
            qr_lr=0.1,
            eps=1e-8,
        )
        num_dense = len(source.schema.dense)
        network = DenseNetwork(
            num_dense=num_dense,
            num_vectors=2,
            dim=4,
            bottom=(4,),
            top=(1,),
            interaction="cat",
            inputs=RawInputs([-1.0] * num_dense),  # some values are missing
        )
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        run = RunDirectory(tmp_path / "run", writes=True)
        trainer = Trainer(
            Config.of(log_every=4, warmup_steps=0, decay="none", epochs=1, averaging="none"),
            source,
            run,
            ranks,
            readers={split: Reader(source, split, batch_size=128) for split in ("train", "validation", "test")},
            model=Model(sharded, network, network),
            optimizer=optimizer,
            quiet=True,
        )
        with run.created():
            results = trainer.run_to_the_end()
    assert results["steps"] == 8
    assert optimizer.param_groups[0]["lr"] == 0.5
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [line["dense_lr"] for line in lines if line["kind"] == "train"] == 8 * [0.5]
    assert results["test"]["log_loss"] < 0.7


@pytest.mark.parametrize("stored", [list, dict])
def test_sums_of_a_checkpoint_are_read_in_both_forms(stored: Callable[..., Any], tmp_path: Path):
    source, config = Synthetic(0, 512, 256, 256, cardinalities=(5, 7)), Config()
    state = RunState(step=3, window=StepSums(512.0, 300.0, 100.0, 90.0)).to_state(config, source)
    if stored is list:
        state["progress"]["window"] = list(state["progress"]["window"].values())
    saved = SavedState.from_values(Values(json.loads(json.dumps(state))))
    read = saved.progress_with(config, source, tmp_path)
    assert read.window + StepSums(1.0) == StepSums(513.0, 300.0, 100.0, 90.0)
    assert read.step == 3
