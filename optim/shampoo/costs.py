"""What a block costs, in multiplications and bytes: for sharing the work out, and for showing where it goes."""

import math
from dataclasses import dataclass

from optim.shampoo.blocks import Block

# An eigendecomposition with its root costs about this many n x n x n multiplications (measured on CPU, n = 64..256).
ROOT_COST = 20
# An elementwise pass over a block reads and writes memory; in multiplications of a matrix product (measured on CPU).
ELEMENTWISE_COST = 10


@dataclass(frozen=True)
class StepCost:
    """Multiplications per step, what is not done every step spread over its interval."""

    statistics: float = 0.0
    roots: float = 0.0
    application: float = 0.0
    elementwise: float = 0.0

    @property
    def total(self) -> float:
        return self.statistics + self.roots + self.application + self.elementwise

    def __add__(self, other: "StepCost") -> "StepCost":
        return StepCost(
            self.statistics + other.statistics,
            self.roots + other.roots,
            self.application + other.application,
            self.elementwise + other.elementwise,
        )


def root_cost(block: Block) -> float:
    """Multiplications of one refresh of the block's roots."""
    return 0.0 if block.diagonal else float(ROOT_COST * sum(block.shape[dim] ** 3 for dim in block.dims))


def step_cost(block: Block, *, precondition_frequency: int, statistics_frequency: int) -> StepCost:
    """What the block costs per step."""
    elementwise = float(ELEMENTWISE_COST * block.numel)
    if block.diagonal:
        return StepCost(elementwise=elementwise)
    products = float(block.numel * sum(block.shape[dim] for dim in block.dims))
    roots = root_cost(block) / precondition_frequency
    return StepCost(products / statistics_frequency, roots, products, elementwise)


@dataclass(frozen=True)
class ParameterCost:
    """One line of a report: a parameter, its blocks over all ranks, and the bytes of state they hold here."""

    name: str
    shape: tuple[int, ...]
    num_blocks: int
    cost: StepCost
    state_bytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)
