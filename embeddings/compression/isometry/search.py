"""Searches for near-isometric linear maps of embedding rows, which change no distance between two rows much.

PCA keeps distances on average, but single ones may collapse; here the worst one counts. That suits nearest neighbours.
For scoring, PCA is better: a model's loss follows the average error.

Column generation: the solver works on a few thousand pairs, its result is measured on all pairs, and the worst pairs
are added. So the bound holds for all pairs although the solver sees few.

The objectives are those of Luo, Shapiro, Shi and Yang, arXiv:1601.00062 (NILE-Pro and FroMax); the solvers are our own.
Dimensions: K rows, D columns, R of the map's image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.isometry.secants import Neighbours, Progress, Secants
from dlrmctl.embeddings.compression.isometry.solvers import fromax_steps, nile_pro_steps

FROMAX_ROUNDS = 32  # at most, for each rank that is tried
# The share of the nearest rows kept by PCA that may be lost for less distortion.
RECALL_LOSS = 0.01
ITERATIONS = 120
# Isometric within the precision of float32.
EXACT = 1e-6
_FIRST_PAIRS = 1000  # random pairs, beside the worst of the start
_NEW_PAIRS = 750  # the most stretched pairs, and as many of the most shrunk
_MOST_PAIRS = 5000
# A round that lowers the distortion by a smaller share makes no progress.
_PROGRESS = 0.005
_PATIENCE = 2
# FroMax approaches its bound from outside ever more slowly; with a target inside it arrives.
_INSIDE = 0.99
_SHRINK, _LEAST_SHRINK = 0.85, 0.98  # of the bound: the first factor, and the one at which the search ends
# Weights of staying near the principal components, from almost fixed to free.
PULLS = (1.0, 0.4, 0.2, 0.1, 0.05, 0.02, 0.0)
_ROUNDS_PER_PULL, _ROUNDS_FREE = 4, 12
# For `nile_pro_steps`. Maps that distort much need .01 to .1; those that distort little are found sooner with .001.
_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 0.01, 0.001, 0.1


@dataclass(frozen=True)
class NearIsometry:
    """A linear map x -> P x with a bound on its distortion of distances.

    Attributes:
        objective: "nile-pro" or "fromax".
        projection: P, float32 [R, D].
        matrix: P^T P, float64 [D, D]: positive semidefinite, of rank at most R.
        delta: (1 - delta) |x - y|^2 <= |P x - P y|^2 <= (1 + delta) |x - y|^2 for all pairs of the given rows, as
            measured with this P.
        num_rows: K.
        num_pairs, num_copies: pairs in the bound, and pairs of equal rows.
        rounds: rounds of column generation.
    """

    objective: str
    projection: Tensor
    matrix: Tensor
    delta: float
    num_rows: int
    num_pairs: int
    num_copies: int
    rounds: int

    @property
    def rank(self) -> int:
        """The rank of `matrix`, to the precision of float32."""
        sizes = torch.linalg.svdvals(self.projection.double())
        return int((sizes > 1e-6 * sizes[0]).sum())


def silent(phase: str, done: int, total: int) -> None:
    pass


def nile_pro(
    rows_KD: Tensor,
    rank: int,
    *,
    recall_loss: float | None = RECALL_LOSS,
    iterations: int = ITERATIONS,
    seed: int = 0,
    progress: Progress = silent,
) -> NearIsometry:
    """Searches for the map into `rank` dimensions with the least worst distortion; never worse than PCA.

    The search begins at PCA and moves away as far as `recall_loss` allows: with the least distortion, rows without
    clusters keep .02 to .04 fewer neighbours than with PCA.

    Args:
        rows_KD: floating; time grows with K^2, a thousand rows take seconds and a few thousand a minute.
        rank: R, from 1 to D.
        recall_loss: how much smaller than PCA's the share of kept nearest rows may be; None: without limit.
        iterations: iterations of the solver per round.
        seed: seed of the first pairs.

    Raises:
        ValueError: if the rank does not fit, there are no two distinct rows, or values are not finite.
    """
    secants = Secants(rows_KD)
    accept = _keeps_neighbours(secants, _checked_rank(rank, rows_KD), recall_loss)
    search = SampleSearch(secants, rank, accept=accept, seed=seed)
    search_nile_pro(search, iterations, progress)
    return _result("nile-pro", search, rank)


def fromax(
    rows_KD: Tensor,
    *,
    rank: int | None = None,
    delta: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> NearIsometry:
    """Searches for the smallest rank with a map within `delta`, or the smallest delta for `rank`.

    For one rank and one bound, the solver minimizes the distance of a matrix that keeps the bound to one of that rank;
    at distance 0 a map is found. The smallest rank is found by bisection, the smallest bound by shrinking it; the
    latter keeps neighbours as `nile_pro` does.

    Args:
        rows_KD: see `nile_pro`.
        rank: R, from 1 to D.
        delta: above 0 and below 1.

    Raises:
        ValueError: as `nile_pro`, and unless exactly one of `rank` and `delta` is given.
    """
    if (rank is None) == (delta is None):
        raise ValueError(f"exactly one of {rank=} and {delta=} must be given")
    secants = Secants(rows_KD)
    if rank is not None:
        accept = _keeps_neighbours(secants, _checked_rank(rank, rows_KD), RECALL_LOSS)
        search = SampleSearch(secants, rank, accept=accept, seed=seed)
        shrink_fromax(search, progress)
        return _result("fromax", search, rank)
    assert delta is not None
    if not 0 < delta < 1:
        raise ValueError(f"{delta=} must be above 0 and below 1")
    # Full rank keeps every bound, so the answer lies in (too_few, found.rank].
    too_few, found_rank, found = 0, secants.dim, SampleSearch(secants, secants.dim, seed=seed)
    total = (found_rank - 1).bit_length()
    while found_rank - too_few > 1:
        tried = (too_few + found_rank) // 2
        search = SampleSearch(secants, tried, seed=seed)
        if search_fromax(search, delta, FROMAX_ROUNDS):
            found_rank, found = tried, search
        else:
            too_few = tried
        progress("fromax", total - (found_rank - too_few - 1).bit_length(), total)
    return _result("fromax", found, found_rank)


def _checked_rank(rank: int, rows_KD: Tensor) -> int:
    if not 1 <= rank <= rows_KD.shape[1]:
        raise ValueError(f"{rank=} must be from 1 to {rows_KD.shape[1]}, the columns of the rows")
    return rank


def _keeps_neighbours(secants: Secants, rank: int, recall_loss: float | None) -> Callable[[Tensor], bool]:
    """Returns a check that a map keeps nearly as many neighbours as the principal components do."""
    if recall_loss is None:
        return anything
    if not 0 <= recall_loss < 1:
        raise ValueError(f"{recall_loss=} must be at least 0 and below 1")
    neighbours = Neighbours(secants.coordinates)
    least = neighbours.recall(torch.eye(secants.dim, dtype=torch.float64)[:rank]) - recall_loss
    return lambda factor: neighbours.recall(factor) >= least


def anything(factor_RN: Tensor) -> bool:
    """Accepts every map."""
    return True


class SampleSearch:
    """The best map so far, and the pairs that improve it.

    Args:
        secants: all pairs.
        rank: R, from 1 to N; the search starts from this many principal components.
        accept: whether a map may become the best one; called only for those with less distortion.
        seed: seed of the first pairs.

    Attributes:
        factor, delta: the best accepted map, [R, N], and its distortion over all pairs.
        latest, latest_delta: the last map, and its distortion.
        rounds: rounds done.
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
        """Improves the latest map on the selected pairs, measures it on all, and adds the worst.

        Continues from the latest map, not the best: added pairs correct a map that fits only its own pairs.
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


def _result(objective: str, search: SampleSearch, rank: int) -> NearIsometry:
    secants = search.secants
    scale = secants.extremes(search.factor).scale
    found = secants.restore(search.factor * scale).float()
    projection = torch.zeros(rank, found.shape[1])
    projection[: len(found)] = found  # rows that span fewer dimensions than the rank leave the others at 0
    reached = secants.extremes(secants.reduce(projection))  # of the float32 numbers that are returned
    exact = projection.double()
    return NearIsometry(
        objective=objective,
        projection=projection,
        matrix=exact.T @ exact,
        delta=max(reached.high - 1, 1 - reached.low),
        num_rows=secants.num_rows,
        num_pairs=secants.num_pairs,
        num_copies=secants.num_copies,
        rounds=search.rounds,
    )


def search_nile_pro(search: SampleSearch, iterations: int, progress: Progress) -> None:
    """Lets the map move ever more freely from the principal components, until it is not accepted."""
    anchor = search.start.T @ search.start
    steps = partial(nile_pro_steps, iterations=iterations, anchor_NN=anchor)
    damping = _DAMPING
    for done, pull in enumerate(PULLS):
        progress("nile-pro", done, len(PULLS))
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
    progress("nile-pro", len(PULLS), len(PULLS))


def search_fromax(search: SampleSearch, delta: float, rounds: int) -> bool:
    """Searches for a map within `delta`; returns whether one is found. Stops when it comes no nearer."""
    idle, nearest = 0, torch.inf
    for _ in range(rounds):
        if search.latest_delta <= delta or idle == _PATIENCE:
            break
        search.round(partial(fromax_steps, delta=_INSIDE * delta, iterations=ITERATIONS))
        idle = idle + 1 if search.latest_delta > (1 - _PROGRESS) * nearest else 0
        nearest = min(nearest, search.latest_delta)
    return search.latest_delta <= delta


def shrink_fromax(search: SampleSearch, progress: Progress) -> None:
    """Lowers the bound by `_SHRINK` while a map keeps it and is accepted, then by smaller steps."""
    shrink = _SHRINK
    while search.delta > EXACT and search.rounds < FROMAX_ROUNDS and shrink < _LEAST_SHRINK:
        progress("fromax", search.rounds, FROMAX_ROUNDS)
        found = search_fromax(search, shrink * search.delta, FROMAX_ROUNDS - search.rounds)
        if not found or search.delta > search.latest_delta:  # out of reach, or within the bound but not accepted
            shrink = shrink**0.5
            search.latest, search.latest_delta = search.factor, search.delta
    progress("fromax", FROMAX_ROUNDS, FROMAX_ROUNDS)
