"""Two ranks take the same steps as one with the same global batch."""

from contextlib import closing
from functools import cache

import pytest
import torch.distributed as dist

from dlrmctl.assembly.model import build_model
from dlrmctl.assembly.optimizers import build_dense_optimizer
from dlrmctl.data.reader import Reader
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import resolve
from dlrmctl.settings.embeddings import OPERATIONS
from dlrmctl.training.step import TrainingStep
from tests.ranks import run_ranks

STEPS = 20
SMALL = {"dim": "8", "bottom_mlp": "16-8", "top_mlp": "16-16-1", "qr_threshold": "50", "shampoo_frequency": "3"}


@cache  # in each rank, for all tests
def _source(max_ids: int) -> Synthetic:
    return Synthetic(0, 128 * STEPS, 64, 64, cardinalities=(3, 40, 120, 300), max_ids=max_ids)


def _losses(flags: dict[str, str], max_ids: int) -> list[float]:
    import torch

    config = resolve({}, SMALL | flags)
    source = _source(max_ids)
    group = dist.group.WORLD
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.get_world_size(), torch.device("cpu"), group)
    reader = Reader(source, "train", batch_size=128, rank=ranks.rank, world_size=ranks.world_size)
    model = build_model(config, source.features, ranks, batch_size=reader.local_batch_size)
    step = TrainingStep(model, build_dense_optimizer(config.optim, model.network, ranks.group), ranks, "fp32")
    losses = []
    with closing(reader.batches(0)) as batches:
        for number, batch in enumerate(batches):
            sums = step(batch, number)
            losses.append(sums.loss / sums.examples)
    return losses


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
@pytest.mark.parametrize(
    ("embedding", "operation", "max_ids"),
    [
        ("full", "mult", 1),
        *(("qr", operation, 1) for operation in OPERATIONS),
        ("qr", "mult", 3),
        ("qr", "path", 3),
        ("kway", "mult", 3),
        ("crt", "concat", 1),
        ("head", "mult", 3),
        ("double-hash", "mult", 3),
    ],
)
def test_two_ranks_take_the_same_steps_as_one(sharding: str, embedding: str, operation: str, max_ids: int):
    flags = {"embedding": embedding, "operation": operation, "sharding": sharding, "dense_optimizer": "adagrad"}
    flags |= {"tail": "qr", "ways": "3" if embedding == "kway" else "2"}
    [alone] = run_ranks(_losses, 1, flags, max_ids)
    together = run_ranks(_losses, 2, flags, max_ids)
    assert together[0] == together[1]
    assert len(alone) == STEPS
    # The same float32 numbers are summed in another order, 2**-24 = 6e-8 each time; 20 steps were seen to leave 2e-7.
    # Different batches or gradients of another scale differ in the first digits.
    assert together[0] == pytest.approx(alone, rel=2e-6)
    assert alone[-1] < alone[0]


def test_two_ranks_of_shampoo_take_the_same_steps_as_one():
    [alone] = run_ranks(_losses, 1, {"dense_optimizer": "shampoo", "shampoo_epsilon": "0.01"}, 1)
    together = run_ranks(_losses, 2, {"dense_optimizer": "shampoo", "shampoo_epsilon": "0.01"}, 1)
    assert together[0] == together[1]
    # As above, times what a root inverse adds: statistics of few examples are singular, and the epsilon given here
    # bounds the amplification of their rounding by 1 / epsilon.
    assert together[0] == pytest.approx(alone, rel=2e-5)


def _refused(kind: str) -> tuple[str, bool]:
    """A step with bad numbers on the last rank: the message, and whether every weight stayed as it was."""
    import torch

    config = resolve({}, SMALL | {"dense_optimizer": "adagrad"})
    source = Synthetic(0, 256, 64, 64, cardinalities=(3, 40, 120, 300))
    group = dist.group.WORLD
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.get_world_size(), torch.device("cpu"), group)
    reader = Reader(source, "train", batch_size=128, rank=ranks.rank, world_size=ranks.world_size)
    model = build_model(config, source.features, ranks, batch_size=reader.local_batch_size)
    step = TrainingStep(model, build_dense_optimizer(config.optim, model.network, ranks.group), ranks, "fp32")
    batch = next(reader.batches(0))
    if kind == "loss" and ranks.rank == ranks.world_size - 1:
        batch.labels_B[0] = float("nan")
    if kind == "gradient":  # logits near 1e15 have a finite loss; two layers of 1e25 have no finite gradient
        with torch.no_grad():
            layers = model.network.top.layers
            layers[0].weight.zero_()
            layers[0].bias.fill_(1e-38)
            for layer in layers[1:]:
                layer.weight.fill_(1e25)
                layer.bias.zero_()

    def weights() -> list[torch.Tensor]:
        shards = [shard.tensor for table in model.tensors()["tables"].values() for shard in table.local_shards()]
        return [tensor.clone() for tensor in [*shards, *model.network.parameters()]]

    before = weights()
    try:
        step(batch, 7)
    except UserError as error:
        return error.message, all(torch.equal(a, b) for a, b in zip(before, weights(), strict=True))
    return "no error", False


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loss_that_is_not_finite_stops_every_rank_before_any_weight_moves(world_size: int):
    for message, untouched in run_ranks(_refused, world_size, "loss"):
        assert message.startswith(f"step 7: the loss on rank {world_size - 1} is not finite")
        assert untouched


def test_a_gradient_that_is_not_finite_stops_before_any_weight_moves():
    [(message, untouched)] = run_ranks(_refused, 1, "gradient")
    assert message.startswith("step 7: the gradient on rank 0 is not finite")
    assert untouched
