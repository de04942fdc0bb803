"""What the optimizer says about its costs and times."""

import torch
from torch import nn

from dlrmctl.optim.shampoo import PARTS, DistributedShampoo, PartTimes
from dlrmctl.optim.shampoo.costs import ELEMENTWISE_COST, ROOT_COST


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))


def test_costs_are_counted_by_parameter_and_part() -> None:
    optimizer = DistributedShampoo(
        _model().named_parameters(),
        max_preconditioner_dim=3,
        precondition_frequency=10,
        statistics_frequency=2,
        precondition_vectors=False,
    )
    weight, bias, *_ = optimizer.costs()
    assert (weight.name, weight.shape, weight.numel, weight.num_blocks) == ("0.weight", (4, 6), 24, 4)
    # 4 x 6 in blocks of at most 3: two of 3 x 3 and two of 1 x 3.
    products = 2 * 9 * 6 + 2 * 3 * 4
    assert weight.cost.application == products
    assert weight.cost.statistics == products / 2
    assert weight.cost.roots == ROOT_COST * (2 * 54 + 2 * 28) / 10
    assert bias.cost.total == bias.cost.elementwise == ELEMENTWISE_COST * 4
    factors = 2 * (9 + 9) + 2 * (1 + 9)
    # Factors and their roots, a second moment and a filtered gradient, in float32; a status per block in int64.
    assert weight.state_bytes == 4 * (2 * factors + 2 * 24) + 8 * 4
    assert bias.state_bytes == 4 * 2 * 4


def test_times_are_measured_by_part_when_asked_for() -> None:
    model = _model()
    optimizer = DistributedShampoo(model.parameters(), precondition_frequency=1)
    synchronized = []
    times = optimizer.part_times = PartTimes(lambda: synchronized.append(1))
    for _ in range(2):
        model(torch.ones(3, 6)).sum().backward()
        optimizer.step()
    assert tuple(times.seconds) == PARTS
    assert all(seconds > 0 for seconds in times.seconds.values())
    assert synchronized
    seconds = dict(times.seconds)
    optimizer.part_times = None
    optimizer.step()
    assert times.seconds == seconds
    times.clear()
    assert sum(times.seconds.values()) == 0
