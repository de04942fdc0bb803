"""Steps whose results the host reads later, as on a GPU: the same training, and the same stop before any change."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dlrmctl.assembly.model import build_model
from dlrmctl.assembly.optimizers import build_averaging, build_dense_optimizer
from dlrmctl.data.reader import Reader
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.optim.guarded import live_tensors
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.state import StepSums
from dlrmctl.settings.config import resolve
from dlrmctl.training.step import NotFiniteError, TrainingStep
from tests.dlrmctl.commands import in_process
from tests.ranks import run_ranks

SMALL = {"dim": "8", "bottom_mlp": "16-8", "top_mlp": "16-1", "qr_threshold": "50", "shampoo_frequency": "3"}
STEPS = 8
_LATER = 2  # steps


def _local(table: Any) -> list[Tensor]:
    """This rank's shards of a tensor of a checkpoint."""
    return [shard.tensor for shard in table.local_shards()] if hasattr(table, "local_shards") else [table]


@cache  # in each rank, for all tests
def _source(max_ids: int) -> Synthetic:
    return Synthetic(0, 64 * STEPS, 64, 64, cardinalities=(3, 40, 300), max_ids=max_ids)


def _outcome(flags: dict[str, str], max_ids: int, late: bool, bad_step: int | None) -> dict[str, Any]:
    """Trains until a step is refused; with a NaN in a label of the last rank at `bad_step`."""
    config = resolve({}, SMALL | flags)
    source = _source(max_ids)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(rank, world_size, world_size, torch.device("cpu"), dist.group.WORLD)
    reader = Reader(source, "train", batch_size=64, rank=rank, world_size=world_size)
    model = build_model(config, source.features, ranks, batch_size=reader.local_batch_size)
    dense = build_dense_optimizer(config.optim, model.network, ranks.group)
    optimizer = build_averaging(config.optim, dense) or dense
    step = TrainingStep(model, optimizer, ranks, "fp32", sparse_weight_decay=0.01, late_checks=late)

    def state() -> list[Tensor]:
        tables = model.tensors(with_sums=True)
        parts = [tables[name] for name in ("tables", "wide") if name in tables]
        shards = [shard for part in parts for table in part.values() for shard in _local(table)]
        return [tensor.clone() for tensor in (*shards, *live_tensors(optimizer).values())]

    total, before, message, stops = StepSums(), [], "", []
    try:
        for number, batch in enumerate(reader.batches(0), start=1):
            if number == bad_step:
                before = state()
                if rank == world_size - 1:
                    batch.labels_B[0] = float("nan")
            total += step(batch, number, stop=number == 3 and rank == 0)
            stops.append(step.stopping)
        total += step.finish()
    except NotFiniteError as problem:
        message = problem.message
    # Counters that the failed step made, for the first time, are 0 now.
    untouched = not before or all(torch.equal(*pair) for pair in zip(before, state(), strict=True))
    return {
        "message": message,
        "untouched": untouched,
        "taken": len(stops),
        "stop": stops.index(True) if any(stops) else None,
        "total": total,
        "state": state(),
    }


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("flags", "max_ids"),
    [
        ({"embedding": "qr", "operation": "mult", "dense_optimizer": "shampoo", "averaging": "gpa"}, 3),
        ({"embedding": "full", "dense_optimizer": "adagrad", "sharding": "row_wise"}, 1),
    ],
)
def test_a_result_that_is_read_later_changes_nothing_but_that(flags: dict[str, str], max_ids: int, world_size: int):
    at_once, later, bad, last = (
        run_ranks(_outcome, world_size, flags, max_ids, late, bad_step)
        for late, bad_step in ((False, None), (True, None), (True, 4), (True, STEPS))
    )
    for one, other in zip(at_once, later, strict=True):
        assert one["message"] == other["message"] == ""
        assert one["total"] == other["total"]
        assert all(torch.equal(*pair) for pair in zip(one["state"], other["state"], strict=True))
        assert (one["stop"], other["stop"]) == (2, 2 + _LATER)
    # A step that is not finite changes no state, though it is found later.
    for found in bad:
        assert found["message"].startswith(f"step 4: the loss on rank {world_size - 1} is not finite")
        assert (found["taken"], found["untouched"]) == (3 + _LATER, True)
    for found in last:
        assert found["message"].startswith(f"step {STEPS}: the loss on rank")
        assert (found["taken"], found["untouched"]) == (STEPS, True)


def test_a_run_whose_results_are_read_later_is_the_same_run(tmp_path: Path):
    options = ["--dataset", "synthetic", "--synthetic-rows", "3000"]
    options += ["--bottom-mlp", "8", "--top-mlp", "8-1", "--dim", "8"]
    options += ["--batch-size", "128", "--log-every", "3", "--evaluations", "2", "--checkpoint-every", "5"]
    lines = []
    for name, late in {"at-once": [], "later": ["--late-checks"]}.items():
        done = in_process("train", *options, *late, "--run-dir", tmp_path / name)
        assert done.status == 0, done.err
        texts = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        lines.append([text.partition(', "examples_per_second"')[0] for text in texts])
    assert lines[0] == lines[1]
    assert len(lines[0]) > 6
