"""The search for a low-rank map that keeps all distances of a set of rows: few pairs are solved for, all are checked.

Column generation: the solver works on a few thousand pairs, its result is measured on all of them, and the worst ones
join. So a bound holds for every pair although the solver saw few.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from embeddings.compression.isometry_admm import fromax_steps, nile_pro_steps
from embeddings.compression.isometry_secants import Secants
from embeddings.compression.source import Progress

ITERATIONS = 120
# Isometric for every purpose: float32 coordinates do not say more.
EXACT = 1e-6
_FIRST_PAIRS = 1000  # at random, beside the worst of the start
_NEW_PAIRS = 750  # most stretched, and as many most shrunk
_MOST_PAIRS = 5000
# A round that lowers the distortion by a smaller share counts as none.
_PROGRESS = 0.005
_PATIENCE = 2
# FroMax comes to its bound from outside, ever slower; aiming inside it arrives.
_INSIDE = 0.99
# Weights of staying near the principal components, from hardly moving to free.
PULLS = (1.0, 0.4, 0.2, 0.1, 0.05, 0.02, 0.0)
_ROUNDS_PER_PULL, _ROUNDS_FREE = 4, 12
# Of `nile_pro_steps`. Maps that lose much are found with .01 to .1 only; those that lose little, sooner with .001.
_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 0.01, 0.001, 0.1


def silent(phase: str, done: int, total: int) -> None:
    pass


def anything(factor_RN: Tensor) -> bool:
    """Every map will do."""
    return True


class Search:
    """The best map so far, and the pairs that it is improved on.

    Args:
        secants: the pairs.
        rank: R, from 1 to N; the search starts from so many principal components.
        accept: whether a map may become the best one; asked only about those with less distortion.
        seed: of the first pairs.

    Attributes:
        factor, delta: the best map that was accepted, [R, N], and its distortion over all pairs.
        latest, latest_delta: the map made last, and its distortion.
        rounds: done.
    """

    def __init__(
        self, secants: Secants, rank: int, *, accept: Callable[[Tensor], bool] = anything, seed: int = 0
    ) -> None:
        self.secants, self.accept, self.rounds = secants, accept, 0
        found, worst = secants.examine(torch.eye(secants.dim, dtype=torch.float64)[:rank], _NEW_PAIRS)
        self.start = torch.eye(secants.dim, dtype=torch.float64)[:rank] * found.scale
        self.factor = self.latest = self.start
        self.delta = self.latest_delta = found.delta
        # A map of rank r has about r (2 N - r) / 2 degrees of freedom, and as many pairs can hold it in place.
        self._most = max(_MOST_PAIRS, rank * (2 * secants.dim - rank))
        generator = torch.Generator().manual_seed(seed)
        self._pairs = torch.cat([secants.random_pairs(_FIRST_PAIRS, generator), worst]).unique()

    def round(self, steps: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Improves the latest map on the pairs, measures it on all, and takes in the worst.

        It goes on from the latest map, not the best: one that fits only its pairs is mended by the pairs that join.
        """
        self.latest = steps(self.secants.directions(self._pairs), self.latest)
        found, worst = self.secants.examine(self.latest, _NEW_PAIRS)
        self.latest_delta = found.delta
        self.rounds += 1
        if found.delta < self.delta and self.accept(self.latest):
            self.factor, self.delta = self.latest, found.delta
        pairs = torch.cat([self._pairs, worst]).unique()
        if len(pairs) > self._most:
            ratios = (self.secants.directions(pairs) @ self.latest.T).square().sum(1) * found.scale**2
            pairs = pairs[(ratios - 1).abs().topk(self._most).indices.sort().values]
        self._pairs = pairs


def search_nile_pro(search: Search, iterations: int, progress: Progress, pulls: tuple[float, ...] = PULLS) -> None:
    """Lets the map move ever more freely from the principal components, until one is not accepted."""
    anchor = search.start.T @ search.start
    steps = partial(nile_pro_steps, iterations=iterations, anchor_NN=anchor)
    damping = _DAMPING
    for done, pull in enumerate(pulls):
        progress("nile-pro", done, len(pulls))
        idle, damping = 0, damping if pull > 0 else _LEAST_DAMPING
        for _ in range(_ROUNDS_PER_PULL if pull > 0 else _ROUNDS_FREE):
            if search.delta <= EXACT or idle == _PATIENCE:
                break
            before = search.latest_delta
            search.round(partial(steps, pull=pull, damping=damping))
            if search.latest_delta < (1 - _PROGRESS) * before:
                damping = max(damping / 2, _LEAST_DAMPING)
            else:
                damping, idle = min(damping * 4, _MOST_DAMPING), idle + 1
        if search.delta <= EXACT or not search.accept(search.latest):
            break
    progress("nile-pro", len(pulls), len(pulls))


def search_fromax(search: Search, delta: float, rounds: int, iterations: int) -> bool:
    """Looks for a map within `delta`; returns whether there is one. Gives up when it comes no nearer."""
    idle, nearest = 0, torch.inf
    for _ in range(rounds):
        if search.latest_delta <= delta or idle == _PATIENCE:
            break
        search.round(partial(fromax_steps, delta=_INSIDE * delta, iterations=iterations))
        idle = idle + 1 if search.latest_delta > (1 - _PROGRESS) * nearest else 0
        nearest = min(nearest, search.latest_delta)
    return search.latest_delta <= delta


def shrink_fromax(search: Search, rounds: int, iterations: int, progress: Progress, *, shrink: float = 0.85) -> None:
    """Lowers the bound by `shrink` as long as a map keeps it and is accepted, then by smaller steps."""
    while search.delta > EXACT and search.rounds < rounds and shrink < 0.98:
        progress("fromax", search.rounds, rounds)
        found = search_fromax(search, shrink * search.delta, rounds - search.rounds, iterations)
        if not found or search.delta > search.latest_delta:  # out of reach, or within the bound but not accepted
            shrink = shrink**0.5
            search.latest, search.latest_delta = search.factor, search.delta
    progress("fromax", rounds, rounds)
