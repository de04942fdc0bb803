"""Distributed Shampoo with grafting."""

from optim.shampoo.configs import (
    AdaGradGrafting,
    AdamGrafting,
    Eigendecomposed,
    EigenvalueCorrected,
    Grafting,
    Preconditioner,
    RMSpropGrafting,
    RootInverse,
    SGDGrafting,
)
from optim.shampoo.costs import ParameterCost, StepCost
from optim.shampoo.gradients import NonFiniteGradientError
from optim.shampoo.optimizer import DistributedShampoo
from optim.shampoo.timing import PARTS, PartTimes

__all__ = [
    "PARTS",
    "AdaGradGrafting",
    "AdamGrafting",
    "DistributedShampoo",
    "Eigendecomposed",
    "EigenvalueCorrected",
    "Grafting",
    "NonFiniteGradientError",
    "ParameterCost",
    "PartTimes",
    "Preconditioner",
    "RMSpropGrafting",
    "RootInverse",
    "SGDGrafting",
    "StepCost",
]
