"""Costs of a step: estimated in multiplications and bytes, to balance the work, and measured in seconds by part."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from dlrmctl.optim.shampoo.blocks import ParameterBlock

# An eigendecomposition with its root costs about this many n x n x n multiplications (measured on CPU, n = 64..256).
ROOT_COST = 20
# An elementwise pass over a block reads and writes memory; in multiplications of a matrix product (measured on CPU).
ELEMENTWISE_COST = 10

# The parts of a step, in their order.
PARTS = ("gradients", "statistics", "roots", "elementwise", "application", "communication", "weights")
Timed = Callable[[str], AbstractContextManager[None]]
_NOTHING = nullcontext()


@dataclass(frozen=True)
class StepCost:
    """Multiplications per step; work that is not done every step is spread over its interval."""

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

    def times(self, factor: float) -> "StepCost":
        """Returns the cost of `factor` times the work."""
        return StepCost(
            self.statistics * factor, self.roots * factor, self.application * factor, self.elementwise * factor
        )


def root_cost(block: ParameterBlock) -> float:
    """Returns the multiplications of one refresh of the block's roots."""
    return 0.0 if block.diagonal else float(ROOT_COST * sum(block.shape[dim] ** 3 for dim in block.dims))


def step_cost(block: ParameterBlock, *, precondition_frequency: int, statistics_frequency: int) -> StepCost:
    """Returns the cost of a block per step."""
    elementwise = float(ELEMENTWISE_COST * block.numel)
    if block.diagonal:
        return StepCost(elementwise=elementwise)
    products = float(block.numel * sum(block.shape[dim] for dim in block.dims))
    roots = root_cost(block) / precondition_frequency
    return StepCost(products / statistics_frequency, roots, products, elementwise)


@dataclass(frozen=True)
class ParameterCost:
    """One line of a report: a parameter, its blocks over all ranks, and the bytes of their state on this rank."""

    name: str
    shape: tuple[int, ...]
    num_blocks: int
    cost: StepCost
    state_bytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def untimed(part: str) -> AbstractContextManager[None]:
    return _NOTHING


class PartTimes:
    """Seconds spent in each of PARTS since construction or the last clear.

    Assign `optimizer.part_times = PartTimes()` to start measuring, None to stop.

    Args:
        synchronize: called before every reading of the clock, e.g. torch.cuda.synchronize.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self._synchronize = synchronize
        self.clear()

    def clear(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[part] += self._now() - start

    def _now(self) -> float:
        if self._synchronize is not None:
            self._synchronize()
        return time.perf_counter()
