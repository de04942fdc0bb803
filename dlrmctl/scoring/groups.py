"""Group AUC (gAUC): the AUC inside each group, averaged over the groups by their weight.

Only groups with both labels have an AUC; the others do not count. A group weighs as many examples as it has, or the
sum of their weights. The scores of a split are kept, 13 bytes for each example and 17 with weights, up to `MOST_SCORES`
over all ranks. Beyond that, the groups are sampled by their hashes.
N examples, G groups.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

MOST_SCORES = 1 << 25  # over all ranks
_NONE = -1  # examples without a group
_MOST_HALVINGS = 32


@dataclass(frozen=True)
class GroupAuc:
    """The mean AUC of groups and its standard error, from the spread of the groups; None without such a group.

    `groups` is the number of groups with both labels.
    """

    value: float | None
    se: float | None
    groups: int


@dataclass(frozen=True)
class OfGroups:
    """The groups with both labels: their identities ascending, their AUC and their weight (float64 [G])."""

    groups_G: np.ndarray
    auc_G: np.ndarray
    weight_G: np.ndarray


def auc_of_groups(
    groups_N: np.ndarray, scores_N: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray | None = None
) -> OfGroups:
    """Returns the AUC of each group with both labels; ties count half.

    Args:
        groups_N: int64, -1 for examples without a group, which are omitted.
        scores_N: float.
        labels_N: bool.
        weights_N: float, at least 0; None if all are 1.
    """
    there_N = groups_N != _NONE
    if not there_N.all():
        groups_N, scores_N, labels_N = groups_N[there_N], scores_N[there_N], labels_N[there_N]
        weights_N = None if weights_N is None else weights_N[there_N]
    order = np.lexsort((scores_N, groups_N))
    groups_N, scores_N, labels_N = groups_N[order], scores_N[order], labels_N[order].astype(bool)
    weights = np.ones(len(order)) if weights_N is None else weights_N[order].astype(np.float64)
    new_group = np.ones(len(order), dtype=bool)
    new_group[1:] = groups_N[1:] != groups_N[:-1]
    new_score = new_group.copy()
    new_score[1:] |= scores_N[1:] != scores_N[:-1]
    starts = np.flatnonzero(new_score)
    if not len(starts):
        return OfGroups(groups_N, np.empty(0), np.empty(0))
    positives, negatives = (
        np.add.reduceat(np.where(labels_N == label, weights, 0.0), starts) for label in (True, False)
    )
    first = np.flatnonzero(new_group[starts])  # of the distinct scores of each group
    sizes = np.diff(first, append=len(starts))
    before = np.cumsum(negatives) - negatives
    below = before - np.repeat(before[first], sizes) + negatives / 2
    won, of_positives, of_negatives = (np.add.reduceat(v, first) for v in (positives * below, positives, negatives))
    both = (of_positives > 0) & (of_negatives > 0)
    auc_G = won[both] / (of_positives[both] * of_negatives[both])
    return OfGroups(groups_N[starts[first]][both], auc_G, (of_positives + of_negatives)[both])


class StreamingGroupAuc:
    """Accumulates scores, labels and groups; `compute` combines the ranks.

    Args:
        device: of the collectives.
        world_size: number of ranks that accumulate.
        most_scores: number of scores over all ranks beyond which the groups are sampled.
    """

    def __init__(self, device: torch.device, world_size: int = 1, *, most_scores: int = MOST_SCORES) -> None:
        self._device, self._room = device, max(most_scores // world_size, 1)
        self._kept: list[list[np.ndarray]] = []  # groups, scores, labels, and weights if there are any
        self._size = self._halvings = 0

    def update(self, scores_B: Tensor, labels_B: Tensor, groups_B: Tensor, weights_B: Tensor | None) -> None:
        """Adds examples, which are kept in main memory."""
        columns = [groups_B, scores_B.detach().float(), labels_B > 0.5, *([] if weights_B is None else [weights_B])]
        self._keep([column.cpu().numpy() for column in columns])
        while self._size > self._room and self._halvings < _MOST_HALVINGS:
            self._halve()

    def compute(self, group: dist.ProcessGroup | None = None) -> GroupAuc:
        """The mean over all ranks of the process group; the same on each. Every rank must call it."""
        group = None if group is not None and group.size() == 1 else group
        columns = self._columns() if group is None else self._of_my_groups(group)
        found = auc_of_groups(*columns)
        auc_G, weight_G = found.auc_G, found.weight_G
        squares_G = weight_G * weight_G
        parts = [weight_G @ auc_G, weight_G.sum(), squares_G @ (auc_G * auc_G), squares_G @ auc_G, squares_G.sum()]
        sums = torch.tensor([*parts, len(auc_G)], dtype=torch.float64, device=self._device)
        if group is not None:
            dist.all_reduce(sums, group=group)
        total, weight, squares, products, square_weights, number = sums.tolist()
        if not number:
            return GroupAuc(None, None, 0)
        mean = total / weight
        variance = max(squares - 2 * mean * products + mean * mean * square_weights, 0.0) / (weight * weight)
        return GroupAuc(mean, variance**0.5, int(number))

    def _keep(self, columns: list[np.ndarray]) -> None:
        chosen = columns[0] != _NONE
        if self._halvings:  # groups are hashes: their highest bits decide
            chosen &= columns[0].view(np.uint64) >> np.uint64(64 - self._halvings) == 0
        columns = columns if chosen.all() else [column[chosen] for column in columns]
        self._kept.append(columns)
        self._size += len(columns[0])

    def _halve(self) -> None:
        """Omits about half of the groups."""
        self._halvings += 1
        everything, self._kept, self._size = self._kept, [], 0
        for columns in everything:
            self._keep(columns)

    def _columns(self) -> list[np.ndarray]:
        if not self._kept:
            return [np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, bool)]
        return [np.concatenate(parts) for parts in zip(*self._kept, strict=True)]

    def _of_my_groups(self, group: dist.ProcessGroup) -> list[np.ndarray]:
        """Returns the examples of all ranks whose groups are this rank's."""
        told = torch.tensor([self._halvings, len(self._kept[0]) if self._kept else 0], device=self._device)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=group)
        halvings, number = told.tolist()
        while self._halvings < halvings:
            self._halve()
        own = self._columns()
        if number > len(own):  # this rank had no example
            own.append(np.empty(0, np.float32))
        mine: list[list[np.ndarray]] = []
        for rank in range(group.size()):
            length = torch.tensor(len(own[0]), device=self._device)
            dist.broadcast(length, group=group, group_src=rank)
            theirs = []
            for column in own:
                # A bool is sent as a byte.
                content = torch.from_numpy(column.view(np.uint8) if column.dtype == bool else column).to(self._device)
                box = content if rank == group.rank() else content.new_empty(int(length))
                dist.broadcast(box, group=group, group_src=rank)
                theirs.append(box.cpu().numpy().astype(column.dtype, copy=False))
            chosen = theirs[0].view(np.uint64) % np.uint64(group.size()) == group.rank()
            mine.append([column[chosen] for column in theirs])
        return [np.concatenate(parts) for parts in zip(*mine, strict=True)]
