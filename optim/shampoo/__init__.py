"""Distributed Shampoo with grafting."""

from optim.shampoo.configs import (
    AdaGradGrafting,
    AdamGrafting,
    EigenvalueCorrected,
    Grafting,
    Preconditioner,
    RMSpropGrafting,
    RootInverse,
    SGDGrafting,
)
from optim.shampoo.gradients import NonFiniteGradientError
from optim.shampoo.optimizer import DistributedShampoo

__all__ = [
    "AdaGradGrafting",
    "AdamGrafting",
    "DistributedShampoo",
    "EigenvalueCorrected",
    "Grafting",
    "NonFiniteGradientError",
    "Preconditioner",
    "RMSpropGrafting",
    "RootInverse",
    "SGDGrafting",
]
