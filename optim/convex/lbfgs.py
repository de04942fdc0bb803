"""L-BFGS whose samples grow as the gradient's noise comes to matter, up to all rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrmctl.optim.convex.newton import ROUNDING, SUFFICIENT_DECREASE
from dlrmctl.optim.convex.objective import Evaluation, FiniteSum, Rescaled, RowSample
from dlrmctl.optim.convex.solution import Record, Solution, Watch

CURVATURE = 1e-2  # a pair counts if y's is more than this share of s^T B s; as in the authors' PyTorch-LBFGS
MOST_NOISE = 10  # over signal, as far as step lengths believe the estimate
MOST_GROWTH = 8  # of the sample in one iteration: the test's estimate is itself noisy


def pb_lbfgs(
    objective: FiniteSum,
    start: Tensor,
    *,
    scale: Tensor | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 10_000,
    max_passes: float = math.inf,
    first_sample: int = 512,
    theta: float = 0.9,
    overlap: float = 0.25,
    memory: int = 10,
    watch: Watch | None = None,
) -> Solution:
    """Minimizes by progressive-batching L-BFGS: early steps from few rows, late ones from all.

    Each iteration takes a direction p = -H g from a sample and tests whether the sample was large enough for it: the
    inner products of p with the gradients of rows must not vary more than `theta` allows. If they do, the next sample
    is larger. The first step length tried is 1 / (1 + noise / signal) of the gradient. The pair (s, y) that
    improves H is taken on the rows that two consecutive samples share.

    It departs from the paper in two places. Where the test needs the signal |H g|^2, the product of H g over two
    disjoint parts of the sample estimates it without bias: with the sample's own g the noise counts as signal, and in
    many dimensions the test never fails. And noise and signal are also compared as g^T H g, the decrease that a step
    would bring: where the noise is larger the sample grows, and steps are shorter by this ratio if it is the larger of
    the two. Otherwise steps fit rare features to one sample after the other, and the sum over all rows never falls.
    Where the first sample has more noise than signal, as near an optimum, it grows before the first step.

    Args:
        objective: any number of parameters; `2 * memory + 8` vectors are kept.
        start: where to begin, `[num_parameters]`.
        scale: units to work in, `[num_parameters]`, such as `LogisticRegression.scale()`; None for the given ones.
        tolerance: of the gradient's Euclidean norm, over all rows.
        max_iterations: stop after as many.
        max_passes: stop after as many passes over the data.
        first_sample: rows of the first sample.
        theta: how much noise the test allows, above 0.
        overlap: share of a sample that the next one contains, above 0 and at most 1/2.
        memory: pairs that are kept.
        watch: called after every iteration.

    Source: Bollapragada, Mudigere, Nocedal, Shi, Tang, arXiv:1802.05374.
    """
    if not 0 < overlap <= 0.5:
        raise ValueError(f"{overlap=} must be above 0 and at most 0.5")
    if scale is not None:
        objective, start = Rescaled(objective, scale), start / scale
    record = Record(objective, watch)
    pairs = InverseHessian(memory, objective.num_parameters)
    point, size, begin = start, min(first_sample, objective.num_rows), 0
    carried: Evaluation | None = None  # at `point`, of the first rows of the sample, which the last one had too
    shared, step, accepted = 0, 0.0, True
    while size < objective.num_rows:
        end = begin + size
        tail = RowSample(end - max(1, int(overlap * size)), end)
        parts = [] if carried is None else [carried]
        if begin + shared < tail.start:
            parts.append(objective.evaluate(point, RowSample(begin + shared, tail.start)))
        head = _joined(parts)
        before = objective.evaluate(point, tail)
        here = _joined([head, before])
        if record.add(point, here.value, here.gradient, sample_size=size, step=step, first_accepted=accepted):
            return record.solution(point, "stopped")
        if len(record.history) > max_iterations:
            return record.solution(point, "out of iterations")
        if record.passes >= max_passes:
            return record.solution(point, "out of passes")
        gradients_DK = torch.stack([head.gradient, before.gradient, here.gradient], dim=1)
        moved_DK = pairs.times(gradients_DK)
        direction = -moved_DK[:, 2]
        signal = float(moved_DK[:, 0] @ moved_DK[:, 1])
        noise = _noise_over_signal(gradients_DK, moved_DK, before.weight / here.weight)
        if not pairs.count and noise > 1:  # as at a warm start, from which a step would lead away
            carried, shared, size = here, size, min(MOST_GROWTH * size, objective.num_rows)
            continue
        spread = here.variance / size / max(float(here.gradient.square().sum()), 1e-300)
        first = 1 / (1 + max(spread, min(noise, MOST_NOISE)))
        probe = pairs.times(moved_DK[:, 2:])[:, 0]
        steps = _trials(pairs, first)
        step, accepted, variance = _search(objective, point, here, direction, RowSample(begin, end), probe, steps)
        new_point = point + step * direction
        carried = objective.evaluate(new_point, tail)
        bound = -step * float(here.gradient @ (new_point - point))
        pairs.add(new_point - point, carried.gradient - before.gradient, bound)
        enough = variance / (theta * signal) ** 2 if signal > 0 and step > 0 else 2 * size
        needed = max(enough, noise * size)
        point, begin, shared = new_point, tail.start, tail.size
        size = max(size, min(math.ceil(min(needed, MOST_GROWTH * size)), objective.num_rows))
    limits = _Limits(tolerance, max_iterations, max_passes)
    return _from_all_rows(objective, point, pairs, record, limits, step, accepted)


def full_lbfgs(
    objective: FiniteSum,
    start: Tensor,
    *,
    scale: Tensor | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 10_000,
    max_passes: float = math.inf,
    memory: int = 10,
    watch: Watch | None = None,
) -> Solution:
    """Minimizes by L-BFGS with the gradient over all rows; the arguments are those of `pb_lbfgs`."""
    if scale is not None:
        objective, start = Rescaled(objective, scale), start / scale
    pairs = InverseHessian(memory, objective.num_parameters)
    limits = _Limits(tolerance, max_iterations, max_passes)
    return _from_all_rows(objective, start, pairs, Record(objective, watch), limits, step=0.0, accepted=True)


@dataclass(frozen=True)
class _Limits:
    tolerance: float
    max_iterations: int
    max_passes: float


def _from_all_rows(
    objective: FiniteSum,
    point: Tensor,
    pairs: InverseHessian,
    record: Record,
    limits: _Limits,
    step: float,
    accepted: bool,
) -> Solution:
    """L-BFGS with the gradient over all rows, one pass an iteration where the first step is taken.

    Args:
        step: that led to `point`, for the history.
        accepted: whether it was the first that was tried.
    """
    here = objective.evaluate(point)
    while True:
        objective.check_optimum()
        stop = record.add(
            point, here.value, here.gradient, sample_size=objective.num_rows, step=step, first_accepted=accepted
        )
        if record.history[-1].gradient_norm <= limits.tolerance:
            return record.solution(point, "converged")
        if stop:
            return record.solution(point, "stopped")
        if len(record.history) > limits.max_iterations:
            return record.solution(point, "out of iterations")
        if record.passes >= limits.max_passes:
            return record.solution(point, "out of passes")
        direction = -pairs.times(here.gradient[:, None])[:, 0]
        slope = float(here.gradient @ direction)
        step = 1.0
        if not pairs.count:
            steps = _trials(pairs, 1.0)
            line = objective.along(point, direction, steps, None, probe=direction)
            step = steps[min(range(len(steps)), key=line.values.__getitem__)]
        accepted = True
        while True:
            there = objective.evaluate(point + step * direction)
            if there.value <= here.value + SUFFICIENT_DECREASE * step * slope + ROUNDING * abs(here.value):
                break
            step, accepted = step / 2, False
            if step < 2**-30:
                return record.solution(point, "no further progress")
        moved = step * direction
        pairs.add(moved, there.gradient - here.gradient, -step * float(here.gradient @ moved))
        point, here = point + moved, there


def _noise_over_signal(gradients_DK: Tensor, moved_DK: Tensor, share: float) -> float:
    """Noise over signal of g^T H g, from a sample in two parts.

    Args:
        gradients_DK: over the first part, the second part, and both.
        moved_DK: H times each.
        share: of the second part in the sample.
    """
    apart = float((gradients_DK[:, 0] - gradients_DK[:, 1]) @ (moved_DK[:, 0] - moved_DK[:, 1]))
    noise = apart * share * (1 - share)  # the parts' noises add up in their difference, and average in the sample
    signal = float(gradients_DK[:, 2] @ moved_DK[:, 2]) - noise
    return noise / signal if signal > 0 else math.inf


def _trials(pairs: InverseHessian, first: float) -> list[float]:
    """Steps to try: without pairs the scale of H is not known, and the best of a wide range is taken."""
    return [2.0**power for power in range(10, -11, -1)] if not pairs.count else [first, first / 2]


def _search(
    objective: FiniteSum,
    point: Tensor,
    here: Evaluation,
    direction: Tensor,
    sample: RowSample,
    probe: Tensor,
    steps: Sequence[float],
) -> tuple[float, bool, float]:
    """Step along a direction by Armijo's condition over the sample, whether it is the first, and the variance."""
    slope = float(here.gradient @ direction)
    line = objective.along(point, direction, steps, sample, probe=probe)
    if len(steps) > 2:
        best = min(range(len(steps)), key=line.values.__getitem__)
        return steps[best], True, line.variance
    first, variance = steps[0], line.variance
    for _ in range(15):
        for step, reached in zip(steps, line.values, strict=True):
            if reached <= here.value + SUFFICIENT_DECREASE * step * slope:
                return step, step == first, variance
        steps = [step / 4 for step in steps]
        line = objective.along(point, direction, steps, sample, probe=probe)
    return 0.0, False, variance


def _joined(parts: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of disjoint samples together, at the same point."""
    weight = sum(part.weight for part in parts)
    shares = [part.weight / weight for part in parts]
    gradient = torch.stack([share * part.gradient for share, part in zip(shares, parts, strict=True)]).sum(0)
    within = sum(share * part.variance for share, part in zip(shares, parts, strict=True))
    between = sum(
        share * float((part.gradient - gradient).square().sum()) for share, part in zip(shares, parts, strict=True)
    )
    value = sum(share * part.value for share, part in zip(shares, parts, strict=True))
    return Evaluation(value, gradient, within + between, weight)


class InverseHessian:
    """The inverse Hessian H of L-BFGS from the last pairs of steps s and changes of gradient y.

    It is kept in the compact form of Byrd, Nocedal and Schnabel (1994), whose products with several vectors take two
    reads of the pairs.
    """

    def __init__(self, memory: int, num_parameters: int) -> None:
        self.memory = memory
        self.count = 0
        self.rejected = 0
        self._steps_PD = torch.zeros(memory, num_parameters, dtype=torch.float64)
        self._changes_PD = torch.zeros(memory, num_parameters, dtype=torch.float64)
        self._step_change_PP = torch.zeros(memory, memory, dtype=torch.float64)
        self._change_change_PP = torch.zeros(memory, memory, dtype=torch.float64)
        self._order: list[int] = []  # slots from the oldest pair to the latest
        self._gamma = 1.0  # H before any pair, from the latest pair

    def add(self, step: Tensor, change: Tensor, bound: float) -> bool:
        """Keeps a pair unless its curvature is too small.

        Args:
            bound: s^T B s, where B is the inverse of H; for the step -a H g it is -a g^T s.

        Returns:
            Whether it was kept.
        """
        curvature = float(step @ change)
        if not curvature > CURVATURE * bound or curvature <= 0:
            self.rejected += 1
            return False
        slot = self.count % self.memory
        self._order = [*(old for old in self._order if old != slot), slot]
        self.count += 1
        self._steps_PD[slot], self._changes_PD[slot] = step, change
        self._step_change_PP[slot] = self._changes_PD @ step
        self._step_change_PP[:, slot] = self._steps_PD @ change
        self._change_change_PP[slot] = self._change_change_PP[:, slot] = self._changes_PD @ change
        self._gamma = curvature / float(change @ change)
        return True

    def times(self, vectors_DK: Tensor) -> Tensor:
        """H times every column."""
        if not self._order:
            return vectors_DK.clone()
        order, gamma = torch.tensor(self._order), self._gamma
        step_change_PP = self._step_change_PP[order][:, order]
        upper_PP = step_change_PP.triu()
        along_steps_PK = (self._steps_PD @ vectors_DK)[order]
        along_changes_PK = (self._changes_PD @ vectors_DK)[order]
        inner_PK = torch.linalg.solve_triangular(upper_PP, along_steps_PK, upper=True)
        middle_PP = step_change_PP.diagonal().diag() + gamma * self._change_change_PP[order][:, order]
        outer_PK = torch.linalg.solve_triangular(
            upper_PP.T, middle_PP @ inner_PK - gamma * along_changes_PK, upper=False
        )
        weights_PK = torch.zeros(2, self.memory, vectors_DK.shape[1], dtype=torch.float64)
        weights_PK[0, order], weights_PK[1, order] = outer_PK, -gamma * inner_PK
        return gamma * vectors_DK + self._steps_PD.T @ weights_PK[0] + self._changes_PD.T @ weights_PK[1]
