"""What every solver returns, and what it tells after each iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from dlrmctl.optim.convex.objective import FiniteSum

Reason = Literal["converged", "stopped", "out of iterations", "out of passes", "no further progress"]


@dataclass(frozen=True)
class Iteration:
    """Where a solver stands after an iteration; the same on all ranks.

    Attributes:
        number: iterations so far; 0 is the start.
        passes: over the data so far: rows read for any purpose over the number of rows.
        value: of the objective, over the rows that the iteration used.
        gradient_norm: Euclidean, over the same rows.
        sample_size: how many rows these were.
        step: length of the step along the direction that led here; 0 at the start.
        first_accepted: whether the first step length that was tried was taken.
        point: the parameters at which value and gradient were taken; empty in a `Solution.history`.
    """

    number: int
    passes: float
    value: float
    gradient_norm: float
    sample_size: int
    step: float
    first_accepted: bool
    point: Tensor = field(repr=False)


Watch = Callable[[Iteration], bool]
"""Called after every iteration, for progress or a loss on other rows; True stops the solver. Each rank calls its
own, and all must answer the same."""


@dataclass(frozen=True)
class Solution:
    """Where a solver ended.

    Attributes:
        point: the parameters, float64, `[num_parameters]`.
        value: of the objective at the last iteration, over the rows of its sample.
        gradient_norm: likewise.
        converged: whether the gradient's norm over all rows fell to the tolerance.
        reason: why it stopped; "stopped" is the watch's doing, and "no further progress" means that rounding hides any
            further decrease.
        history: one entry per iteration, without points.
        notes: sentences for the user, such as a warning about a sketch.
    """

    point: Tensor
    value: float
    gradient_norm: float
    converged: bool
    reason: Reason
    history: list[Iteration]
    notes: list[str] = field(default_factory=list)

    @property
    def passes(self) -> float:
        return self.history[-1].passes


class Record:
    """The history of a solver as it grows."""

    def __init__(self, objective: FiniteSum, watch: Watch | None) -> None:
        self.objective = objective
        self.watch = watch
        self.history: list[Iteration] = []
        self.notes: list[str] = []
        self._passes_before = objective.passes

    @property
    def passes(self) -> float:
        return self.objective.passes - self._passes_before

    def add(
        self,
        point: Tensor,
        value: float,
        gradient: Tensor,
        *,
        sample_size: int,
        step: float = 0.0,
        first_accepted: bool = True,
    ) -> bool:
        """Records an iteration and returns whether the watch stops here."""
        norm, original = self.objective.norm(gradient), self.objective.original(point)
        number = len(self.history)
        entry = Iteration(number, self.passes, value, norm, sample_size, step, first_accepted, original)
        self.history.append(replace(entry, point=torch.empty(0, dtype=torch.float64)))
        return self.watch is not None and self.watch(entry)

    def solution(self, point: Tensor, reason: Reason) -> Solution:
        last = self.history[-1]
        converged = reason == "converged"
        point = self.objective.original(point)
        return Solution(point, last.value, last.gradient_norm, converged, reason, self.history, self.notes)
