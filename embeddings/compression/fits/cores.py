"""Pieces of work for several cores, where each is too small for torch to share it among its threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")


def map_in_order(function: Callable[[_Given], _Found], pieces: Iterable[_Given]) -> Iterator[_Found]:
    """Yields the results for the pieces in order, computed by as many threads as torch may use here.

    Few more pieces than threads are read ahead.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, pieces)
        return
    waiting: deque[Future[_Found]] = deque()
    with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        for piece in pieces:
            waiting.append(pool.submit(function, piece))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
