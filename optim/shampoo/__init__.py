"""Distributed Shampoo with grafting."""

from optim.shampoo.gradients import NonFiniteGradientError
from optim.shampoo.grafting import AdaGradGrafting, AdamGrafting, Grafting, RMSpropGrafting, SGDGrafting
from optim.shampoo.optimizer import DistributedShampoo

__all__ = [
    "AdaGradGrafting",
    "AdamGrafting",
    "DistributedShampoo",
    "Grafting",
    "NonFiniteGradientError",
    "RMSpropGrafting",
    "SGDGrafting",
]
