"""The MLP and optimizer memory that `plan` predicts, against real optimizers."""

import pytest
import torch
import torch.distributed as dist

from dlrmctl.assembly.network import build_dense_network
from dlrmctl.assembly.optimizers import build_dense_optimizer
from dlrmctl.data.schema import Schema, SparseFeature
from dlrmctl.optim.shampoo import DistributedShampoo
from dlrmctl.optim.shampoo.estimate import _even_share, shampoo_shares
from dlrmctl.plan.dense import dense_need
from dlrmctl.settings.config import resolve
from tests.ranks import run_ranks

PLAIN = {"averaging": "none"}  # the optimizer alone
SCHEMA = Schema(tuple(f"int_{i}" for i in range(13)), tuple(SparseFeature(f"cat_{i}", 100) for i in range(5)))
SHAMPOOS: list[dict[str, str]] = [
    {},
    {"beta1": "0.9", "momentum": "0.5"},
    {"shampoo_sides": "1", "shampoo_block": "50"},
    {"grafting": "none"},
    {"grafting": "sgd", "momentum": "0.9"},
    {"grafting": "adam", "interaction": "cat"},
]


def _state_bytes(flags: dict[str, str]) -> int:
    """Of the Shampoo of this rank, as it counts itself."""
    config, group = resolve({}, PLAIN | flags), dist.group.WORLD
    network = build_dense_network(config, SCHEMA, torch.device("cpu"))
    optimizer = build_dense_optimizer(config.optim, network, group)
    assert isinstance(optimizer, DistributedShampoo)
    held = {tensor.data_ptr(): tensor for state in optimizer.state.values() for tensor in state.values()}
    own = sum(cost.state_bytes for cost in optimizer.costs())
    assert own == sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    return own


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("flags", SHAMPOOS, ids=str)
def test_shampoo_state_is_counted_to_the_byte_on_every_rank(world_size: int, flags: dict[str, str]):
    planned = dense_need(resolve({}, PLAIN | flags), SCHEMA, world_size)
    assert run_ranks(_state_bytes, world_size, flags) == list(planned.state)


def test_shampoo_state_is_shared_out_over_any_number_of_ranks():
    one, many = (dense_need(resolve({}, PLAIN), SCHEMA, ranks) for ranks in (1, 64))
    assert sum(many.state) == sum(one.state)
    assert len(many.state) == 64
    assert max(many.state) < 0.2 * one.state[0]  # some 40 blocks, the largest 2.5 % of the state


@pytest.mark.parametrize("flags", SHAMPOOS, ids=str)
def test_blocks_too_many_to_deal_out_have_the_same_sum(flags: dict[str, str]):
    config = resolve({}, flags)
    network = build_dense_network(config, SCHEMA, torch.device("meta"))
    settings = build_dense_optimizer(config.optim, torch.nn.Linear(1, 1), None).param_groups[0]
    even = _even_share(settings | {"params": list(network.parameters())}, 1)
    [dealt] = shampoo_shares(network.parameters(), settings, 1)
    assert (even.state, even.scratch, even.buffer) == (dealt.state, dealt.scratch, dealt.buffer)
    for steps in (1, 200, 1000):  # sums of floats in another order
        assert even.products(settings, steps) == pytest.approx(dealt.products(settings, steps), rel=1e-12)


@pytest.mark.parametrize(
    "flags",
    [
        {"dense_optimizer": "adagrad"},
        {"dense_optimizer": "adamw"},
        {"dense_optimizer": "sgd"},
        {"dense_optimizer": "sgd", "momentum": "0.9"},
        {"dense_optimizer": "signum"},
        {"dense_optimizer": "muon"},
    ],
    ids=str,
)
def test_the_state_of_torchs_optimizers_is_counted_to_the_byte(flags: dict[str, str]):
    config = resolve({}, PLAIN | flags)
    network = build_dense_network(config, SCHEMA, torch.device("cpu"))
    optimizer = build_dense_optimizer(config.optim, network, None)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    held = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.dim() > 0]
    planned = dense_need(config, SCHEMA, 1)
    assert planned.state == (sum(tensor.numel() * tensor.element_size() for tensor in held),)
    assert planned.weights == planned.gradients == sum(p.numel() * p.element_size() for p in network.parameters())


def test_the_average_and_its_iterate_are_counted_too():
    plain, averaged = (dense_need(resolve({}, {"averaging": kind}), SCHEMA, 1) for kind in ("none", "gpa"))
    assert averaged.state[0] == plain.state[0] + 2 * plain.weights
