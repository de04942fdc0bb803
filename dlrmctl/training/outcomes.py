"""Numbers of steps on their way from the device to the host."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Outcomes:
    """Copies numbers of each step to the host, and reads them some steps later, so that no step waits for the device.

    Args:
        lag: number of steps that may still be under way when numbers are read; the same on every rank, so that all
            ranks read those of the same steps.
    """

    def __init__(self, lag: int) -> None:
        self.lag = lag
        self._under_way: deque[tuple[int, Tensor, Any]] = deque()

    def __len__(self) -> int:
        return len(self._under_way)

    def add(self, step: int, numbers: Tensor) -> None:
        """Takes the numbers of a step, one dimension."""
        if numbers.device.type != "cuda":
            self._under_way.append((step, numbers, None))
            return
        on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        on_host.copy_(numbers, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._under_way.append((step, on_host, copied))

    def read(self, *, all_of_them: bool) -> Iterator[tuple[int, list[float]]]:
        """Yields steps and their numbers, in order: all, or those before the last `lag` steps."""
        while len(self._under_way) > (0 if all_of_them else self.lag):
            step, on_host, copied = self._under_way.popleft()
            if copied is not None and not copied.query():
                copied.synchronize()
            yield step, on_host.tolist()

    def clear(self) -> None:
        self._under_way.clear()
