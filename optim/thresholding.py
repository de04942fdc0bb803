"""Gradients that are averaged over ranks by their largest numbers; the rest is kept, and added to the next gradients.

On every rank, for every parameter with its gradient g:

    a = g + e        sent = a where |a| >= t, else 0        e <- a - sent

The ranks average what they send. The threshold t is the magnitude of the largest 1 / `ratio` of the numbers of a; it
is found anew every `refresh` steps, and whenever it lets more than twice, or less than half, as many pass. Nothing is
lost: the sum of everything sent, plus e, is the sum of all gradients.

Each number sent has 8 bytes, its place and its value, and every rank gets those of all others: with a ratio of 100 and
P ranks, P - 1 times 2 % of the gradient's bytes, where a ring of all-reduce moves 2 (P - 1) / P times all of them.

Source: Gupta et al., arXiv:2010.08899, "DCT" for data parallelism; the limits on the share sent are not in it.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

_BYTES_PER_ENTRY = 8
_BYTES_OF_COUNT = 8
_DRIFT = 2  # factor by which the number sent may differ from the target


class ThresholdedGradients:
    """A communication hook for DistributedDataParallel: `ddp.register_comm_hook(hook, ThresholdedGradients.reduce)`.

    Args:
        parameters: of the module, by name; float32.
        ratio: numbers per number sent, at least 1.
        refresh: steps between two searches for thresholds, at least 1.
        group: the ranks; None means the world.

    Attributes:
        numbers, kept: of all gradients so far on this rank, and those sent.
        raw_bytes, sent_bytes: of all gradients as float32, and of this rank's messages.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, parameters: Mapping[str, Parameter], *, ratio: float, refresh: int, group: dist.ProcessGroup | None = None
    ) -> None:
        if not ratio >= 1 or refresh < 1:
            raise ValueError(f"{ratio=} and {refresh=} must be at least 1")
        self.ratio, self.refresh, self.group = ratio, refresh, group
        self._names = {id(p): name for name, p in parameters.items()}
        self._errors = {name: torch.zeros(p.shape, device=p.device) for name, p in parameters.items()}
        self._thresholds = {name: torch.zeros((), device=p.device) for name, p in parameters.items()}
        self._ages = {name: torch.zeros((), dtype=torch.int64) for name in parameters}
        self.numbers = self.kept = self.raw_bytes = self.sent_bytes = 0

    def reduce(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """Replaces the gradients of a bucket by the averages of what the ranks send of them."""
        flat = bucket.buffer()
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(self._averaged(flat, [self._names[id(p)] for p in bucket.parameters()]))
        return done

    @torch.no_grad()
    def _averaged(self, flat: Tensor, names: list[str]) -> Tensor:
        places, values, start = [], [], 0
        for name in names:
            stop = start + self._errors[name].numel()
            kept = self._select(name, flat[start:stop])
            places.append(kept + start)
            values.append(flat[start:stop].index_select(0, kept))
            start = stop
        self.numbers += flat.numel()
        self.raw_bytes += flat.numel() * flat.element_size()
        return self._exchange(flat, torch.cat(places), torch.cat(values))

    def _select(self, name: str, gradient: Tensor) -> Tensor:
        """Adds what was left out before to a gradient, in place, and returns the places of what to send."""
        error, threshold, age = self._errors[name].view(-1), self._thresholds[name], self._ages[name]
        gradient.add_(error)
        sizes, target = gradient.abs(), max(1, round(gradient.numel() / self.ratio))
        kept = (sizes >= threshold).nonzero().view(-1)
        if int(age) % self.refresh == 0 or not target / _DRIFT <= len(kept) <= target * _DRIFT:
            # As many as the target even where numbers are equal, as the zeros of units that are off.
            largest, kept = sizes.topk(target)
            threshold.copy_(largest[-1])
        age += 1
        error.copy_(gradient).index_fill_(0, kept, 0.0)
        self.kept += len(kept)
        return kept

    def _exchange(self, flat: Tensor, places: Tensor, values: Tensor) -> Tensor:
        world_size = dist.get_world_size(self.group)
        counts = [torch.zeros(1, dtype=torch.int64, device=flat.device) for _ in range(world_size)]
        dist.all_gather(counts, torch.tensor([len(places)], device=flat.device), group=self.group)
        longest = int(max(counts))
        message = torch.zeros(2, longest, dtype=torch.int32, device=flat.device)  # all have the length of the longest
        message[0, : len(places)] = places
        message[1, : len(places)] = values.contiguous().view(torch.int32)
        of_ranks = [torch.empty_like(message) for _ in range(world_size)]
        dist.all_gather(of_ranks, message, group=self.group)
        self.sent_bytes += longest * _BYTES_PER_ENTRY + _BYTES_OF_COUNT
        flat.zero_()
        for count, theirs in zip(counts, of_ranks, strict=True):  # in the same order on every rank: the same sums
            places, values = theirs[:, : int(count)]
            flat.index_add_(0, places.long(), values.contiguous().view(torch.float32))
        return flat.div_(world_size)

    def tensors(self) -> dict[str, Tensor]:
        """Returns this rank's live state by parameter name: "mlp.0.weight/error", "/threshold" and "/age"."""
        kinds = {"error": self._errors, "threshold": self._thresholds, "age": self._ages}
        return {f"{name}/{kind}": value for kind, of_names in kinds.items() for name, value in of_names.items()}
