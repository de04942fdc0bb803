"""The gradient noise scale: the batch at which the noise of a gradient is as large as the gradient, in a norm.

An optimizer that takes steepest descent in a norm compares gradient and noise in its dual. With the covariance C of an
example's gradient g, and G = E g:

    geometry    noise                                    signal                       dual norm of
    l2          trace of C                               |G|_2^2                      gradient descent
    l1          (sum of sigma_i)^2, sigma_i^2 = C_ii     |G|_1^2                      sign descent
    spectral    (sum of trace of C_row^(1/2))^2          (sum of singular values)^2   steps by polar factors

C_row = E (g - G)(g - G)^T for a matrix, on its shorter side; sums are over all matrices. With batches of B examples the
expected noise is at most noise / B, so a batch of `noise / (theta^2 signal)` keeps it below `theta` times the gradient.

Estimates come from the mean gradients g_r of R equal chunks of b examples, the chunks of all ranks together, and their
mean over B = R b examples, which stands for G:

    C = b R / (R - 1) (mean of g_r g_r^T - g g^T)

The root of an estimated variance is too small on average by the factor c4(R), which l1 divides out. The signal of l1
and of spectral contains the noise of g itself: where noise dominates, noise / signal tends to (pi / 2) B for l1, and to
about B for spectral, so that a batch is never asked to grow much at once. The signal of l2 has it subtracted, and may
be below 0 in a single estimate.

Sources: McCandlish et al., arXiv:1812.06162 (l2); Naganuma et al., arXiv:2602.03001 (other norms).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

GEOMETRIES = ("l2", "l1", "spectral")


@dataclass(frozen=True)
class NoiseEstimate:
    """Noise and signal of gradients, in the square of a norm."""

    noise: float
    signal: float


@dataclass
class NoiseAverage:
    """Moving averages of the noise and the signal of estimates; the ratio of averages has less bias than that of each.

    Attributes:
        estimates: number of them so far.
    """

    noise: float = 0.0
    signal: float = 0.0
    estimates: int = 0

    def add(self, estimate: NoiseEstimate, decay: float = 0.9) -> None:
        """Adds an estimate; the first ones are averaged equally."""
        self.estimates += 1
        share = max(1 / self.estimates, 1 - decay)
        self.noise += share * (estimate.noise - self.noise)
        self.signal += share * (estimate.signal - self.signal)

    def batch_for(self, theta: float) -> float:
        """The batch at which the noise is `theta` times the gradient; infinite if the signal is not above 0."""
        return self.noise / (theta**2 * self.signal) if self.signal > 0 else math.inf


def c4(num: int) -> float:
    """The expected root of the variance of `num` >= 2 normal numbers, relative to their standard deviation."""
    return math.sqrt(2 / (num - 1)) * math.exp(math.lgamma(num / 2) - math.lgamma((num - 1) / 2))


@torch.no_grad()
def noise_estimate(
    chunks: Sequence[Sequence[Tensor]], *, chunk_size: int, geometry: str, group: dist.ProcessGroup | None = None
) -> NoiseEstimate:
    """Estimates noise and signal. Every rank of `group` must call it, with as many chunks.

    Args:
        chunks: for each chunk of this rank, the mean gradients of its examples; for "spectral", of matrices.
        chunk_size: examples of a chunk.
        geometry: one of `GEOMETRIES`.
        group: the ranks; None means this process alone.

    Raises:
        ValueError: for an unknown geometry, or fewer than two chunks in all.
    """
    if geometry not in GEOMETRIES:
        raise ValueError(f"{geometry=} must be one of {', '.join(GEOMETRIES)}")
    num = len(chunks) * (1 if group is None else dist.get_world_size(group))
    if num < 2:
        raise ValueError(f"{num} chunk has no variance; at least 2 are needed")
    if geometry == "spectral":
        return _spectral(chunks, num, chunk_size, group)
    gradients_RN = torch.stack([torch.cat([g.flatten() for g in chunk]) for chunk in chunks]).double()
    sums_2N = torch.stack([gradients_RN.sum(0), gradients_RN.square().sum(0)])
    _add_up([sums_2N], group)
    mean_N, square_N = sums_2N / num
    variance_N = (square_N - mean_N.square()).clamp_(min=0).mul_(chunk_size * num / (num - 1))
    if geometry == "l1":
        return NoiseEstimate(float(variance_N.sqrt().sum() / c4(num)) ** 2, float(mean_N.abs().sum()) ** 2)
    noise = float(variance_N.sum())
    return NoiseEstimate(noise, float(mean_N.square().sum()) - noise / (num * chunk_size))


def _spectral(
    chunks: Sequence[Sequence[Tensor]], num: int, chunk_size: int, group: dist.ProcessGroup | None
) -> NoiseEstimate:
    means, grams = [], []
    for of_chunks in zip(*chunks, strict=True):
        # The shorter side first: the smaller matrix, and the tighter bound of the two.
        sides = [g.double() if g.shape[0] <= g.shape[1] else g.double().T for g in of_chunks]
        means.append(torch.stack(sides).sum(0))
        grams.append(torch.stack([g_MN @ g_MN.T for g_MN in sides]).sum(0))
    _add_up([*means, *grams], group)
    noise = signal = 0.0
    for mean_MN, gram_MM in zip(means, grams, strict=True):
        mean_MN /= num
        own_MM = mean_MN @ mean_MN.T
        covariance_MM = (gram_MM / num - own_MM) * (chunk_size * num / (num - 1))
        noise += float(torch.linalg.eigvalsh(covariance_MM).clamp_(min=0).sqrt().sum())
        signal += float(torch.linalg.eigvalsh(own_MM).clamp_(min=0).sqrt().sum())
    return NoiseEstimate(noise**2, signal**2)


def _add_up(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Sums tensors over the ranks, in place, with one all-reduce."""
    if group is None:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))
