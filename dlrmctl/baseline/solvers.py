"""Chooses the solver of a baseline, and how exactly it solves."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor

from dlrmctl.optim.convex.distributed import dist_newton
from dlrmctl.optim.convex.lbfgs import pb_lbfgs
from dlrmctl.optim.convex.newton import newton
from dlrmctl.optim.convex.objective import LogisticRegression
from dlrmctl.optim.convex.sketch import newton_sketch
from dlrmctl.optim.convex.solution import Iteration, Solution
from dlrmctl.optim.convex.solve import choose_solver
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.baseline import BaselineSettings

_ENOUGH = 1e-6  # a fit ends when the last iterations together lowered the objective by less,
_LAST = 3  # so many
_MOST_BYTES = 1 << 30  # of Hessians: at more than 6,700 features, L-BFGS is far faster
_TOLERANCE = 1e-8  # of the gradient's norm: then there is nothing left to gain


@dataclass(frozen=True)
class Solver:
    """A solver by name; `run` is one of `optim.convex`."""

    name: str
    run: Callable[..., Solution]

    def solve(self, objective: LogisticRegression, start: Tensor, tell: Callable[[Iteration], None]) -> Solution:
        """Minimizes until no further iteration matters: the last three lowered the objective by less than 1e-6.

        Args:
            tell: called after every iteration.

        Raises:
            ValueError: if the solver cannot solve this problem.
        """
        values: list[float] = []  # of iterations over all rows

        def watch(iteration: Iteration) -> bool:
            tell(iteration)
            if iteration.sample_size < objective.num_rows:
                return False
            values.append(iteration.value)
            return len(values) > _LAST and values[-1 - _LAST] - values[-1] < _ENOUGH

        return self.run(objective, start, tolerance=_TOLERANCE, watch=watch)


def _pb_lbfgs(objective: LogisticRegression, start: Tensor, **options: Any) -> Solution:
    return pb_lbfgs(objective, start, scale=objective.scale(), **options)


def solver_for(settings: BaselineSettings, objective: LogisticRegression, ranks: Ranks) -> Solver:
    """The solver of the settings, for the number of features of an objective.

    Args:
        ranks: that share the examples.
    """
    name = settings.solver
    if name == "auto":
        # Without a penalty the Hessian is singular: the rows of each table add up to the intercept.
        name = "pb-lbfgs" if settings.l2 == 0 else choose_solver(objective.num_parameters)
    solvers: dict[str, Callable[..., Solution]] = {
        "pb-lbfgs": _pb_lbfgs,
        "newton": partial(newton, memory_bytes=_MOST_BYTES),
        "newton-less": partial(newton_sketch, sketch=cast("Any", settings.sketch), memory_bytes=_MOST_BYTES),
        "dist-newton": partial(dist_newton, memory_bytes=_MOST_BYTES),
    }
    return Solver(name, solvers[name])
