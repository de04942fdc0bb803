"""What every solver returns, and what it tells after each iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


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
        point: the parameters. A solver changes no tensor that it has told.
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
"""Called after every iteration, for progress or a validation loss; True stops the solver. On several ranks every rank
calls it and all must return the same."""


@dataclass(frozen=True)
class Solution:
    """The end of a solver's way.

    Attributes:
        point: the parameters, float64, `[num_parameters]`.
        value: of the objective over all rows, where the solver knows it; else over its last sample.
        gradient_norm: over the same rows.
        converged: whether the gradient's norm fell below the tolerance over all rows.
        reason: why it stopped: "converged", "stopped by the watcher", "out of iterations", "out of passes" or "no
            further progress" (the value's rounding is all that is left).
        history: one entry per iteration, without points.
        notes: sentences for the user, such as a warning about a sketch.
    """

    point: Tensor
    value: float
    gradient_norm: float
    converged: bool
    reason: str
    history: list[Iteration]
    notes: list[str] = field(default_factory=list)

    @property
    def passes(self) -> float:
        return self.history[-1].passes
