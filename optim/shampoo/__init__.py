"""Distributed Shampoo with grafting."""

from dlrmctl.optim.shampoo.configs import (
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
from dlrmctl.optim.shampoo.costs import PARTS, ParameterCost, PartTimes, StepCost
from dlrmctl.optim.shampoo.gradients import NonFiniteGradientError
from dlrmctl.optim.shampoo.optimizer import DistributedShampoo

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
