"""Runs work in threads, with results in order, so that the number of threads affects only the speed."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TypeVar

_Result = TypeVar("_Result")


class Workers:
    """A pool of threads.

    Args:
        number: number of threads; None means one per core that this process may use.
    """

    def __init__(self, number: int | None = None) -> None:
        self.number = number or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self.number, thread_name_prefix="prepare")

    def submit(self, call: Callable[[], _Result]) -> "Future[_Result]":
        """Starts one call."""
        return self._pool.submit(call)

    def in_order(self, calls: Iterable[Callable[[], _Result]]) -> Iterator[_Result]:
        """Yields the results of the calls in order; only a few calls are ahead.

        Raises:
            The error of a call, in its turn; later calls are dropped.
        """
        ahead: deque[Future[_Result]] = deque()
        try:
            for call in calls:
                ahead.append(self._pool.submit(call))
                if len(ahead) > self.number:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
            wait(ahead)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
