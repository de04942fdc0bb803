"""Two ranks take the same steps as one with the same global batch."""

from contextlib import closing

import pytest
import torch.distributed as dist

from data.reader import Reader
from data.synthetic import Synthetic
from dlrmctl.build import build_dense_optimizer, build_model
from dlrmctl.config import resolve
from dlrmctl.ranks import Ranks
from dlrmctl.step import TrainingStep
from tests.ranks import run_ranks

STEPS = 20
SMALL = {"dim": "8", "bottom_mlp": "16-8", "top_mlp": "16-1", "qr_threshold": "50", "shampoo_frequency": "3"}


def _losses(flags: dict[str, str], max_ids: int) -> list[float]:
    import torch

    config = resolve({}, SMALL | flags)
    source = Synthetic(0, 128 * STEPS, 64, 64, cardinalities=(3, 40, 120, 300), max_ids=max_ids)
    group = dist.group.WORLD
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.get_world_size(), torch.device("cpu"), group)
    reader = Reader(source, "train", batch_size=128, rank=ranks.rank, world_size=ranks.world_size)
    model = build_model(config, source.schema, ranks, batch_size=reader.local_batch_size)
    step = TrainingStep(model, build_dense_optimizer(config.optim, model.network, ranks), ranks, "fp32")
    losses = []
    with closing(reader.batches(0)) as batches:
        for number, batch in enumerate(batches):
            sums = step(batch, number, stop=False)
            losses.append(sums.loss / sums.examples)
    return losses


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
@pytest.mark.parametrize(
    ("embedding", "operation", "max_ids"),
    [("full", "mult", 1), ("qr", "mult", 1), ("qr", "add", 1), ("qr", "concat", 1), ("qr", "mult", 3)],
)
def test_two_ranks_take_the_same_steps_as_one(sharding: str, embedding: str, operation: str, max_ids: int):
    flags = {"embedding": embedding, "operation": operation, "sharding": sharding, "dense_optimizer": "adagrad"}
    [alone] = run_ranks(_losses, 1, flags, max_ids)
    together = run_ranks(_losses, 2, flags, max_ids)
    assert together[0] == together[1]
    assert len(alone) == STEPS
    # The same float32 numbers are summed in another order: 2**-24 each time, grown by 20 steps of AdaGrad, whose first
    # steps turn the smallest gradients into full-sized moves. Different batches would differ in the first digit.
    assert together[0] == pytest.approx(alone, rel=1e-4)
    assert alone[-1] < alone[0]


def test_two_ranks_of_shampoo_take_the_same_steps_as_one():
    [alone] = run_ranks(_losses, 1, {"dense_optimizer": "shampoo"}, 1)
    together = run_ranks(_losses, 2, {"dense_optimizer": "shampoo"}, 1)
    assert together[0] == together[1]
    # As above; root inverses of nearly singular factors add their condition.
    assert together[0] == pytest.approx(alone, rel=1e-3)
