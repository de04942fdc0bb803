"""Which solver fits a problem."""

from typing import Literal

SolverName = Literal["newton", "pb-lbfgs", "newton-less", "dist-newton"]
NEWTON_BELOW = 2000  # parameters: a Hessian over 110,000 rows of 39 ids then takes about a second


def choose_solver(num_parameters: int) -> SolverName:
    """Newton's method where parameters are few, else L-BFGS with growing samples."""
    return "newton" if num_parameters < NEWTON_BELOW else "pb-lbfgs"
