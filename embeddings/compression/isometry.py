"""Near-isometric linear maps of embedding rows: few columns, and no distance between two rows changed by much.

PCA keeps the distances right on average and lets single ones collapse; here the worst one counts. That suits nearest
neighbours. It does not suit scoring: a model's loss follows the average error, where PCA is the better choice.

The objectives are those of Luo, Shapiro, Shi and Yang, arXiv:1601.00062 (NILE-Pro and FroMax); the solvers are our own.
Dimensions: K rows, D columns, R of the map's image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from embeddings.compression.isometry_neighbours import Neighbours
from embeddings.compression.isometry_search import (
    ITERATIONS,
    Search,
    anything,
    search_fromax,
    search_nile_pro,
    shrink_fromax,
    silent,
)
from embeddings.compression.isometry_secants import Secants
from embeddings.compression.source import Progress

FROMAX_ROUNDS = 32
# Of the nearest rows that PCA keeps nearest, the share that may be given for less distortion.
RECALL_LOSS = 0.01


@dataclass(frozen=True)
class NearIsometry:
    """A linear map x -> P x with a bound on what it does to distances.

    Attributes:
        objective: "nile-pro" or "fromax".
        projection: P, float32 [R, D].
        matrix: P^T P, float64 [D, D]: positive semidefinite, of rank at most R.
        delta: (1 - delta) |x - y|^2 <= |P x - P y|^2 <= (1 + delta) |x - y|^2 for all pairs of the rows given,
            every one of which was measured with P as it stands here.
        num_rows: K.
        num_pairs, num_copies: pairs that the bound is over, and pairs of equal rows.
        rounds: of column generation.
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
        """Of `matrix`, to float32's precision."""
        sizes = torch.linalg.svdvals(self.projection.double())
        return int((sizes > 1e-6 * sizes[0]).sum())


def nile_pro(
    rows_KD: Tensor,
    rank: int,
    *,
    recall_loss: float | None = RECALL_LOSS,
    iterations: int = ITERATIONS,
    seed: int = 0,
    progress: Progress = silent,
) -> NearIsometry:
    """The map into `rank` dimensions with the least worst distortion that is found; never worse than PCA's.

    The search begins at PCA and moves away as far as `recall_loss` allows: at the very least distortion, rows without
    clusters have lost .02 to .04 of their neighbours to PCA.

    Args:
        rows_KD: floating; time grows with K^2, a thousand rows take seconds and a few thousand a minute.
        rank: R, from 1 to D.
        recall_loss: how much less of the 10 nearest rows than under PCA may stay nearest; None: as much as it takes.
        iterations: of the solver, per round.
        seed: of the first pairs that are looked at.

    Raises:
        ValueError: if the rank does not fit, fewer than two rows differ, or values are not finite.
    """
    secants = Secants(rows_KD)
    accept = _keeps_neighbours(secants, _checked_rank(rank, rows_KD), recall_loss)
    search = Search(secants, rank, accept=accept, seed=seed)
    search_nile_pro(search, iterations, progress)
    return _result("nile-pro", search, rank)


def fromax(
    rows_KD: Tensor,
    *,
    rank: int | None = None,
    delta: float | None = None,
    recall_loss: float | None = RECALL_LOSS,
    rounds: int = FROMAX_ROUNDS,
    iterations: int = ITERATIONS,
    seed: int = 0,
    progress: Progress = silent,
) -> NearIsometry:
    """The smallest rank for which a map within `delta` is found, or the smallest such delta for `rank`.

    For one rank and one bound the problem is to bring a matrix that keeps the bound and one of that rank together; a
    map is found when their distance is 0. The smallest rank is sought by halving, the smallest bound by shrinking it.

    Args:
        rows_KD: see `nile_pro`.
        rank: R, from 1 to D.
        delta: above 0 and below 1.
        recall_loss: see `nile_pro`; with `delta`, the bound alone counts.
        rounds: at most; with `delta`, for each rank tried.

    Raises:
        ValueError: as `nile_pro`, and unless exactly one of `rank` and `delta` is given.
    """
    if (rank is None) == (delta is None):
        raise ValueError(f"exactly one of {rank=} and {delta=} must be given")
    secants = Secants(rows_KD)
    if rank is not None:
        accept = _keeps_neighbours(secants, _checked_rank(rank, rows_KD), recall_loss)
        search = Search(secants, rank, accept=accept, seed=seed)
        shrink_fromax(search, rounds, iterations, progress)
        return _result("fromax", search, rank)
    assert delta is not None
    if not 0 < delta < 1:
        raise ValueError(f"{delta=} must be above 0 and below 1")
    # Full rank keeps every bound, so the answer lies in (too_few, found.rank].
    too_few, found_rank, found = 0, secants.dim, Search(secants, secants.dim, seed=seed)
    total = (found_rank - 1).bit_length()
    while found_rank - too_few > 1:
        tried = (too_few + found_rank) // 2
        search = Search(secants, tried, seed=seed)
        if search_fromax(search, delta, rounds, iterations):
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
    """Whether a map keeps nearly as many neighbours as the principal components do."""
    if recall_loss is None:
        return anything
    if not 0 <= recall_loss < 1:
        raise ValueError(f"{recall_loss=} must be at least 0 and below 1")
    neighbours = Neighbours(secants.coordinates)
    least = neighbours.recall(torch.eye(secants.dim, dtype=torch.float64)[:rank]) - recall_loss
    return lambda factor: neighbours.recall(factor) >= least


def _result(objective: str, search: Search, rank: int) -> NearIsometry:
    secants = search.secants
    scale = secants.extremes(search.factor).scale
    found = secants.restore(search.factor * scale).float()
    projection = torch.zeros(rank, found.shape[1])
    projection[: len(found)] = found  # rows that span fewer dimensions than the rank leave the others at 0
    reached = secants.extremes(secants.reduce(projection))  # of the float32 numbers that leave this function
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
