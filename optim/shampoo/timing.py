"""Where the time of a step goes, by part."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

# The parts of a step, in their order.
PARTS = ("gradients", "statistics", "roots", "elementwise", "application", "communication", "weights")

Timed = Callable[[str], AbstractContextManager[None]]

_NOTHING = nullcontext()


def untimed(part: str) -> AbstractContextManager[None]:
    return _NOTHING


class PartTimes:
    """Seconds spent in each of PARTS since it was made or cleared.

    `optimizer.part_times = PartTimes()` measures from then on, None stops.

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
