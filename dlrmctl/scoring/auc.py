"""Streaming AUC over batches and ranks, with DeLong's standard error.

Up to `EXACT_SCORES` scores over all ranks, all scores are kept and the AUC is exact. Beyond that, a rank whose share is
full replaces its scores by about `INTERVALS` intervals between their quantiles, with the number of positives and
negatives in each. Pairs whose order is unknown count half; `Auc.bound` is their largest possible contribution.

With weights, a score counts as its weight (float64), and squares of weights take the place of counts in the variance.

N scores, K intervals, G groups of intervals. Counts of smaller scores are doubled, so that ties count 1. C counts of an
interval: negatives and positives, and with weights the sums of their squares.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

EXACT_SCORES = 1 << 25  # over all ranks; 5 bytes each
INTERVALS = 1 << 20  # per rank


@dataclass(frozen=True)
class Auc:
    """The area under the ROC curve, its standard error, and a bound on its difference from the exact value.

    `value` and `se` are None if a class is absent; `bound` is 0 if the value is exact.
    """

    value: float | None
    se: float | None
    bound: float = 0.0


@dataclass(frozen=True)
class _Intervals:
    """Intervals of scores.

    Attributes:
        low_K, high_K: float32, ends of the intervals.
        counts_CK: int64, or float64 with weights.
    """

    low_K: Tensor
    high_K: Tensor
    counts_CK: Tensor

    @classmethod
    def of_scores(cls, scores_N: Tensor, labels_N: Tensor, weights_N: Tensor | None) -> "_Intervals":
        """One interval of zero width per distinct score."""
        values_K, groups_N = torch.unique(scores_N, return_inverse=True)
        kind = torch.int64 if weights_N is None else torch.float64
        counted = [~labels_N, labels_N]
        if weights_N is not None:
            weights = weights_N.double()
            counted = [which * number for number in (weights, weights * weights) for which in counted]
        counts_CK = torch.zeros(len(counted), len(values_K), dtype=kind, device=scores_N.device)
        for counts_K, counted_N in zip(counts_CK, counted, strict=True):
            counts_K.index_add_(0, groups_N, counted_N.to(kind))
        return cls(values_K, values_K, counts_CK)

    def __add__(self, other: "_Intervals") -> "_Intervals":
        low_K, high_K = torch.cat([self.low_K, other.low_K]), torch.cat([self.high_K, other.high_K])
        return _Intervals(low_K, high_K, torch.cat([self.counts_CK, other.counts_CK], dim=1))

    def merged(self, number: int) -> "_Intervals":
        """Merges equal intervals, and neighbours until each holds 1 / `number` of the scores if more than that remain.

        An interval that alone holds such a share, for example a frequent score, is kept, so at most three times
        `number` intervals remain.
        """
        by_high_K = self.high_K.argsort(stable=True)
        order_K = by_high_K[self.low_K[by_high_K].argsort(stable=True)]
        low_K, high_K = self.low_K[order_K], self.high_K[order_K]
        begins_K = _changes(low_K) | _changes(high_K)
        different = _Intervals(low_K, high_K, self.counts_CK[:, order_K])._joined(begins_K)
        if len(different.low_K) <= number:
            return different
        sizes_K = different.counts_CK[:2].sum(dim=0)
        share = -(-sizes_K.sum().item() // number) if not sizes_K.is_floating_point() else sizes_K.sum().item() / number
        if not share:  # all weights are 0
            share = 1.0
        large_K = sizes_K >= share
        begins_K = _changes((sizes_K.cumsum(0) - sizes_K) // share) | large_K
        begins_K[1:] |= large_K[:-1]
        return different._joined(begins_K)

    def _joined(self, begins_K: Tensor) -> "_Intervals":
        """Merges neighbours; `begins_K` marks the first of each group. The lower ends must ascend."""
        groups_K = begins_K.cumsum(0) - 1
        low_G = self.low_K[begins_K]
        counts_CG = self.counts_CK.new_zeros(len(self.counts_CK), len(low_G))
        counts_CG.index_add_(1, groups_K, self.counts_CK)
        return _Intervals(low_G, low_G.scatter_reduce(0, groups_K, self.high_K, "amax"), counts_CG)


def _changes(values_K: Tensor) -> Tensor:
    """Marks the values that differ from the previous one; the first always does."""
    changes_K = torch.ones_like(values_K, dtype=torch.bool)
    changes_K[1:] = values_K[1:] != values_K[:-1]
    return changes_K


class StreamingAuc:
    """Accumulates scores and labels; `compute` combines the ranks.

    Args:
        world_size: number of ranks that accumulate.
        exact_scores: number of scores over all ranks up to which the AUC is exact.
        intervals: number that a rank keeps beyond that.
        weighted: whether scores have weights.
    """

    def __init__(
        self,
        device: torch.device,
        world_size: int = 1,
        *,
        exact_scores: int = EXACT_SCORES,
        intervals: int = INTERVALS,
        weighted: bool = False,
    ) -> None:
        self._weights: list[Tensor] | None = [] if weighted else None
        self._device, self._room, self._number = device, max(exact_scores // world_size, 1), intervals
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._kept = 0
        self._intervals: _Intervals | None = None

    def update(self, scores_B: Tensor, labels_B: Tensor, weights_B: Tensor | None = None) -> None:
        """Adds float scores, which are stored as float32, labels of 0 and 1, and weights if scores have them."""
        if self._weights is not None:
            assert weights_B is not None
            self._weights.append(weights_B.float())
        self._scores.append(scores_B.detach().float())
        self._labels.append(labels_B > 0.5)
        self._kept += len(scores_B)
        if self._kept > self._room:
            self._intervals = self._all_intervals().merged(self._number)
            self._scores, self._labels, self._kept = [], [], 0
            self._weights = None if self._weights is None else []

    def compute(self, group: dist.ProcessGroup | None = None) -> Auc:
        """The AUC over all ranks of the group; the same on each. Every rank must call it."""
        if group is not None and group.size() == 1:
            group = None
        inexact = torch.tensor(int(self._intervals is not None), device=self._device)
        if group is not None:
            dist.all_reduce(inexact, dist.ReduceOp.MAX, group=group)
        if inexact:
            intervals = self._all_intervals()
            negatives, positives = (_Class.of_intervals(intervals, label) for label in (0, 1))
        else:
            scores_N, labels_N, weights_N = self._all_scores()
            negatives, positives = (
                _Class.of_scores(scores_N[which_N], None if weights_N is None else weights_N[which_N])
                for which_N in (~labels_N, labels_N)
            )
        return _auc(negatives, positives, group)

    def _all_scores(self) -> tuple[Tensor, Tensor, Tensor | None]:
        # torch.cat needs at least one tensor.
        nothing = torch.empty(0, device=self._device)
        weights_N = None if self._weights is None else torch.cat([nothing, *self._weights])
        return torch.cat([nothing, *self._scores]), torch.cat([nothing.bool(), *self._labels]), weights_N

    def _all_intervals(self) -> _Intervals:
        newest = _Intervals.of_scores(*self._all_scores())
        return newest if self._intervals is None else self._intervals + newest


@dataclass(frozen=True)
class _Class:
    """The scores of one class: ascending lower and upper ends, which are the same tensor if scores are exact.

    Attributes:
        low_weights, high_weights: int64, number of scores at each end, or float64, their weight; None if each is one.
        low_squares, high_squares: with weights, the sums of their squares.
    """

    low: Tensor
    high: Tensor
    low_weights: Tensor | None = None
    high_weights: Tensor | None = None
    low_squares: Tensor | None = None
    high_squares: Tensor | None = None

    @classmethod
    def of_scores(cls, scores_N: Tensor, weights_N: Tensor | None) -> "_Class":
        if weights_N is not None:
            some_N = weights_N > 0
            ascending, order = scores_N[some_N].sort()
            weights = weights_N[some_N][order].double()
            return cls(ascending, ascending, weights, weights, weights * weights, weights * weights)
        # NumPy's sort is several times as fast as torch's, which also makes indices of 8 bytes per score.
        on_host = scores_N.device.type == "cpu"
        ascending = torch.from_numpy(np.sort(scores_N.numpy())) if on_host else scores_N.sort().values
        return cls(ascending, ascending)

    @classmethod
    def of_intervals(cls, intervals: _Intervals, label: int) -> "_Class":
        weights_K = intervals.counts_CK[label]
        some_K = weights_K > 0
        (low, by_low), (high, by_high) = (ends[some_K].sort() for ends in (intervals.low_K, intervals.high_K))
        weights = weights_K[some_K]
        if len(intervals.counts_CK) == 2:
            return cls(low, high, weights[by_low], weights[by_high])
        squares = intervals.counts_CK[2 + label][some_K]
        return cls(low, high, weights[by_low], weights[by_high], squares[by_low], squares[by_high])

    @property
    def size(self) -> float:
        return len(self.low) if self.low_weights is None else self.low_weights.sum().item()

    @property
    def square(self) -> float:
        """The sum of the squares of the weights; the size without weights."""
        return self.size if self.low_squares is None else self.low_squares.sum().item()

    def of_each_rank(self, group: dist.ProcessGroup | None) -> Iterator["_Class"]:
        """Yields the class of every rank of the group; only one at a time is in memory."""
        if group is None:
            yield self
            return
        mine = torch.tensor(len(self.low), device=self.low.device)
        lengths = [torch.empty_like(mine) for _ in range(group.size())]
        dist.all_gather(lengths, mine, group=group)
        ours = [self.low] if self.low_weights is None else [self.low, self.high, self.low_weights, self.high_weights]
        for rank, length in enumerate(lengths):
            theirs = []
            for values in ours:
                assert values is not None  # both weights or neither
                box = values if rank == group.rank() else values.new_empty(int(length))
                dist.broadcast(box, group=group, group_src=rank)
                theirs.append(box)
            yield _Class(*theirs) if len(theirs) > 1 else _Class(theirs[0], theirs[0])


def _auc(negatives: _Class, positives: _Class, group: dist.ProcessGroup | None) -> Auc:
    """Computes the AUC from the scores of both classes.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), for the variance.
    """
    device = negatives.low.device
    weighted = negatives.low_squares is not None
    sizes = torch.tensor(
        [negatives.size, positives.size, negatives.square, positives.square],
        dtype=torch.float64 if weighted else torch.int64,
        device=device,
    )
    if group is not None:
        dist.all_reduce(sizes, group=group)
    num_negatives, num_positives, square_negatives, square_positives = sizes.tolist()
    pairs = num_negatives * num_positives
    # For each positive the negatives below it, for each negative the positives above it: lower and upper bounds.
    below = _Placements(positives)
    for others in negatives.of_each_rank(group):
        below.add(others)
    above = _Placements(negatives, all_others=num_positives)
    for others in positives.of_each_rank(group):
        above.add(others)
    if not pairs:
        return Auc(None, None)
    exact = pairs < 1 << 61 and not weighted  # the sums fit int64
    sums = torch.stack([below.least_sum(exact), below.most_sum(exact)])
    if group is not None:
        dist.all_reduce(sums, group=group)
    least, most = sums.tolist()
    value, bound = (least + most) / (4 * pairs), (most - least) / (4 * pairs)
    spreads = torch.stack([below.spread(value, num_negatives), above.spread(value, num_positives)])
    if group is not None:
        dist.all_reduce(spreads, group=group)
    of_positives, of_negatives = spreads.tolist()
    variance = 0.0
    for spread, number, square in (
        (of_positives, num_positives, square_positives),
        (of_negatives, num_negatives, square_negatives),
    ):
        if not weighted:
            variance += spread / (number - 1) / number if number > 1 else 0.0
        elif (effective := number * number / square) > 1:  # a number of examples of equal weight
            variance += spread / (number * number) * effective / (effective - 1)
    return Auc(value, variance**0.5, bound)


class _Placements:
    """Lower and upper bounds of the doubled number of scores of the other class that each score of one class beats.

    Args:
        all_others: total number of others, if scores beat those above them; None if they beat those below them.
    """

    def __init__(self, own: _Class, *, all_others: float | None = None) -> None:
        self._own, self._upwards = own, all_others is not None
        start, kind = 2 * (all_others or 0), torch.int64 if own.low_squares is None else torch.float64
        self._by_low = torch.full(own.low.shape, start, dtype=kind, device=own.low.device)
        self._by_high = self._by_low if own.low is own.high else self._by_low.clone()

    def add(self, others: _Class) -> None:
        """Adds the others of one rank."""
        sign = -1 if self._upwards else 1
        self._by_low += sign * _below(self._own.low, others.high, others.high_weights)
        if self._by_high is not self._by_low:
            self._by_high += sign * _below(self._own.high, others.low, others.low_weights)

    def least_sum(self, exact: bool) -> Tensor:
        return _weighted_sum(self._by_low, self._own.low_weights, exact)

    def most_sum(self, exact: bool) -> Tensor:
        return _weighted_sum(self._by_high, self._own.high_weights, exact)

    def spread(self, mean: float, others: float) -> Tensor:
        """Sum of squared deviations of the placements, as fractions of the others, from their mean.

        With weights, each times the square of its weight.
        """

        def squares(counts: Tensor, weights: Tensor | None) -> Tensor:
            distances = counts.double().div_(2 * others).sub_(mean).square_()
            return (distances if weights is None else distances * weights).sum()

        own, weighted = self._own, self._own.low_squares is not None
        of_least = squares(self._by_low, own.low_squares if weighted else own.low_weights)
        if self._by_high is self._by_low:
            return of_least
        return (of_least + squares(self._by_high, own.high_squares if weighted else own.high_weights)) / 2


def _weighted_sum(counts: Tensor, weights: Tensor | None, exact: bool) -> Tensor:
    counts = counts if exact else counts.double()
    return counts.sum() if weights is None else (counts * weights).sum()


def _below(scores: Tensor, ascending: Tensor, weights: Tensor | None) -> Tensor:
    """Twice the number of `ascending` below each score, plus the number equal to it. The scores must ascend, too."""
    if len(ascending) >= len(scores):
        first, last = _places(scores, ascending)
        if weights is not None:
            before = torch.nn.functional.pad(weights.cumsum(0), (1, 0))
            first, last = before[first], before[last]
        return first + last
    # Searching the shorter in the longer is faster: counts rise by one at each position, before and after equal values.
    ones = torch.ones_like(ascending, dtype=torch.int64) if weights is None else weights
    rises = ones.new_zeros(len(scores) + 1)
    for places in _places(ascending, scores):
        rises.index_add_(0, places, ones)
    return rises[:-1].cumsum(0)


def _places(few: Tensor, many: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of each of `few` in `many`, before and after equal values."""
    first = torch.searchsorted(many, few)
    last, tied = first.clone(), many[first.clamp(max=len(many) - 1)] == few
    last[tied] = torch.searchsorted(many, few[tied], right=True)
    return first, last
