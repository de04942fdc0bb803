"""Batches that are prepared while a step trains: the same training, and the same end where one cannot be read."""

from collections.abc import Iterator
from contextlib import closing
from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dlrmctl.assembly.model import build_model
from dlrmctl.assembly.optimizers import build_dense_optimizer
from dlrmctl.data.batch import Batch
from dlrmctl.data.errors import DataError
from dlrmctl.data.reader import Reader
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import resolve
from dlrmctl.training.pipeline import Pipeline
from dlrmctl.training.step import TrainingStep
from tests.ranks import run_ranks

SMALL = {"dim": "8", "bottom_mlp": "16-8", "top_mlp": "16-1", "qr_threshold": "50", "dense_optimizer": "adagrad"}
BATCH, STEPS = 64, 6


def _dampened(batch: Batch, number: int) -> None:
    batch.dense_BI.mul_(1 - number / 100)


def _local(table: Any) -> list[Tensor]:
    return [shard.tensor for shard in table.local_shards()] if hasattr(table, "local_shards") else [table]


@cache  # in each rank, for all tests
def _source(max_ids: int = 1) -> Synthetic:
    return Synthetic(0, BATCH * STEPS, BATCH, 64, cardinalities=(3, 40, 300), max_ids=max_ids)


def _trained(flags: dict[str, str], max_ids: int, ahead: bool) -> tuple[list[float], list[Tensor]]:
    """Trains, and scores a batch after each second step; the losses and scores, and all weights."""
    config = resolve({}, SMALL | flags)
    source = _source(max_ids)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(rank, world_size, world_size, torch.device("cpu"), dist.group.WORLD)
    readers = {
        split: Reader(source, split, batch_size=BATCH, rank=rank, world_size=world_size)
        for split in ("train", "validation")
    }
    model = build_model(config, source.features, ranks, batch_size=BATCH // world_size)
    step = TrainingStep(model, build_dense_optimizer(config.optim, model.network, ranks.group), ranks, "fp32")
    numbers = []
    with closing(readers["train"].batches(0)) as batches:
        pipeline = Pipeline(batches, model, ranks.device, change=_dampened, first=1)
        if ahead:
            taken = ((batch, pipeline.advance) for batch in pipeline)
        else:
            taken = ((batch, lambda: None) for batch in _changed(batches))
        for number, (batch, meanwhile) in enumerate(taken, start=1):
            numbers.append(step(batch, number, meanwhile=meanwhile).loss)
            if number % 2 == 0:
                held_out = next(readers["validation"].batches(0))
                with torch.inference_mode():
                    numbers.append(model.inference(held_out.dense_BI, held_out).sum().item())
    tensors = model.tensors(with_sums=True)
    tables = [part for name in ("tables", "wide") for table in tensors.get(name, {}).values() for part in _local(table)]
    return numbers, [tensor.clone() for tensor in (*tables, *model.network.state_dict().values())]


def _changed(batches: Iterator[Batch]) -> Iterator[Batch]:
    for number, batch in enumerate(batches, start=1):
        _dampened(batch, number)
        yield batch


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("flags", "max_ids"),
    [
        ({"embedding": "full", "sharding": "table_wise"}, 1),
        ({"embedding": "qr", "operation": "mult", "sharding": "row_wise"}, 3),
    ],
)
def test_batches_that_are_prepared_ahead_give_the_same_training(flags: dict[str, str], max_ids: int, world_size: int):
    plain, ahead = (run_ranks(_trained, world_size, flags, max_ids, each) for each in (False, True))
    for (numbers, weights), (same, as_well) in zip(plain, ahead, strict=True):
        assert len(numbers) == STEPS + STEPS // 2
        assert numbers == same
        assert all(torch.equal(*pair) for pair in zip(weights, as_well, strict=True))


def _damaged() -> tuple[int, int, str]:
    """Trains on batches of which the last rank cannot read the third: steps, batches read, and the error."""
    config = resolve({}, SMALL)
    source = _source()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(rank, world_size, world_size, torch.device("cpu"), dist.group.WORLD)
    reader = Reader(source, "train", batch_size=BATCH, rank=rank, world_size=world_size)
    model = build_model(config, source.features, ranks, batch_size=BATCH // world_size)
    step = TrainingStep(model, build_dense_optimizer(config.optim, model.network, ranks.group), ranks, "fp32")
    read = steps = 0

    def batches() -> Iterator[Batch]:
        nonlocal read
        for batch in islice(reader.batches(0), 2):
            read += 1
            yield batch
        if rank == world_size - 1:
            raise DataError("train.bin is damaged")
        yield batch

    pipeline = Pipeline(batches(), model, ranks.device)
    try:
        for batch in pipeline:
            step(batch, steps + 1, meanwhile=pipeline.advance)
            steps += 1
            if steps == 2 and rank < world_size - 1:  # the others have the third batch, and would wait for the last
                return steps, read, ""
    except DataError as error:
        return steps, read, error.message
    return steps, read, "no error"


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_that_one_rank_cannot_read_ends_it_after_the_steps_before(world_size: int):
    *others, last = run_ranks(_damaged, world_size)
    assert last == (2, 2, "train.bin is damaged")
    assert others == [(2, 2, "")] * (world_size - 1)


def _read_of_three() -> tuple[int, int]:
    config = resolve({}, SMALL)
    source = _source()
    ranks = Ranks(0, 1, 1, torch.device("cpu"), dist.group.WORLD)
    model = build_model(config, source.features, ranks, batch_size=BATCH)
    batches = Reader(source, "train", batch_size=BATCH).batches(0)
    taken = [pipeline.advance() for pipeline in [Pipeline(batches, model, ranks.device, most=3)] for _ in pipeline]
    return len(taken), len(list(batches))


def test_no_batch_is_read_after_the_last_that_is_wanted():
    assert run_ranks(_read_of_three, 1) == [(3, STEPS - 3)]
