"""The gradient noise scale against known truth, and over ranks."""

import math

import pytest
import torch
import torch.distributed as dist

from dlrmctl.optim.noise_scale import GEOMETRIES, NoiseAverage, NoiseEstimate, c4, noise_estimate
from tests.ranks import run_ranks

SHAPES = ((20, 30), (12, 40), (25, 10))


def _chunks(num: int, size: int, generator: torch.Generator, signal: float) -> tuple[list, list, list]:
    """Mean gradients of chunks of Gaussian examples, with the mean gradient and the standard deviations."""
    means = [signal * torch.randn(shape, generator=torch.Generator().manual_seed(7)).double() for shape in SHAPES]
    deviations = [torch.rand(shape, generator=torch.Generator().manual_seed(8)).double() + 0.2 for shape in SHAPES]
    noise = [
        [d * torch.randn(d.shape, generator=generator, dtype=torch.float64) / math.sqrt(size) for d in deviations]
        for _ in range(num)
    ]
    return [[m + n for m, n in zip(means, chunk, strict=True)] for chunk in noise], means, deviations


def _averaged(geometry: str, *, num: int, signal: float, rounds: int = 60) -> tuple[NoiseAverage, list, list]:
    generator, average = torch.Generator().manual_seed(1), NoiseAverage()
    for _ in range(rounds):
        chunks, means, deviations = _chunks(num, 4, generator, signal)
        average.add(noise_estimate(chunks, chunk_size=4, geometry=geometry), decay=1.0)
    return average, means, deviations


@pytest.mark.parametrize("num", [2, 8])
@pytest.mark.parametrize("geometry", ["l1", "l2"])
def test_the_noise_is_that_of_the_examples_within_5_percent(geometry: str, num: int):
    average, means, deviations = _averaged(geometry, num=num, signal=0.5)
    if geometry == "l2":
        noise, signal = sum(d.square().sum() for d in deviations), sum(m.square().sum() for m in means)
        assert average.signal == pytest.approx(float(signal), rel=0.05)
    else:
        noise = sum(d.sum() for d in deviations) ** 2
    assert average.noise == pytest.approx(float(noise), rel=0.05)


def test_the_spectral_noise_is_that_of_the_covariance_of_rows_within_5_percent():
    average, _, deviations = _averaged("spectral", num=8, signal=0.5, rounds=20)
    # Entries are independent, so the covariance of the rows is diagonal: sums of variances along the other side.
    roots = [d.square().sum(0 if d.shape[0] > d.shape[1] else 1).sqrt().sum() for d in deviations]
    assert average.noise == pytest.approx(float(sum(roots)) ** 2, rel=0.05)


def test_without_a_signal_a_batch_may_grow_by_half_of_pi_at_most():
    average, _, _ = _averaged("l1", num=8, signal=0.0)
    assert average.batch_for(1.0) == pytest.approx(math.pi / 2 * 32, rel=0.05)


def test_the_factor_of_small_samples():
    assert c4(2) == pytest.approx(math.sqrt(2 / math.pi))
    samples = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0)).std(1)
    assert c4(4) == pytest.approx(float(samples.mean()), rel=0.005)


def _of_rank(geometry: str, per_rank: int) -> NoiseEstimate:
    chunks, _, _ = _chunks(4, 4, torch.Generator().manual_seed(3), 0.5)
    mine = chunks[dist.get_rank() * per_rank : (dist.get_rank() + 1) * per_rank]
    return noise_estimate(mine, chunk_size=4, geometry=geometry, group=dist.group.WORLD)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_two_ranks_estimate_what_one_process_does(geometry: str):
    [alone] = run_ranks(_of_rank, 1, geometry, 4)
    first, second = run_ranks(_of_rank, 2, geometry, 2)
    assert first == second
    assert first.noise == pytest.approx(alone.noise, rel=1e-9)
    assert first.signal == pytest.approx(alone.signal, rel=1e-9)


def test_averages_are_of_noise_and_of_signal_not_of_their_ratios():
    average = NoiseAverage()
    average.add(NoiseEstimate(1.0, 2.0))
    average.add(NoiseEstimate(3.0, -1.0))
    assert (average.noise, average.signal) == (2.0, 0.5)
    assert average.batch_for(1.0) == 4.0
    assert NoiseAverage(1.0, -1.0, 5).batch_for(1.0) == math.inf


def test_one_chunk_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        noise_estimate([[torch.ones(2)]], chunk_size=4, geometry="l2")
