"""Training and every command on data with weights, groups and identities of rows."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.distributed as dist

from dlrmctl.assembly.model import build_model
from dlrmctl.assembly.optimizers import build_dense_optimizer
from dlrmctl.data.batch import Batch
from dlrmctl.data.reader import Reader
from dlrmctl.data.schema import Schema
from dlrmctl.data.source import Block
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import resolve
from dlrmctl.training.step import TrainingStep
from tests.data.visits import SCHEMA, visits, write, write_schema
from tests.dlrmctl.commands import in_process
from tests.ranks import run_ranks

SMALL = {"dim": "8", "bottom_mlp": "16-8", "top_mlp": "16-16-1", "dense_optimizer": "adagrad", "dense_inputs": "raw"}
STEPS, BATCH = 8, 128


class _Weighted:
    """Generated rows with drawn weights, most of them on the first rank's half of a batch."""

    def __init__(self) -> None:
        self._source = Synthetic(0, BATCH * STEPS, 64, 64, cardinalities=(3, 40, 120), max_ids=1)
        self.schema: Schema = replace(self._source.schema, weight="weight")
        self.features, self.block_rows = self._source.features, self._source.block_rows

    def num_examples(self, split: str) -> int:
        return self._source.num_examples(split)

    def read_block(self, split: str, index: int) -> Block:
        block = self._source.read_block(split, index)
        draws_N = np.random.default_rng(index).choice([0.0, 0.5, 1.0, 4.0], len(block))
        draws_N[np.arange(len(block)) % BATCH >= BATCH // 2] *= 0.25
        return replace(block, weights_N=draws_N.astype(np.float32))


def _trained(batches: list[Batch] | None, flags: dict[str, str]) -> tuple[list[float], dict[str, torch.Tensor]]:
    source, group = _Weighted(), dist.group.WORLD
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.get_world_size(), torch.device("cpu"), group)
    size = {"batch_size": BATCH, "rank": ranks.rank, "world_size": ranks.world_size}
    reader = Reader(source, "train", **size, shuffle=False)  # type: ignore[arg-type]
    config = resolve({}, SMALL | flags)
    model = build_model(config, source.features, ranks, batch_size=reader.local_batch_size)
    step = TrainingStep(
        model,
        build_dense_optimizer(config.optim, model.network, ranks.group),
        ranks,
        "fp32",
        sparse_weight_decay=config.optim.sparse_weight_decay,
    )
    losses = []
    with closing(reader.batches(0)) as read:
        for number, batch in enumerate(read if batches is None else batches):
            sums = step(batch, number)
            losses.append(sums.loss / sums.weight)
    return losses, {name: value.detach().clone() for name, value in model.network.named_parameters()}


def _losses(flags: dict[str, str]) -> list[float]:
    return _trained(None, flags)[0]


def test_two_ranks_take_the_same_weighted_steps_as_one():
    flags = {"sparse_weight_decay": "0.01"}
    [alone], together = run_ranks(_losses, 1, flags), run_ranks(_losses, 2, flags)
    assert together[0] == together[1]
    # As in test_ranks_agree: float32 sums in another order.
    assert together[0] == pytest.approx(alone, rel=2e-6)
    assert alone[-1] < alone[0]


def _with_and_without_zeros() -> tuple[float, float, float]:
    """Steps on batches half of whose rows weigh 0, and on the other rows alone: the losses, and the largest change."""
    reader = Reader(_Weighted(), "train", batch_size=BATCH, shuffle=False)
    half, whole, alone = BATCH // 2, [], []
    with closing(reader.batches(0)) as read:
        for batch in read:
            weights_B = torch.where(torch.arange(BATCH) < half, 2.0, 0.0)
            whole.append(replace(batch, weights_B=weights_B))
            ids = batch.ids.view(-1, BATCH)[:, :half].reshape(-1)
            part = {"dense_BI": batch.dense_BI[:half], "labels_B": batch.labels_B[:half], "ids": ids}
            alone.append(replace(batch, **part, num_valid=half, weights_B=None))
    (losses, weights), (expected, others) = (_trained(each, {}) for each in (whole, alone))
    farthest = max(float((weights[name] - others[name]).abs().max()) for name in weights)
    return losses[-1], expected[-1], farthest


def test_rows_of_weight_0_change_nothing():
    [(loss, expected, farthest)] = run_ranks(_with_and_without_zeros, 1)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert farthest < 1e-5  # float32 sums in another order, 8 steps


MODEL = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "64", "--epochs", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with weights, groups and identities, its store "data" and a run."""
    place = tmp_path_factory.mktemp("weights")
    schema, table = write_schema(place / "my.toml", SCHEMA), write(visits(), place / "visits.csv")
    done = in_process("prepare", "--schema", schema, table, "-o", place / "data", "--split", "group:user")
    assert done.status == 0, done.err
    done = in_process("train", "--data", place / "data", *MODEL, "--run-dir", place / "run")
    assert done.status == 0, done.err
    assert "gAUC" in done.out
    assert "weight" in done.out
    return place


def test_evaluate_shows_gauc_and_weighted_metrics(place: Path):
    found = in_process("evaluate", place / "run", "--deciles", "--slice", "item", "--json").json()
    test = found["test"] if "test" in found else found[found["split"]]
    assert 0 < test["gauc"] < 1
    assert test["gauc_se"] > 0
    assert test["groups"] >= 2
    assert test["weight"] != test["examples"]
    observed = [(part["examples"], part["observed"]) for part in found["deciles"]]
    assert sum(examples for examples, _ in observed) == test["examples"]
    assert all("weight" in part and "gauc" in part for part in found["slices"])
    stored = in_process("runs", place, "--json").json()
    assert stored[0]["test_auc"] is not None


def test_predictions_keep_the_identities_and_have_weighted_metrics(place: Path):
    out = place / "predictions.parquet"
    done = in_process("predict", place / "run", place / "visits.csv", "--labelled", "-o", out, "--json")
    assert done.status == 0, done.err
    frame = pl.read_parquet(out)
    assert frame.columns == ["source", "line", "probability", "label", "problem", "session", "row"]
    assert frame["row"].cast(int).to_list() == list(range(2000))
    rows = visits()
    p, y, w = (np.asarray(a, float) for a in (frame["probability"], frame["label"], rows["importance"]))
    loss = -(w @ np.where(y == 1, np.log(p), np.log1p(-p))) / w.sum()
    metrics = done.json()["metrics"]
    assert metrics["log_loss"] == pytest.approx(loss, rel=1e-5)  # probabilities are float32
    assert metrics["gauc"] is not None
    # New rows have neither label nor weight nor group; the user stays a feature.
    new = write(rows.drop("clicked", "importance"), place / "new.parquet")
    done = in_process("predict", place / "run", new, "-o", place / "new-out.parquet")
    assert done.status == 0, done.err
    assert pl.read_parquet(place / "new-out.parquet")["probability"].equals(frame["probability"])
    without = write(rows.drop("session"), place / "without.csv")
    done = in_process("predict", place / "run", without, "-o", place / "x.parquet")
    assert done.status == 2
    assert "no column 'session', which" in done.err


def test_the_other_commands_take_weights(place: Path):
    done = in_process("train", "--data", place / "data", *MODEL, "--seed", "1", "--run-dir", place / "other")
    assert done.status == 0, done.err
    compared = in_process("compare", place / "run", place / "other", "--json").json()
    assert compared["gauc"]["se"] > 0
    stored = in_process("evaluate", place / "run", "--json").json()["test"]
    for name in ("log_loss", "ne", "auc", "gauc"):
        assert compared[name]["a"] == pytest.approx(stored[name], rel=1e-9), name
    done = in_process("calibrate", place / "run", "--json")
    assert done.status == 0, done.err
    assert abs(done.json()["validation"]["after"]["calibration"] - 1) < 1e-6
    done = in_process("baseline", "--data", place / "data", "--run-dir", place / "base", "--json")
    assert done.status == 0, done.err
    assert done.json()["test"]["gauc"] is not None
    # The intercept of a regression makes its weighted mean right on the training rows.
    assert done.json()["train"]["calibration"] == pytest.approx(1, abs=1e-3)
