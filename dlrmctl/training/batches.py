"""The batch of a training: constant, or growing with the noise of gradients (`--batch-schedule gns`)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlrmctl.assembly.optimizers import hidden_matrices
from dlrmctl.data.batch import Batch
from dlrmctl.models import DenseNetwork
from dlrmctl.optim.noise_scale import NoiseAverage, noise_estimate
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.batches import CHUNKS, PROXIES, geometry_of, largest_batch, theta_of
from dlrmctl.settings.config import Config

PROBE_EVERY = 20  # steps between two estimates: each is an extra forward and backward of the MLPs
_FEWEST_ESTIMATES = 3  # before the batch changes
_LEAST_GROWTH, _MOST_GROWTH = 1.1, 2.0  # of one change: smaller ones are not worth starting the reader anew
_MULTIPLE = 8  # of each rank's batch


class NoiseProbe:
    """Estimates the noise of gradients every `PROBE_EVERY` steps, without changing the training.

    Args:
        network: the dense network; its gradients are estimated, not those of tables.
        geometries: norms in which to estimate.
        muon: whether "spectral" is of the matrices that Muon steps; otherwise it is of all matrices.
        averages: to add the estimates to, by geometry.
    """

    def __init__(
        self, network: DenseNetwork, ranks: Ranks, averages: Mapping[str, NoiseAverage], *, muon: bool = False
    ) -> None:
        self.averages, self._network, self._ranks = averages, network, ranks
        every = list(network.parameters())
        matrices: Sequence[Tensor] = hidden_matrices(network) if muon else [p for p in every if min(_sides(p)) > 1]
        places = {id(p): place for place, p in enumerate(every)}
        self._parameters = every
        self._matrices = [places[id(p)] for p in matrices]

    def is_due(self, step: int) -> bool:
        return step % PROBE_EVERY == 0

    def take(
        self, batch: Batch, embeddings_BFD: Tensor, wide_B: Tensor | None, autocast: Any, shares_B: Tensor | None
    ) -> None:
        """Estimates noise and signal of this batch. Every rank must call it.

        Args:
            embeddings_BFD, wide_B: what the tables gave for the batch.
            autocast: context of the forward pass.
            shares_B: weights of the examples, relative to their mean; None for equal ones.
        """
        num = max(1, CHUNKS // self._ranks.world_size)
        size = len(batch) // num
        chunks = []
        for start in range(0, num * size, size):
            some = slice(start, start + size)
            with autocast:
                logits_B = self._network(batch.dense_BI[some], embeddings_BFD[some].detach()).float()
            if wide_B is not None:
                logits_B = logits_B + wide_B[some].detach()
            weights_B = None if shares_B is None else shares_B[some]
            loss = functional.binary_cross_entropy_with_logits(logits_B, batch.labels_B[some], weight=weights_B)
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            pairs = zip(gradients, self._parameters, strict=True)
            chunks.append([torch.zeros_like(p) if g is None else g for g, p in pairs])
        group = self._ranks.group if self._ranks.world_size > 1 else None
        for geometry, average in self.averages.items():
            of_chunks = [[c[i] for i in self._matrices] for c in chunks] if geometry == "spectral" else chunks
            average.add(noise_estimate(of_chunks, chunk_size=size, geometry=geometry, group=group))


def _sides(p: nn.Parameter) -> tuple[int, ...]:
    return tuple(p.shape) if p.dim() == 2 else (1,)


class BatchGrowth:
    """Lets the global batch grow to where the noise of its gradient is theta times the gradient.

    Args:
        config: its batch is the first.
        examples: of an epoch.
        average: of the estimates; shared with the probe, and kept in checkpoints.
    """

    def __init__(
        self, config: Config, network: DenseNetwork, ranks: Ranks, examples: int, average: NoiseAverage
    ) -> None:
        train, optimizer = config.train, config.optim.dense_optimizer
        self.geometry = geometry_of(train.gns_geometry, optimizer)
        self.theta = theta_of(train.gns_theta, self.geometry)
        self.first, self.average = train.batch_size, average
        self.largest = min(largest_batch(self.first, train.batch_max, ranks.world_size), examples)
        self.probe = NoiseProbe(network, ranks, {self.geometry: average}, muon=optimizer == "muon")
        self._multiple = _MULTIPLE * ranks.world_size

    def next_batch(self, now: int, rows_left: int) -> int:
        """Returns the batch of the next step; larger ones only if a whole one is left in the epoch."""
        if self.average.estimates < _FEWEST_ESTIMATES:
            return now
        wanted = min(self.average.batch_for(self.theta), _MOST_GROWTH * now, self.largest)
        size = int(wanted) // self._multiple * self._multiple
        return size if size >= _LEAST_GROWTH * now and size <= rows_left else now

    def rate_factor(self, now: int) -> float:
        """The factor of all learning rates."""
        return math.sqrt(now / self.first)

    def about(self, config: Config) -> str:
        """A line to print before training."""
        proxy = f", a proxy for {config.optim.dense_optimizer}" if config.optim.dense_optimizer in PROXIES else ""
        return (
            f"the batch grows from {self.first:,} to at most {self.largest:,} by the noise of gradients in the "
            f"{self.geometry} geometry{proxy}, theta {self.theta:g}"
        )
