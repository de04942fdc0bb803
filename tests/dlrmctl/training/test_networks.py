"""Cross layers, layer normalization, dropout and weight decay of embeddings, from training to the exported model."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dlrmctl.assembly.model import build_model
from dlrmctl.assembly.optimizers import build_dense_optimizer
from dlrmctl.data.reader import Reader
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.embeddings.sharding.shard import sparse_state
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import Config
from dlrmctl.training.step import TrainingStep
from tests.dlrmctl.checkpoints import assert_bitwise_equal, read_tensors
from tests.dlrmctl.commands import SMALL, in_process
from tests.dlrmctl.training.test_ranks_agree import _losses
from tests.ranks import run_ranks

NETWORK = [
    *("--interaction", "dcn", "--cross-layers", "2", "--cross-rank", "6"),
    *("--layer-norm", "--dropout", "0.2", "--sparse-weight-decay", "0.01"),
]
RUN = [*SMALL, *NETWORK, "--synthetic-rows", "6000", "--evaluations", "2"]
STEPS = 6000 // 256


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "run"
    done = in_process("train", *RUN, "--run-dir", path)
    assert done.status == 0, done.err
    return path


def test_a_run_that_was_cut_ends_like_a_whole_one(whole: Path, tmp_path: Path):
    assert in_process("train", *RUN, "--run-dir", tmp_path / "cut", "--max-steps", "9").status == 0
    assert in_process("train", "--resume", tmp_path / "cut", "--max-steps", "0").status == 0
    last = [run / "checkpoints" / f"step-{STEPS}" for run in (whole, tmp_path / "cut")]
    assert_bitwise_equal(*last)
    tensors = read_tensors(last[0])
    assert tensors["network.interaction.down.1.weight"].shape == (6, 27 * 8)
    assert tensors["network.top.norms.0.weight"].shape == (16,)
    # Shampoo preconditions the matrices of cross layers.
    assert any(name.startswith("optimizer.") and "interaction.up.0.weight" in name for name in tensors)


def test_scores_drop_nothing_and_the_model_is_exported_and_compressed(whole: Path, tmp_path: Path):
    results = in_process("train", "--resume", whole, "--json").json()["test"]
    evaluated = in_process("evaluate", whole, "--split", "test", "--json").json()["test"]
    assert evaluated["log_loss"] == pytest.approx(results["log_loss"], rel=1e-6)  # other lookups than in training
    done = in_process("compress-embeddings", whole, "-o", tmp_path / "small", "--method", "fp32", "--json")
    assert done.status == 0, done.err
    assert done.json()["test"]["ne_increase"] == 0
    done = in_process("export", tmp_path / "small", "-o", tmp_path / "small.pt2", "--json")
    assert done.status == 0, done.err
    assert done.json()["checks"]["largest_difference"] < 1e-6


def test_two_ranks_take_the_same_steps_as_one():
    flags = {"interaction": "dcn", "cross_rank": "6", "layer_norm": "true", "dense_optimizer": "adagrad"}
    [alone] = run_ranks(_losses, 1, flags, 1)
    together = run_ranks(_losses, 2, flags, 1)
    assert together[0] == together[1]
    assert together[0] == pytest.approx(alone, rel=2e-5)  # sums in another order, divided by standard deviations


def _decayed(decay: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """Tables before and after a step in which nothing else has a gradient, and the ids, [F, B]."""
    config = Config.of(dim=4, bottom_mlp=(4,), top_mlp=(1,), sparse_lr=0.5, sparse_eps=1e-3)
    source = Synthetic(0, 64, 64, 64, cardinalities=(3, 40))
    ranks = Ranks(0, 1, 1, torch.device("cpu"), dist.group.WORLD)
    batch = next(Reader(source, "train", batch_size=64, rank=0, world_size=1).batches(0))
    model = build_model(config, source.features, ranks, batch_size=64)
    with torch.no_grad():
        model.network.top.output.weight.zero_()
    tables = {
        name.split("/")[0]: t.local_shards()[0].tensor
        for name, t in sparse_state(model.sharded.dmp).items()
        if "weight" in name
    }
    before = {name: table.clone() for name, table in tables.items()}
    step = TrainingStep(
        model, build_dense_optimizer(config.optim, model.network, ranks.group), ranks, "fp32", sparse_weight_decay=decay
    )
    step(batch, 1)
    return before, {name: table.clone() for name, table in tables.items()}, batch.ids.view(2, -1)


def test_weight_decay_moves_the_rows_of_a_batch_by_how_often_they_occur():
    [(before, after, ids_FB)] = run_ranks(_decayed, 1, 0.3)
    for (name, table), ids_B in zip(before.items(), ids_FB, strict=True):
        table = table.double()
        share = torch.bincount(ids_B, minlength=len(table)) / len(ids_B)
        grad = 0.3 * share.double().unsqueeze(1) * table
        expected = table - 0.5 * grad / (grad.square().mean(1, keepdim=True).sqrt() + 1e-3)
        assert torch.allclose(after[name].double(), expected, rtol=1e-5, atol=1e-6)  # float32
        assert torch.equal((after[name] != before[name]).any(1), share > 0)


@pytest.mark.parametrize("name", ["cross_layers", "cross_rank"])
def test_settings_of_cross_layers_need_them(name: str):
    done = in_process("train", *SMALL, "--interaction", "dot", f"--{name.replace('_', '-')}", "2")
    assert done.status == 2
    assert f"model.{name} = 2 needs model.interaction = dcn, not dot" in done.err
