"""Gradients averaged by their largest numbers, over real ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dlrmctl.optim.thresholding import ThresholdedGradients
from tests.ranks import run_ranks

STEPS = 30


def _reduced(ratio: float, refresh: int) -> dict:
    """The sums of what was sent, of all gradients, and what was left out, on one rank; the weights; the counts."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
    named = dict(network.named_parameters())
    hook = ThresholdedGradients(named, ratio=ratio, refresh=refresh)
    ddp = DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=True)
    ddp.register_comm_hook(hook, ThresholdedGradients.reduce)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(dist.get_rank())
    received, gradients, losses = torch.zeros(()), torch.zeros(()), []
    for _ in range(STEPS):
        x = torch.randn(32, 20, generator=generator)
        y = x[:, :1].sin() + x[:, 1:2]
        loss = (network(x) - y).square().mean()
        own = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])
        optimizer.zero_grad()
        loss = (ddp(x) - y).square().mean()
        loss.backward()
        averaged = torch.cat([p.grad.flatten() for p in network.parameters()])
        received, gradients = received + averaged, gradients + own
        optimizer.step()
        losses.append(loss.item())
    left = torch.cat([hook.tensors()[f"{name}/error"].flatten() for name in named])
    mean_gradients, mean_left = gradients.clone(), left.clone()
    for total in (mean_gradients, mean_left):
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return {
        "lost": float((received + mean_left - mean_gradients).abs().max()),
        "weights": torch.cat([p.detach().flatten() for p in network.parameters()]),
        "achieved": hook.numbers / hook.kept,
        "bytes": (hook.raw_bytes, hook.sent_bytes, hook.kept),
        "losses": losses,
    }


@pytest.mark.parametrize("refresh", [1, 1000])
def test_nothing_is_lost_ranks_stay_equal_and_the_ratio_is_kept(refresh: int):
    ours, theirs = run_ranks(_reduced, 2, 20.0, refresh)
    assert torch.equal(ours["weights"], theirs["weights"])
    for rank in (ours, theirs):
        assert rank["lost"] < 1e-5  # sums of 30 gradients near 1, in float32
        assert 10 <= rank["achieved"] <= 40
    raw, sent, kept = ours["bytes"]
    numbers = 20 * 64 + 64 + 64 * 32 + 32 + 32 + 1
    assert raw == 4 * numbers * STEPS
    # Messages have the length of the longer one, and a count of 8 bytes: one or two buckets per step.
    assert 8 * max(kept, theirs["bytes"][2]) <= sent - 8 * STEPS <= 8 * (kept + theirs["bytes"][2] + STEPS)
    assert ours["losses"][-1] < 0.8 * ours["losses"][0]


def test_with_a_ratio_of_1_it_is_the_average():
    ours, _ = run_ranks(_reduced, 2, 1.0, 1)
    assert ours["lost"] < 1e-5
    assert ours["achieved"] == 1


@pytest.mark.parametrize("settings", [{"ratio": 0.5, "refresh": 1}, {"ratio": 2.0, "refresh": 0}])
def test_numbers_out_of_range_are_refused(settings: dict):
    with pytest.raises(ValueError, match="at least 1"):
        ThresholdedGradients({}, **settings)
